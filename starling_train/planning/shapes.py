"""Sizes of decoders from config.json alone, and those of published models where it is not at hand.

Facts of the known ones are from their model cards and those of their bases.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starling_train.config.fields import UserError, no_path
from starling_train.config.sections import FreezeConfig


@dataclass(frozen=True)
class Shape:
    """What the arithmetic needs of a decoder."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = False
    head_size: int | None = None

    @classmethod
    def of(cls, config: Any) -> "Shape":
        """config: a transformers configuration, or a dict with its keys."""
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

    @property
    def head(self) -> int:
        """Size of an attention head."""
        return self.head_size or self.hidden // self.heads

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Shape of each matrix of a layer by its type, in the order of the forward pass (Llama, Mistral)."""
        d, q, kv = self.hidden, self.heads * self.head, self.kv_heads * self.head
        attention = {"q_proj": (q, d), "k_proj": (kv, d), "v_proj": (kv, d), "o_proj": (d, q)}
        mlp = {
            "gate_proj": (self.intermediate, d),
            "up_proj": (self.intermediate, d),
            "down_proj": (d, self.intermediate),
        }
        return {f"self_attn.{k}": v for k, v in attention.items()} | {f"mlp.{k}": v for k, v in mlp.items()}

    def layer_parameters(self) -> int:
        """The matrices of one layer."""
        return sum(rows * columns for rows, columns in self.matrices().values())

    def decoder_parameters(self) -> int:
        """Embeddings, layers and norms, without an output head (Llama and Mistral, no biases)."""
        d = self.hidden
        return self.layers * (self.layer_parameters() + 2 * d) + self.vocabulary * d + d

    def parameters(self) -> int:
        """All of a causal language model."""
        return self.decoder_parameters() + (0 if self.tied else self.vocabulary * self.hidden)

    def kv_values(self) -> int:
        """Numbers that the cache keeps of a token."""
        return 2 * self.layers * self.kv_heads * self.head

    def forward(self) -> int:
        """Numbers per token that live at a time in a pass without gradients: around the MLP of one layer."""
        return 3 * self.hidden + 3 * self.intermediate


def _shape(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocabulary: int) -> Shape:
    return Shape(hidden, intermediate, layers, heads, kv_heads, vocabulary)


LLAMA_2_7B = _shape(4096, 11008, 32, 32, 32, 32000)
KNOWN_POLICIES = {
    "openchat/openchat-3.5-0106": _shape(4096, 14336, 32, 32, 8, 32002),
    "berkeley-nest/Starling-LM-7B-alpha": _shape(4096, 14336, 32, 32, 8, 32002),
    "Nexusflow/Starling-LM-7B-beta": _shape(4096, 14336, 32, 32, 8, 32002),
    "mistralai/Mistral-7B-v0.1": _shape(4096, 14336, 32, 32, 8, 32000),
    "meta-llama/Llama-2-7b-chat-hf": LLAMA_2_7B,
}
# by reward.kind: Starling-RM-7B-alpha comes without config.json
KNOWN_REWARD_MODELS = {"starling_7b": LLAMA_2_7B, "starling_34b": _shape(7168, 20480, 60, 56, 8, 64000)}
NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


def find(path: str, key: str, known: dict[str, Shape], kind: str) -> Shape:
    """The shape of the model in a directory, of one in the hub's cache on this machine, or of the known one of `kind`.

    Nothing is downloaded. Raises UserError.
    """
    local = Path(path).expanduser()
    if reason := no_path(local):
        raise UserError(f"{key}: {str(local)[:80]!r} cannot be a path ({reason}); check it")
    if local.is_dir() and not ((local / "config.json").is_file()) and kind in known:
        return known[kind]
    if not local.is_dir():
        if local.is_absolute() or path.startswith((".", "~")) or path.count("/") != 1:
            raise UserError(f"{key}: no such directory: {local}; give a Hugging Face model directory or a hub id")
        cached = _cached(path)
        if cached is None and kind in known:
            return known[kind]
        if cached is None:
            raise UserError(
                f"{key}: '{path}' is no local directory, and its shape is not known; download its config.json"
            )
        local = cached
    return read(local, key)


def _cached(hub_id: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(hub_id, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def read(directory: Path, key: str) -> Shape:
    """The shape that a directory's config.json gives. Raises UserError for what is no Llama or Mistral."""
    from starling_train.files.tensors import read_json

    file = directory / "config.json"
    if not file.is_file():
        raise UserError(f"{key}: {directory} has no config.json; give a Hugging Face model directory")
    values = read_json(file)
    if not isinstance(values, dict):
        raise UserError(f"{key}: {file} holds no object; download it again")
    if values.get("model_type") not in ("mistral", "llama"):
        raise UserError(
            f"{key}: model type '{values.get('model_type')}' is not supported; use a Mistral or Llama model"
        )
    for name in NEEDED:
        if not isinstance(values.get(name), int) or isinstance(values[name], bool) or values[name] < 1:
            raise UserError(f"{key}: {file}: {name} is {values.get(name)!r}, no number above 0; download it again")
    for name in ("num_key_value_heads", "head_dim"):
        if not isinstance(values.get(name) or 1, int):
            raise UserError(f"{key}: {file}: {name} is {values[name]!r}, no whole number; download it again")
    return Shape.of(values)


