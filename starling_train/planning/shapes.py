"""Sizes of decoders from config.json alone, and of published models where it is not available.

The published sizes are from the models' cards and those of their bases.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from starling_train.config.fields import UserError
from starling_train.models.reward.checkpoint import SUFFIX_OF
from starling_train.models.source import ModelSource, cached_config, local_directory


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder that the arithmetic needs.

    exact: the transformers configuration of a decoder that is neither a Llama nor a Mistral, whose parameters are
    counted in its empty model. intermediate: of all experts that a token goes through.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = False
    head_size: int | None = None
    exact: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, config: Any) -> "Shape":
        """Take the sizes from `config`, a transformers configuration, or a dict with the keys of a Llama's."""
        if not isinstance(config, dict) and config.model_type not in LLAMAS:
            return cls._of_another(config)
        values = config if isinstance(config, dict) else config.to_dict()
        return cls(
            values["hidden_size"],
            values["intermediate_size"],
            values["num_hidden_layers"],
            values["num_attention_heads"],
            values.get("num_key_value_heads") or values["num_attention_heads"],
            values["vocab_size"],
            bool(values.get("tie_word_embeddings")),
            values.get("head_dim"),
        )

    @classmethod
    def _of_another(cls, config: Any) -> "Shape":
        text = config.get_text_config()
        hidden, heads = text.hidden_size, text.num_attention_heads
        wide = next((value for name in WIDTHS if (value := getattr(text, name, None))), 4 * hidden)
        experts = getattr(text, "num_experts_per_tok", None) or 1
        return cls(
            hidden,
            experts * (getattr(text, "moe_intermediate_size", None) or wide),
            text.num_hidden_layers,
            heads,
            getattr(text, "num_key_value_heads", None) or heads,
            text.vocab_size,
            bool(config.tie_word_embeddings),
            getattr(text, "head_dim", None),
            config,
        )

    def config(self) -> Any:
        """Make a transformers configuration whose model has these sizes."""
        from transformers import LlamaConfig

        if self.exact is not None:
            return self.exact
        return LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            vocab_size=self.vocabulary,
            tie_word_embeddings=self.tied,
            head_dim=self.head,
        )

    @property
    def head(self) -> int:
        """Size of an attention head."""
        return self.head_size or self.hidden // self.heads

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Return the shape of each matrix of a layer by its type, in the order of the forward pass (Llama, Mistral)."""
        d, q, kv = self.hidden, self.heads * self.head, self.kv_heads * self.head
        attention = {"q_proj": (q, d), "k_proj": (kv, d), "v_proj": (kv, d), "o_proj": (d, q)}
        mlp = {
            "gate_proj": (self.intermediate, d),
            "up_proj": (self.intermediate, d),
            "down_proj": (d, self.intermediate),
        }
        return {f"self_attn.{k}": v for k, v in attention.items()} | {f"mlp.{k}": v for k, v in mlp.items()}

    def layer_parameters(self) -> int:
        """Count the parameters in the matrices of one layer."""
        if self.exact is not None:
            return self._counted[0] // self.layers
        return sum(rows * columns for rows, columns in self.matrices().values())

    def decoder_parameters(self) -> int:
        """Count embeddings, layers and norms, without an output head."""
        if self.exact is not None:
            return self._counted[1]
        d = self.hidden
        return self.layers * (self.layer_parameters() + 2 * d) + self.vocabulary * d + d

    def parameters(self) -> int:
        """Count the parameters of the causal language model."""
        if self.exact is not None:
            return self._counted[2]
        return self.decoder_parameters() + (0 if self.tied else self.vocabulary * self.hidden)

    @cached_property
    def _counted(self) -> tuple[int, int, int]:
        """Count the parameters of the empty model: in matrices of its layers, below its head, all."""
        from starling_train.models.causal_lm import build_empty

        model = build_empty(self.exact)
        decoder = model.get_decoder()
        inside = [p for name, p in decoder.named_parameters() if p.ndim > 1 and any(map(str.isdigit, name.split(".")))]
        matrices, below, everything = (
            sum(p.numel() for p in of) for of in (inside, decoder.parameters(), model.parameters())
        )
        return matrices, below, everything

    def kv_values(self) -> int:
        """Count the numbers that the cache keeps of a token."""
        return 2 * self.layers * self.kv_heads * self.head

    def forward(self) -> int:
        """Count the numbers per token alive at a time in a pass without gradients: around the MLP of one layer."""
        return 3 * self.hidden + 3 * self.intermediate


LLAMAS = ("mistral", "llama")
WIDTHS = ("intermediate_size", "n_inner", "ffn_dim")  # of a layer's inner states, as configurations call them
LLAMA_2_7B = Shape(4096, 11008, 32, 32, 32, 32000)
SMOLLM2_135M = Shape(576, 1536, 30, 9, 3, 49152, tied=True)
KNOWN_POLICIES = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": SMOLLM2_135M,
    "openchat/openchat-3.5-0106": Shape(4096, 14336, 32, 32, 8, 32002),
    "berkeley-nest/Starling-LM-7B-alpha": Shape(4096, 14336, 32, 32, 8, 32002),
    "Nexusflow/Starling-LM-7B-beta": Shape(4096, 14336, 32, 32, 8, 32002),
    "mistralai/Mistral-7B-v0.1": Shape(4096, 14336, 32, 32, 8, 32000),
    "meta-llama/Llama-2-7b-chat-hf": LLAMA_2_7B,
}
# by reward.kind: Starling-RM-7B-alpha comes without config.json
KNOWN_REWARD_MODELS = {"starling_7b": LLAMA_2_7B, "starling_34b": Shape(7168, 20480, 60, 56, 8, 64000)}
# reward models that a recipe reads and another one of ours makes
MADE = {"runs/smol_rm/reward": SMOLLM2_135M}
NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


def find(path: str, key: str, known: dict[str, Shape], kind: str) -> Shape:
    """Find the shape of the model in a directory or in this machine's hub cache, or of the known one of `kind`.

    Nothing is downloaded. Raises UserError.
    """
    directory = local_directory(path, key) or cached_config(path)
    source = ModelSource(directory, key, only=SUFFIX_OF.get(kind, "")) if directory else None
    if source:
        source.check_files()
    if kind in known and not (source and source.has_config):
        return known[kind]
    if source is None:
        raise UserError(
            f"{key}: '{path}' is not a local directory, and its shape is not known; download its config.json"
        )
    return read(source)


def read(source: ModelSource) -> Shape:
    """Read the shape from a directory's config.json. Raises UserError where it describes no causal language model."""
    source.check_config()
    key, file, values = source.key, source.directory / "config.json", source.values
    if values.get("model_type") not in LLAMAS:
        config = source.policy_config
        try:
            return Shape.of(config)
        except (AttributeError, TypeError) as error:
            raise UserError(f"{key}: {file}: {error}; download it again") from error
    for name in NEEDED:
        if not isinstance(values.get(name), int) or isinstance(values[name], bool) or values[name] < 1:
            raise UserError(f"{key}: {file}: {name} is {values.get(name)!r}, not a number above 0; download it again")
    for name in ("num_key_value_heads", "head_dim"):
        if not isinstance(values.get(name) or 1, int):
            raise UserError(f"{key}: {file}: {name} is {values[name]!r}, not a whole number; download it again")
    return Shape.of(values)
