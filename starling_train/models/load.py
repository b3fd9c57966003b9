"""From a directory or hub id to a policy: config, tokenizer, weights."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from starling_train.config import UserError


def resolve(
    path: str, key: str, revision: str | None = None, *, weights: bool = True, needs_config: bool = True
) -> Path:
    """The local directory of a model: `path` itself, or the snapshot of a hub id (downloaded if it must be).

    key: the configuration key, for the message. weights=False fetches configuration and tokenizer only.
    Raises UserError if there is no such directory and the hub does not give it either.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        if needs_config and not (local / "config.json").is_file():
            raise UserError(f"{key}: {local} has no config.json; give a Hugging Face model directory")
        return local
    if local.is_absolute() or path.startswith((".", "~")) or path.count("/") != 1:
        raise UserError(f"{key}: no such directory: {local}; give a Hugging Face model directory or a hub id")
    return _from_hub(path, key, revision, weights)


def _from_hub(hub_id: str, key: str, revision: str | None, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.model", "*.jinja"] + (["*.safetensors", "*.bin"] if weights else [])
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"{key}: '{hub_id}' is no local directory, and the hub did not give it ({type(error).__name__}); "
            "download it first and give its directory, or check the name"
        ) from error


def load_config(directory: Path, key: str) -> Any:
    """The transformers configuration of a model directory; raises UserError if it is not a decoder we can cut."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except (ValueError, OSError) as error:
        raise UserError(f"{key}: {directory}/config.json cannot be used: {_first_line(error)}") from error
    if config.model_type not in ("mistral", "llama"):
        raise UserError(f"{key}: model type '{config.model_type}' is not supported; use a Mistral or Llama model")
    return config


def load_tokenizer(directory: Path, key: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"{key}: no usable tokenizer in {directory}: {_first_line(error)}") from error


def load_causal_lm(directory: Path, key: str, *, dtype: str, attention: str = "sdpa", device: str = "cpu") -> nn.Module:
    """The causal language model of a directory, dropout off, in the given dtype on the device.

    Safetensors, or `.bin` shards read with weights-only. Raises UserError when weights are missing.
    """
    from transformers import AutoModelForCausalLM

    config = without_dropout(load_config(directory, key))
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ImportError) as error:
        raise UserError(f"{key}: cannot load the model in {directory}: {_first_line(error)}") from error
    # transformers fills what is missing with random numbers and a warning
    if missing := sorted(found["missing_keys"]):
        raise UserError(f"{key}: {directory} lacks {len(missing)} tensors, {missing[0]} first; download it again")
    return model.to(device)


def without_dropout(config: Any) -> Any:
    """The configuration with every dropout at 0: in PPO a probability must be the same each time it is computed."""
    for name in vars(config):
        if name.endswith(("dropout", "_pdrop")):
            setattr(config, name, 0.0)
    return config


def build_empty(config: Any) -> nn.Module:
    """The causal LM of a configuration on the meta device: names and shapes without memory."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
