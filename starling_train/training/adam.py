"""AdamW's settings, its learning rates by step, and which state belongs to which parameters."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from starling_train.config.fields import UserError
from starling_train.config.sections import OptimConfig


def rates_of(config: OptimConfig, step: int, steps: int) -> tuple[float, float]:
    """Return the learning rates of policy and critic in one training step (counted from 1, of `steps`)."""
    warmup = config.warmup_steps or int(steps * config.warmup_percent / 100)
    factor = schedule(config.schedule, step, steps, warmup)
    critic = config.learning_rate if config.critic_learning_rate is None else config.critic_learning_rate
    return config.learning_rate * factor, critic * factor


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return the shape and type of each tensor, by name."""
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def fit_together(state: Iterable[str], parameters: Iterable[str], copied: Iterable[str]) -> bool:
    """Return whether `state` names `state_tensors` over these parameters, with a master for each of `copied`."""
    owners = {name.rpartition("/")[0] for name in state}
    return {f"{name}/master" for name in copied} <= set(state) and owners <= set(parameters)


def adam_options(config: OptimConfig) -> dict[str, Any]:
    """Return AdamW's options, without the rates."""
    return {"betas": tuple(config.betas), "eps": config.eps, "weight_decay": config.weight_decay}


def eight_bit_adam(on_gpu: bool) -> Any:
    """Return the class of 8-bit AdamW. Raises UserError, naming `optim.eight_bit`, where it cannot work."""
    if not on_gpu:
        raise UserError("optim.eight_bit: needs an NVIDIA GPU; leave it out on a CPU")
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise UserError("optim.eight_bit: bitsandbytes is not installed; pip install bitsandbytes") from None
    return AdamW8bit


def schedule(kind: str, step: int, steps: int, warmup: int) -> float:
    """Return the rate's factor in a step, from 1: linear rise over `warmup`, then linear or cosine to 0, or 1."""
    if step <= warmup:
        return step / (warmup + 1)
    progress = (step - 1 - warmup) / max(1, steps - warmup)
    if kind == "linear":
        return 1.0 - progress
    if kind == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    assert kind == "constant", kind
    return 1.0
