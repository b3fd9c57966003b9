"""From a directory or hub id to a policy: config, tokenizer, weights."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from starling_train.config.fields import UserError, local_path
from starling_train.files.whole import write_whole
from starling_train.models import quantisation

# What transformers raises, at one place or another, for files that are damaged or of another model.
UNUSABLE = (
    OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, ImportError, EOFError,
)  # fmt: skip


def resolve(
    path: str, key: str, revision: str | None = None, *, weights: bool = True, needs_config: bool = True
) -> Path:
    """The local directory of a model: `path` itself, or the snapshot of a hub id (downloaded if it must be).

    key: the configuration key, for the message. weights=False fetches configuration and tokenizer only.
    Raises UserError if there is no such directory and the hub does not give it either.
    """
    local = local_path(path, key)
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
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except (*UNUSABLE, StrictDataclassError) as error:
        raise UserError(
            f"{key}: {directory}/config.json cannot be used ({first_line(error)}); download it again"
        ) from error
    if config.model_type not in ("mistral", "llama"):
        raise UserError(f"{key}: model type '{config.model_type}' is not supported; use a Mistral or Llama model")
    return config


def load_tokenizer(directory: Path, key: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exceptions for what it cannot read
        raise UserError(
            f"{key}: no usable tokenizer in {directory} ({first_line(error)}); download its tokenizer files again"
        ) from error


def load_causal_lm(
    directory: Path,
    key: str,
    *,
    dtype: str,
    attention: str = "sdpa",
    device: str = "cpu",
    load_in: str | None = None,
) -> nn.Module:
    """The causal language model of a directory, dropout off, in the given dtype on the device.

    load_in: 8bit or 4bit (GPUs, bitsandbytes): quantise what lies in the decoder's layers. Reads safetensors, or
    `.bin` shards with weights-only. Raises UserError when weights are missing.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    config = without_dropout(load_config(directory, key))
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            attn_implementation=attention,
            **quantisation.loading_options(dtype, device, load_in),
            trust_remote_code=False,
            output_loading_info=True,
        )
    except torch.OutOfMemoryError:
        raise
    except (*UNUSABLE, SafetensorError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{key}: cannot load the model in {directory} ({first_line(error)}); download it again"
        ) from error
    # transformers fills what is missing with random numbers and a warning
    if missing := sorted(found["missing_keys"]):
        raise UserError(f"{key}: {directory} lacks {len(missing)} tensors, {missing[0]} first; download it again")
    return model if load_in else model.to(device)


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


def shapes_of(model_class: Any, config: Any) -> dict[str, torch.Size]:
    """Shape of every tensor of a configuration's model, by name. Raises UserError if no model can be made of it."""
    try:
        with torch.device("meta"):
            return {name: tensor.shape for name, tensor in model_class.from_config(config).state_dict().items()}
    except UNUSABLE as error:
        raise UserError(
            f"{config.name_or_path}/config.json: no model can be made of it ({first_line(error)}); download it again"
        ) from error


def first_line(error: Exception) -> str:
    """The error's first line, with the second where the first only announces it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{lines[0]} {lines[1].strip()}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]


def save_model(model: nn.Module, directory: Path, save_tokenizer: Callable[[Path], None]) -> Path:
    """Write a causal LM with its tokenizer in Hugging Face format, safetensors, then rename into place.

    save_tokenizer: writes the tokenizer, chat template included, into a given directory.
    """

    def write(partial: Path) -> None:
        model.save_pretrained(partial)
        save_tokenizer(partial)

    return write_whole(directory, write)
