"""Copies of a model that share every frozen tensor: each exists once in memory, however many models use it."""

import copy
from typing import Any, TypeVar

from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def twin(model: Model) -> Model:
    """Copy a module tree: every frozen parameter of `model` is shared, every trainable one copied.

    The copies keep requires_grad; buffers are copied. Outputs are bit-identical to those of a full copy, for any
    selection of trainable parameters.
    """
    shared: dict[int, Any] = {id(p): p for p in model.parameters() if not p.requires_grad}
    for module in model.modules():
        # bitsandbytes moves an 8-bit matrix's scales from the parameter into its module's state in the first forward
        if hasattr(module, "init_8bit_state"):
            shared[id(module.state)] = module.state
    return copy.deepcopy(model, memo=shared)


def freeze_all(model: Model) -> Model:
    """Make no parameter of the model trainable; returns the model."""
    return model.requires_grad_(False)


def unique_tensors(*models: nn.Module) -> list[Tensor]:
    """List the parameters and buffers of the models, each storage once, in order of first appearance."""
    seen: dict[int, Tensor] = {}
    for model in models:
        for tensor in [*model.parameters(), *model.buffers()]:
            seen.setdefault(tensor.untyped_storage().data_ptr(), tensor)
    return list(seen.values())
