"""AdamW over the trainable tensors, float32 master copies where they are kept in a shorter type, and the schedule."""

import math

import torch
from torch import Tensor, nn

from starling_train.config import OptimConfig


class Optimizer:
    """AdamW with separate rates for policy and critic, gradient clipping, and skipping of non-finite gradients.

    policy, critic: trainable parameters by name. Parameters in bfloat16 or float16 are updated through float32
    master copies: at a learning rate of 2e-7 a bfloat16 weight would never move.
    """

    def __init__(self, policy: dict[str, nn.Parameter], critic: dict[str, nn.Parameter], config: OptimConfig):
        self._parameters = policy | critic
        self._masters = {
            name: p if p.dtype == torch.float32 else p.detach().float().requires_grad_(True)
            for name, p in self._parameters.items()
        }
        self._config = config
        critic_rate = config.critic_learning_rate
        self._rates = [config.learning_rate, config.learning_rate if critic_rate is None else critic_rate]
        self._adam = torch.optim.AdamW(
            [{"params": [self._masters[n] for n in names], "lr": 0.0} for names in (policy, critic)],
            betas=tuple(config.betas),
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,  # torch's other ways make temporary copies of all tensors, or a loop over them
        )

    def set_step(self, step: int, steps: int) -> float:
        """Set the rates for one training step (counted from 1, of `steps`); returns the policy's rate."""
        factor = schedule(self._config.schedule, step, steps, self._config.warmup_steps)
        for group, rate in zip(self._adam.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        return self._rates[0] * factor

    def step(self) -> float:
        """Clip, apply (if finite) and clear the gradients. Returns their L2 norm before clipping."""
        for name, parameter in self._parameters.items():
            master = self._masters[name]
            if master is not parameter:
                master.grad = None if parameter.grad is None else parameter.grad.float()
        norm = float(nn.utils.clip_grad_norm_(self._masters.values(), self._config.max_gradient_norm))
        if self.is_finite(norm):
            self._adam.step()
            self._copy_back()
        for parameter in [*self._parameters.values(), *self._masters.values()]:
            parameter.grad = None
        return norm

    @staticmethod
    def is_finite(norm: float) -> bool:
        return math.isfinite(norm)

    @torch.no_grad()
    def _copy_back(self) -> None:
        for name, parameter in self._parameters.items():
            if self._masters[name] is not parameter:
                parameter.copy_(self._masters[name])

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything a resume needs, as named tensors; parameters that are their own masters are not among them."""
        tensors = {f"{n}/master": m.detach() for n, m in self._masters.items() if m is not self._parameters[n]}
        for name, master in self._masters.items():
            for key, value in self._adam.state.get(master, {}).items():
                tensors[f"{name}/{key}"] = value
        return tensors

    @torch.no_grad()
    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Undo `state_tensors`. The parameters themselves must have been loaded already."""
        for name, master in self._masters.items():
            if master is not self._parameters[name]:
                master.copy_(tensors[f"{name}/master"])
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}/{key}" in tensors]
            if keys:
                self._adam.state[master] = {
                    # AdamW keeps its step count on the CPU
                    key: tensors[f"{name}/{key}"].clone().to("cpu" if key == "step" else master.device)
                    for key in keys
                }


def schedule(kind: str, step: int, steps: int, warmup: int) -> float:
    """Factor of the learning rate in a step, from 1: linear rise over `warmup`, then linear or cosine to 0, or 1."""
    if step <= warmup:
        return step / (warmup + 1)
    progress = (step - 1 - warmup) / max(1, steps - warmup)
    if kind == "linear":
        return 1.0 - progress
    if kind == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    assert kind == "constant", kind
    return 1.0
