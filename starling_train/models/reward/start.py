"""Where the training of a reward model begins: a causal language model's transformer, a reward model, or nothing."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from starling_train.config.fields import UserError
from starling_train.data import reward_templates
from starling_train.files import tensors
from starling_train.models import causal_lm, quantisation
from starling_train.models.reward import loading
from starling_train.models.reward.net import RewardNet

# What a Mistral's configuration shares with a Llama's; with these and no sliding window the two compute the same.
SHARED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps",
    "rope_parameters", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip


def read_config(directory: Path, tokenizer_directory: Path, tokenizer: Any, max_length: int) -> Any:
    """The Llama configuration of the reward model that `directory` becomes, dropout off.

    Starling-RM-7B-alpha comes without config.json: the tokenizer's directory, its base model's, then has it.
    Raises UserError for another architecture, and for a vocabulary or positions that are too few.
    """
    source = directory if (directory / "config.json").is_file() else tokenizer_directory
    config = causal_lm.load_config(source, "model.path")
    window = getattr(config, "sliding_window", None) or config.max_position_embeddings
    positions = min(window, config.max_position_embeddings)
    if max_length > positions:
        raise UserError(f"rm.max_length: {max_length} is more than the model's {positions} positions; lower it")
    if config.vocab_size < len(tokenizer):
        raise UserError(
            f"rm.tokenizer: it has {len(tokenizer)} tokens, but the vocabulary of {directory} is {config.vocab_size}; "
            "give the tokenizer that belongs to model.path"
        )
    return causal_lm.without_dropout(_as_llama(config))


def load_tokenizer(kind: str, directory: Path) -> Any:
    """The tokenizer, loaded as the finished reward model's will be, and checked to fit the template."""
    tokenizer = loading.load_tokenizer(directory)
    reward_templates.check_tokenizer(kind, tokenizer, f"rm.tokenizer: {directory}")
    return tokenizer


def start(directory: Path, config: Any, *, fresh: bool, dtype: str, attention: str, device: str) -> RewardNet:
    """The network before the first step. A language model's transformer and fresh weights get a head of zeros.

    config: from `read_config`. fresh: random weights, drawn from torch's global generator.
    """
    if fresh:
        config._attn_implementation = attention
        net = RewardNet.from_config(config).to(getattr(torch, dtype))
    elif is_reward_model(directory):
        layout = "starling_7b" if (directory / "pytorch_model.bin").is_file() else "starling_34b"
        options = quantisation.loading_options(dtype, device, None) | {"attn_implementation": attention}
        net = loading.load_starling(layout, directory, config, options)
    else:
        head = nn.Linear(config.hidden_size, 1, bias=False, dtype=getattr(torch, dtype))
        nn.init.zeros_(head.weight)
        net = RewardNet(_transformer(directory, config, dtype, attention), head)
    return net.to(device)


def is_reward_model(directory: Path) -> bool:
    """True for a directory in one of the two Starling layouts."""
    return any(entry.name == "v_head.weight" for entry in tensors.entries(directory))


def empty(config: Any) -> RewardNet:
    """Names and shapes on the meta device, without memory."""
    with torch.device("meta"):
        return RewardNet.from_config(config)


def _transformer(directory: Path, config: Any, dtype: str, attention: str) -> nn.Module:
    """The causal language model without its head, as a Llama."""
    from transformers import LlamaModel

    model = causal_lm.load_causal_lm(directory, "model.path", dtype=dtype, attention=attention).model
    if model.config.model_type == "llama":
        return model
    return LlamaModel.from_pretrained(
        None, config=config, state_dict=model.state_dict(), dtype=getattr(torch, dtype), attn_implementation=attention
    )


def _as_llama(config: Any) -> Any:
    from transformers import LlamaConfig

    if config.model_type == "llama":
        return config
    return LlamaConfig(**{name: getattr(config, name) for name in SHARED})
