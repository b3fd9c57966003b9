"""From a model directory to a causal language model, and back."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from starling_train.config.fields import UserError
from starling_train.data.chat import Chat
from starling_train.files.whole import write_whole
from starling_train.models import quantisation, written
from starling_train.models.source import UNUSABLE, ModelSource, first_line
from starling_train.run.out_of_memory import is_out_of_memory
from starling_train.run.quiet import no_bars_of_loading


class Decoder(nn.Module):
    """What is read of a transformer below the output head; for annotations, no model is one by inheritance."""

    config: Any
    layers: nn.ModuleList
    norm: nn.Module
    embed_tokens: nn.Embedding
    get_input_embeddings: Callable[[], nn.Embedding]
    gradient_checkpointing_enable: Callable[[dict[str, Any]], None]


class CausalLM(nn.Module):
    """What is read of a causal language model of transformers; for annotations, as `Decoder`."""

    config: Any
    generation_config: Any
    base_model_prefix: str
    _supports_sdpa: bool
    device: torch.device
    dtype: torch.dtype
    get_decoder: Callable[[], Decoder]
    get_input_embeddings: Callable[[], nn.Embedding]
    get_output_embeddings: Callable[[], nn.Linear]
    gradient_checkpointing_enable: Callable[[dict[str, Any]], None]
    set_attn_implementation: Callable[[str], None]
    generate: Callable[..., Tensor]
    save_pretrained: Callable[[Path], None]


def recompute_backwards(model: Decoder | CausalLM) -> None:
    """Have each layer computed again in the backward pass, so that its activations need not be kept."""
    # its name in newer releases of transformers, where the former one warns
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})


def load_causal_lm(
    source: ModelSource,
    *,
    dtype: str,
    attention: str = "sdpa",
    device: str = "cpu",
    load_in: str | None = None,
) -> CausalLM:
    """Load the causal language model of a directory, dropout off, in the given dtype on the device.

    load_in: 8bit or 4bit (GPUs, bitsandbytes): quantise what lies in the decoder's layers. Reads safetensors, or
    `.bin` shards with weights-only. Raises UserError when weights are missing.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    no_bars_of_loading()
    config = without_dropout(source.policy_config)
    read: Any = AutoModelForCausalLM  # whose types do not know of output_loading_info
    try:
        model, report = read.from_pretrained(
            source.directory,
            config=config,
            attn_implementation=supported_attention(config, attention),
            **quantisation.loading_options(dtype, device, load_in),
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (*UNUSABLE, SafetensorError, pickle.UnpicklingError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"{source.key}: cannot load the model in {source.directory} ({first_line(error)}); download it again"
        ) from error
    # transformers fills what is missing with random numbers and a warning
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"{source.key}: {source.directory} lacks {len(missing)} tensors, {missing[0]} first; download it again"
        )
    return model if load_in else model.to(device)


def supported_attention(config: Any, attention: str) -> str:
    """Return `attention`, or eager for a model whose attention torch's kernel cannot compute (Gemma 2's soft caps)."""
    from transformers import AutoModelForCausalLM

    found: Any = AutoModelForCausalLM._model_mapping[type(config)]
    kinds = found if isinstance(found, tuple) else (found,)
    return "eager" if attention == "sdpa" and not all(kind._supports_sdpa for kind in kinds) else attention


def without_dropout(config: Any) -> Any:
    """Copy a configuration with every dropout at 0.

    In PPO a probability must be the same each time it is computed.
    """
    config = copy.deepcopy(config)
    for part in (config, config.get_text_config()):
        for name in vars(part):
            if name.endswith(("dropout", "_pdrop")):
                setattr(part, name, 0.0)
    return config


def build_empty(config: Any) -> CausalLM:
    """Build the causal LM of a configuration on the meta device: names and shapes without memory."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config))


def shapes_of(model_class: Any, config: Any) -> dict[str, torch.Size]:
    """Return the shape of every tensor of a configuration's model, by name. Raises UserError if it describes none."""
    try:
        with torch.device("meta"):
            return {
                name: tensor.shape
                for name, tensor in model_class.from_config(copy.deepcopy(config)).state_dict().items()
            }
    except UNUSABLE as error:
        raise UserError(
            f"{config.name_or_path}/config.json: no model can be made from it ({first_line(error)}); download it again"
        ) from error


def save_model(model: CausalLM, directory: Path, chat: Chat) -> Path:
    """Write a causal LM with its tokenizer in Hugging Face format (`written.write`), then rename into place.

    chat: the tokenizer and the template that the model was trained with.
    """
    return write_whole(directory, lambda partial: written.write(model, partial, chat))