def freeze_table(shape: Shape, freeze: FreezeConfig, seed: int = 0) -> Any:
    """What would train, a `FreezeTable` as `models.freeze.apply` gives, from the shape alone. Raises UserError.

    Which matrices have the highest SNR is not known: as many are counted as would train, and the lowest layer is the
    lowest that may. With `freeze.scan`, those it selects.
    """
    from starling_train.selection import records as scan_records
    from starling_train.selection import select
    from starling_train.selection.freeze import FreezeTable, Row

    records = {
        name: scan_records.Record(name, kind, size)
        for layer in range(shape.layers)
        for kind, size in shape.matrices().items()
        for name in [f"model.layers.{layer}.{kind}"]
    }
    scored = freeze.method in ("snr", "lowest")
    if scored and freeze.scan:
        source = Path(freeze.scan).expanduser()
        records = scan_records.match(scan_records.read_scan(source), records, str(source))
    guessed = scored and not freeze.scan
    chosen = select.select(
        records, method="random" if guessed else freeze.method, unit=freeze.unit, scope=freeze.scope,
        top_percent=freeze.top_percent, max_trainable=freeze.max_trainable, max_memory_gb=freeze.max_memory_gb,
        last_layers=freeze.last_layers, layers=freeze.layers, lowest_layer=freeze.lowest_layer, seed=seed,
    )  # fmt: skip
    everything = chosen == [select.EVERYTHING]
    names = set(records) if everything else set(chosen)
    layers = {records[name].layer for name in names}
    table = shape.vocabulary * shape.hidden
    groups = {"embeddings": (1, table), "head": (0 if shape.tied else 1, table), "norms": (0, shape.hidden)}
    rank = freeze.lora.rank if freeze.adapter else None  # of adapters on matrices; with freeze.head, on the head too
    trains = {name: (everything and rank is None) or getattr(freeze, name) for name in groups}
    rows = []
    for kind, (high, wide) in shape.matrices().items():
        count = sum(records[name].type == kind for name in names)
        each = high * wide if rank is None else rank * (high + wide)
        rows.append(Row(kind, count, shape.layers, count * each, shape.layers * high * wide))
    for group, (of, size) in groups.items():
        of = 2 * shape.layers + 1 if group == "norms" else of
        count = of * trains[group] if group != "norms" or everything else (2 * len(layers) + 1) * trains[group]
        each = size if rank is None else rank * (shape.vocabulary + shape.hidden)
        rows.append(Row(group, count, of, count * each, of * size))
    lowest = 0 if trains["embeddings"] else (freeze.lowest_layer if guessed else min(layers, default=shape.layers))
    return FreezeTable(tuple(rows), tuple(_parameters(names)), lowest)


def _parameters(names: Iterable[str]) -> list[str]:
    return [f"{name}.weight" for name in sorted(names)]
