"""Where the training of a reward model begins: a causal language model's transformer, a reward model, or nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from starling_train.config.fields import UserError
from starling_train.config.rm import RmConfig
from starling_train.models import adapters, causal_lm, header_checks, quantisation
from starling_train.models.causal_lm import Decoder
from starling_train.models.families.positions import Positions, positions_of
from starling_train.models.reward import checkpoint, classifier, loading
from starling_train.models.reward.net import RewardNet
from starling_train.models.reward.source import RewardSource
from starling_train.models.source import ModelSource

# What a Mistral's configuration shares with a Llama's; with these and no sliding window the two compute the same.
SHARED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps",
    "rope_parameters", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip


@dataclass
class Start:
    """Where the training begins, and what is known without its weights: tokenizer, configuration."""

    source: RewardSource
    tokenizer: Any
    config: Any

    @property
    def directory(self) -> Path:
        return self.source.directory

    @property
    def is_classifier(self) -> bool:
        """Whether it becomes a plain sequence classifier."""
        return self.source.kind == classifier.KIND


def find_start(config: RmConfig, path: str | None = None, key: str = "model.path") -> Start:
    """Resolve model and tokenizer, and check them. Raises UserError.

    path: where the model is now, if not where the configuration says. key: the configuration key, for messages.
    """
    model, ranking = config.model, config.rm
    source = RewardSource.open(
        ranking.kind,
        path or model.path,
        ranking.tokenizer,
        key=key,
        tokenizer_key="rm.tokenizer",
        revision=None if path else model.revision,
        weights=not (config.dry_run or ranking.fresh),
        only="",
    )
    tokenizer = source.tokenizer
    read = classifier.read_config if ranking.kind == classifier.KIND else read_config
    return Start(source, tokenizer, read(source, ranking.max_length))


def read_config(source: RewardSource, max_length: int) -> Any:
    """Return the Llama configuration of the reward model that a directory becomes, dropout off.

    Raises UserError for another architecture, and for a vocabulary or positions that are too few.
    """
    config = source.configured.policy_config
    if config.model_type not in ("mistral", "llama"):
        raise UserError(
            f"{source.configured.key}: a Starling reward model is a Llama, which '{config.model_type}' cannot "
            "become; use a Mistral or Llama model"
        )
    positions, window = positions_of(config), getattr(config, "sliding_window", None)
    if window and window < positions.most:
        positions = Positions(window, f"{window} positions")
    if max_length > positions.most:
        raise UserError(f"rm.max_length: {max_length} is more than the model's {positions.what}; lower it")
    source.check_vocabulary()
    return causal_lm.without_dropout(_as_llama(config))


def make_net(begin: Start, *, fresh: bool, dtype: str, attention: str, device: str) -> RewardNet:
    """Make the network before the first step. A language model's transformer and fresh weights get a head of zeros.

    fresh: random weights, drawn from torch's global generator.
    """
    config = begin.config
    if begin.is_classifier:
        if not fresh:
            return classifier.load(begin.source, config, dtype, attention).to(device)
        config._attn_implementation = causal_lm.supported_attention(config, attention)
        net = classifier.net_of(classifier.build(config, "cpu", getattr(torch, dtype)), starts=True)
    elif fresh:
        config._attn_implementation = attention
        net = RewardNet.from_config(config).to(getattr(torch, dtype))
    elif is_reward_model(begin.source.model):
        is_bin = any(file.suffix == ".bin" for file in begin.source.model.files.read)
        layout = "starling_7b" if is_bin else "starling_34b"
        options = quantisation.loading_options(dtype, device, None) | {"attn_implementation": attention}
        net = loading.load_starling(layout, begin.directory, config, options)
    else:
        head = nn.Linear(config.hidden_size, 1, bias=False, dtype=getattr(torch, dtype))
        nn.init.zeros_(head.weight)
        net = RewardNet(_transformer(begin.source.model, config, dtype, attention), head)
    return net.to(device)


def is_reward_model(source: ModelSource) -> bool:
    """Return whether a directory is in one of the two Starling layouts."""
    return any(entry.name == "v_head.weight" for entry in source.entries)


def check_start(begin: Start, *, fresh: bool) -> None:
    """Check names and shapes of the weights that training starts from, and that its tokenizer can be written.

    fresh: no weights are read. Raises UserError.
    """
    if begin.is_classifier:
        classifier.check_tokenizer(begin.tokenizer, begin.config)
    if fresh:
        return
    if begin.is_classifier and classifier.is_classifier(begin.source):
        classifier.check(begin.source, begin.config)
    elif begin.is_classifier or not is_reward_model(begin.source.model):
        header_checks.check_policy(begin.source.model)


def empty_net(begin: Start) -> RewardNet:
    """Build the network on the meta device: names and shapes, without memory."""
    if begin.is_classifier:
        return classifier.net_of(classifier.build(begin.config, "meta"), starts=False)
    with torch.device("meta"):
        return RewardNet.from_config(begin.config)


def net_writer(begin: Start, net: RewardNet) -> Callable[[Path], None]:
    """Return a function that writes the reward model in the layout of `rm.kind` into a directory."""
    if begin.is_classifier:
        return lambda directory: classifier.write(adapters.merged(net), begin.config, directory, begin.tokenizer)
    write = checkpoint.write_starling_7b if begin.source.kind == "starling_7b" else checkpoint.write_starling_34b
    return lambda directory: write(adapters.merged(net), directory, begin.tokenizer)


def _transformer(source: ModelSource, config: Any, dtype: str, attention: str) -> Decoder:
    """Load the causal language model without its head, as a Llama."""
    from transformers import LlamaModel

    model = causal_lm.load_causal_lm(source, dtype=dtype, attention=attention).get_decoder()
    if model.config.model_type == "llama":
        return model
    llama: Any = LlamaModel
    return llama.from_pretrained(
        None, config=config, state_dict=model.state_dict(), dtype=getattr(torch, dtype), attn_implementation=attention
    )


def _as_llama(config: Any) -> Any:
    from transformers import LlamaConfig

    if config.model_type == "llama":
        return config
    return LlamaConfig(**{name: getattr(config, name) for name in SHARED})
