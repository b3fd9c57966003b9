"""LoRA adapters on selected matrices, by PEFT: W x becomes W x + (alpha / rank) B A x, and A and B train instead of W.

Source: Hu et al. 2021, 'LoRA: Low-Rank Adaptation of Large Language Models' (arXiv 2106.09685), section 4.1.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from starling_train.config.fields import UserError
from starling_train.config.sections import LoraConfig
from starling_train.files import adapter_files
from starling_train.models.sharing import Model, twin

NAME = "default"  # PEFT's name of the only adapter
FILES = (adapter_files.CONFIG, adapter_files.WEIGHTS)


def add(model: nn.Module, weights: Iterable[str], config: LoraConfig) -> None:
    """Hang an adapter onto each of the matrices; only the adapters train.

    weights: names of parameters, `model.layers.3.mlp.down_proj.weight`. B starts at zero, so the model computes what
    before; A is drawn from the global random generator. Raises UserError for a matrix that cannot have one.
    """
    from peft import inject_adapter_in_model

    weights = list(weights)
    try:
        inject_adapter_in_model(_peft_config(weights, config), model)
    except ValueError as error:
        raise UserError(f"freeze.adapter: {str(error).splitlines()[0][:200]}; select other matrices") from error
    names = {name.removesuffix(".weight") for name in weights}
    if without_one := sorted(names - {name for name, _ in adapted(model)}):
        raise UserError(f"freeze.adapter: PEFT has no adapter for {without_one[0]}; select other matrices")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def _peft_config(weights: Iterable[str], config: LoraConfig, base: str | None = None) -> Any:
    import peft

    make: Any = peft.LoraConfig  # whose types say that alpha is an int
    return make(
        base_model_name_or_path=base,
        task_type="CAUSAL_LM",
        target_modules=[name.removesuffix(".weight") for name in weights],
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
    )


def adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield (name, PEFT's layer) of every module with an adapter."""
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            yield name, module


def without(model: Model) -> Model:
    """Take the adapters off a model, in place, and return it: exactly the base model."""
    for name, layer in list(adapted(model)):
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer.base_layer)
    vars(model).pop("peft_config", None)
    return model


def low_rank(layer: Any) -> tuple[Tensor, Tensor] | None:
    """Return (A, scaled B), (rank, in) and (out, rank), of a layer's adapter; None for a layer without one."""
    if not hasattr(layer, "lora_A"):
        return None
    return layer.lora_A[NAME].weight, layer.scaling[NAME] * layer.lora_B[NAME].weight


@torch.no_grad()
def merged(model: Model, base: Model | None = None) -> Model:
    """Merge the adapters into a model that computes the same: W + scaled B A, added in float32, in W's type.

    The result shares every other tensor with `model`; with `base`, the unquantised model of a quantised one, `base` is
    changed and returned. Without any adapter the result is `model` itself.
    """
    layers = list(adapted(model))
    if not layers:
        return model
    plain = base if base is not None else without(twin(model))
    for name, layer in layers:
        target: Any = plain.get_submodule(name)
        target.weight = nn.Parameter(merged_weight(layer, target.weight), requires_grad=False)
    return plain


@torch.no_grad()
def merged_weight(layer: Any, weight: Tensor | None = None) -> Tensor:
    """Return W + scaled B A of a layer with an adapter, in W's type. weight: W; None: the layer's own."""
    weight = layer.base_layer.weight if weight is None else weight
    factors = low_rank(layer)
    assert factors is not None, layer
    down, up = (factor.float().to(weight.device) for factor in factors)
    added = up @ down
    if getattr(layer, "fan_in_fan_out", False):  # GPT-2's matrices are (in, out)
        added = added.T
    return (weight.float() + added).to(weight.dtype)


def write(
    directory: Path,
    trainable: dict[str, Tensor],
    prefix: str,
    weights: Iterable[str],
    config: LoraConfig,
    base: str,
    revision: str | None = None,
) -> tuple[str, ...]:
    """Write the adapters among a checkpoint's tensors as PEFT reads them; returns the names of the files.

    trainable: the checkpoint's tensors.
    prefix: of the policy's names in `trainable`.
    weights: the adapted matrices.
    base, revision: the base model's, for PEFT.
    """
    peft_config = _peft_config(weights, config, base)
    peft_config.inference_mode, peft_config.revision = True, revision
    peft_config.save_pretrained(directory)
    values = json.loads((directory / FILES[0]).read_text())
    values["target_modules"] = sorted(values["target_modules"])  # a set: in another order in every process
    (directory / FILES[0]).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    tensors = {
        f"base_model.model.{name.removeprefix(prefix).replace(f'.{NAME}.', '.')}": tensor.detach().contiguous()
        for name, tensor in trainable.items()
        if name.startswith(prefix) and ".lora_" in name
    }
    save_file(tensors, directory / FILES[1], metadata={"format": "pt"})
    return FILES
