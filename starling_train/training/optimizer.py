"""AdamW over the trainable tensors, float32 master copies where they are kept in a shorter type, and the schedule."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from starling_train.config.fields import UserError
from starling_train.config.sections import OptimConfig


class Optimizer:
    """AdamW with separate rates for policy and critic, gradient clipping, and skipping of non-finite gradients.

    policy, critic: trainable parameters by name. Parameters in bfloat16 or float16 are updated through float32
    master copies: at a learning rate of 2e-7 a bfloat16 weight would never move. `applied` counts updates.
    """

    engine = None  # see ZeroOptimizer

    def __init__(
        self,
        policy: dict[str, nn.Parameter],
        critic: dict[str, nn.Parameter],
        config: OptimConfig,
        sum_over_processes: Callable[[Sequence[Tensor]], None] | None = None,
    ):
        self._parameters = policy | critic
        self._sum, self._learning = sum_over_processes, self._parameters
        self._critic = critic
        self._masters = {
            name: p if p.dtype == torch.float32 else p.detach().float().requires_grad_(True)
            for name, p in self._parameters.items()
        }
        self._config, self.applied = config, 0
        groups = [{"params": [self._masters[n] for n in names], "lr": 0.0} for names in (policy, critic)]
        options = adam_options(config)
        if config.eight_bit:
            self._adam = _eight_bit_adam(all(p.is_cuda for p in self._masters.values()))(groups, **options)
        else:
            # torch's other ways make temporary copies of all tensors, or a loop over them
            self._adam = torch.optim.AdamW(groups, fused=True, **options)

    def set_step(self, step: int, steps: int, train_policy: bool = True) -> float:
        """Set the rates for one training step (counted from 1, of `steps`); returns the policy's rate.

        train_policy=False: the policy will have no gradients in this step.
        """
        rates = rates_of(self._config, step, steps)
        for group, rate in zip(self._adam.param_groups, rates, strict=True):
            group["lr"] = rate
        self._learning = self._parameters if train_policy else self._critic
        return rates[0]

    def step(self) -> float:
        """Sum over processes, clip, apply (if finite), clear the gradients. Returns their L2 norm before clipping."""
        for name, parameter in self._parameters.items():
            master = self._masters[name]
            if master is not parameter:
                master.grad = None if parameter.grad is None else parameter.grad.float()
                parameter.grad = None
        if self._sum is not None:
            self._sum([self._gradient(name) for name in self._learning])
        norm = float(nn.utils.clip_grad_norm_(self._masters.values(), self._config.max_gradient_norm))
        if self.is_finite(norm):
            self._adam.step()
            self._copy_back()
            self.applied += 1
        self.drop_gradients()
        return norm

    def _gradient(self, name: str) -> Tensor:
        """A master's gradient; zero where this process had no sequence of the mini-batch."""
        master = self._masters[name]
        if master.grad is None:
            master.grad = torch.zeros_like(master)
        return master.grad

    def skip(self) -> float:
        """Instead of `step`, where the loss was not finite: no update. Returns a norm that says so."""
        self.drop_gradients()
        return math.nan

    def drop_gradients(self) -> None:
        """Forget gradients that were added up and not yet applied."""
        for parameter in [*self._parameters.values(), *self._masters.values()]:
            parameter.grad = None

    @staticmethod
    def is_finite(norm: float) -> bool:
        return math.isfinite(norm)

    @torch.no_grad()
    def _copy_back(self) -> None:
        for name, parameter in self._parameters.items():
            if self._masters[name] is not parameter:
                parameter.copy_(self._masters[name])

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Every process has all weights, always."""
        yield

    def trainable_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of the parameters."""
        return {name: parameter.detach() for name, parameter in self._parameters.items()}

    def shapes(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Shape and type of each of `trainable_tensors`."""
        return {name: (parameter.shape, parameter.dtype) for name, parameter in self._parameters.items()}

    def bytes_here(self) -> int:
        """Bytes of moments and float32 copies that this process holds."""
        copies = [m for name, m in self._masters.items() if m is not self._parameters[name]]
        states = [t for state in self._adam.state.values() for t in state.values() if isinstance(t, Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in [*copies, *states])

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything a resume needs, as named tensors; parameters that are their own masters are not among them."""
        tensors = {f"{n}/master": m.detach() for n, m in self._masters.items() if m is not self._parameters[n]}
        for name, master in self._masters.items():
            for key, value in self._adam.state.get(master, {}).items():
                tensors[f"{name}/{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
        return tensors

    def fits(self, tensors: dict[str, Tensor]) -> bool:
        """Whether these are `state_tensors` of an optimizer over the same parameters."""
        copied = [name for name, master in self._masters.items() if master is not self._parameters[name]]
        return fit_together(tensors, self._parameters, copied)

    def state_bytes(self) -> int:
        """Bytes of `state_tensors` once every parameter has been updated."""
        moments = 2 if self._config.eight_bit else 8
        return sum(
            master.numel() * (moments + (0 if master is self._parameters[name] else 4))
            for name, master in self._masters.items()
        )

    @torch.no_grad()
    def load(self, trainable: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
        """Undo `trainable_tensors` and `state_tensors`."""
        for name, parameter in self._parameters.items():
            parameter.copy_(trainable[name])
        for name, master in self._masters.items():
            if master is not self._parameters[name]:
                master.copy_(tensors[f"{name}/master"])
            prefix = f"{name}/"
            state = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
            state.pop("master", None)
            if state:
                self._adam.state[master] = {key: self._restored(key, t, master) for key, t in state.items()}

    def _restored(self, key: str, tensor: Tensor, master: Tensor) -> Tensor | int:
        if key == "step" and self._config.eight_bit:  # bitsandbytes counts steps in an int
            return int(tensor)
        return tensor.clone().to(master.device)


def rates_of(config: OptimConfig, step: int, steps: int) -> tuple[float, float]:
    """Learning rates of policy and critic in one training step (counted from 1, of `steps`)."""
    warmup = config.warmup_steps or int(steps * config.warmup_percent / 100)
    factor = schedule(config.schedule, step, steps, warmup)
    critic = config.learning_rate if config.critic_learning_rate is None else config.critic_learning_rate
    return config.learning_rate * factor, critic * factor


def fit_together(tensors: Iterable[str], parameters: Iterable[str], copied: Iterable[str]) -> bool:
    """Whether names are those of `state_tensors` over these parameters, with a master for each of `copied`."""
    of = {name.rpartition("/")[0] for name in tensors}
    return {f"{name}/master" for name in copied} <= set(tensors) and of <= set(parameters)


def adam_options(config: OptimConfig) -> dict[str, Any]:
    """AdamW's, without the rates."""
    return {"betas": tuple(config.betas), "eps": config.eps, "weight_decay": config.weight_decay}


def _eight_bit_adam(on_gpu: bool) -> Any:
    """The class. Raises UserError, naming `optim.eight_bit`, where it cannot work."""
    if not on_gpu:
        raise UserError("optim.eight_bit: needs an NVIDIA GPU; leave it out on a CPU")
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise UserError("optim.eight_bit: bitsandbytes is not installed; pip install bitsandbytes") from None
    return AdamW8bit


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
