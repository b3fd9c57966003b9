"""AdamW over the trainable tensors of one process, with float32 master copies of those kept in a shorter type."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from starling_train.config.sections import OptimConfig
from starling_train.models.actors import Groups
from starling_train.models.budget import Budget
from starling_train.planning.memory import STEP_ELEMENTS as CHUNK
from starling_train.run.out_of_memory import FRAGMENTS, in_one_line
from starling_train.run.runtime import Runtime
from starling_train.training.adam import adam_options, eight_bit_adam, fit_together, rates_of, shapes_of

Result = TypeVar("Result")
NO_ROOM_TO_STEP = (
    "optim: out of memory in the optimizer's step ({first}); train fewer matrices, shard the state over several "
    "processes with cluster.zero_stage=2, or begin a run with optim.eight_bit=true; " + FRAGMENTS + "; a run that has "
    "checkpoints goes on from the last"
)


class LocalOptimizer:
    """AdamW with separate rates for policy and critic, gradient clipping, and skipping of non-finite gradients.

    All of its state is kept in this process; with several processes gradients are summed over them.
    groups: trainable parameters by name, of the policy and of the critic. Parameters in bfloat16 or float16 are updated
    through float32 master copies: at a learning rate of 2e-7 a bfloat16 weight would never move.
    See `training/optimizer.py` for what each method promises.
    """

    def __init__(self, module: nn.Module, groups: Groups, config: OptimConfig, runtime: Runtime | None = None):
        policy, self._critic = groups
        self.module, self._runtime = module, runtime or Runtime()
        self._parameters = policy | self._critic
        self._learning = self._parameters  # those that have gradients in this step
        self._masters = {
            name: p if p.dtype == torch.float32 else p.detach().float().requires_grad_(True)
            for name, p in self._parameters.items()
        }
        self._config, self.applied = config, 0
        adam_groups = [{"params": [self._masters[n] for n in names], "lr": 0.0} for names in groups]
        options = adam_options(config)
        if config.eight_bit:
            self._adam = eight_bit_adam(all(p.is_cuda for p in self._masters.values()))(adam_groups, **options)
        else:
            # torch's other ways make temporary copies of all tensors, or a loop over them
            self._adam = torch.optim.AdamW(adam_groups, fused=True, **options)

    def set_rates(self, step: int, steps: int, train_policy: bool = True) -> float:
        """Set the rates for one training step (counted from 1, of `steps`); returns the policy's rate.

        train_policy=False: the policy will have no gradients in this step.
        """
        rates = rates_of(self._config, step, steps)
        for group, rate in zip(self._adam.param_groups, rates, strict=True):
            group["lr"] = rate
        self._learning = self._parameters if train_policy else self._critic
        return rates[0]

    def rounds(self, own: int) -> int:
        """Return this process's own number of micro-batches: nothing is exchanged before `step`."""
        return own

    def backward(self, loss: Tensor, is_last: bool) -> None:
        """Add the gradients of a loss."""
        loss.backward()

    def attempt(self, budget: Budget, phase: Callable[[int], Result]) -> Result:
        """Run `phase(amount)`; when memory runs out, forget its gradients and repeat it with half."""
        return budget.halving(phase, undo=self.drop_gradients)

    def step(self, is_finite: bool = True) -> float:
        """Sum over processes, clip, apply (if finite), clear the gradients. Returns their L2 norm before clipping.

        is_finite=False: the loss was not, on any process; nothing is applied and the norm is nan.
        """
        if not is_finite:
            self.drop_gradients()
            return math.nan
        with in_one_line(lambda first: NO_ROOM_TO_STEP.format(first=first)):
            if self._runtime.world > 1:
                self._sum_over_processes()
            norm = self._norm()
            if math.isfinite(norm):
                self.applied += 1  # now: what is interrupted from here on belongs to no step
                self._apply(norm)
        self.drop_gradients()
        return float(norm)

    def _sum_over_processes(self) -> None:
        """Give each master the sum of all processes' gradients, in float32: here all of them exist at once."""
        for name, parameter in self._parameters.items():
            if (master := self._masters[name]) is not parameter:
                master.grad = None if parameter.grad is None else parameter.grad.float()
                parameter.grad = None
        self._runtime.sum_tensors([self._gradient(name) for name in self._learning])

    def _norm(self) -> Tensor:
        """Return the L2 norm of all gradients, each as float32 in its turn; 0 without any."""
        gradients = (p.grad if p.grad is not None else self._masters[n].grad for n, p in self._parameters.items())
        norms = [torch.linalg.vector_norm(gradient.float()) for gradient in gradients if gradient is not None]
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.tensor(0.0)

    def _apply(self, norm: Tensor) -> None:
        """Clip and update, some tensors at a time: gradients in float32 exist only for those, and go with them."""
        gradients = {}
        for name, parameter in self._parameters.items():
            master = self._masters[name]
            gradients[name] = master.grad if parameter.grad is None else parameter.grad
            master.grad = parameter.grad = None  # Adam passes over what has none
        for names in self._chunks():
            masters = [self._masters[name] for name in names]
            for name, master in zip(names, masters, strict=True):
                gradient = gradients.pop(name)
                master.grad = None if gradient is None else gradient.float()
            del gradient
            nn.utils.clip_grads_with_norm_(masters, self._config.max_gradient_norm, norm)
            self._adam.step()
            self._copy_back(names)
            for master in masters:
                master.grad = None

    def _chunks(self) -> Iterator[list[str]]:
        """Yield names of neighbours of at most CHUNK elements together, or of single tensors."""
        names: list[str] = []
        elements = 0
        for name, parameter in self._parameters.items():
            if names and elements + parameter.numel() > CHUNK:
                yield names
                names, elements = [], 0
            names.append(name)
            elements += parameter.numel()
        if names:
            yield names

    def _gradient(self, name: str) -> Tensor:
        """Return a master's gradient; zero where this process had no sequence of the mini-batch."""
        master = self._masters[name]
        if master.grad is None:
            master.grad = torch.zeros_like(master)
        return master.grad

    def drop_gradients(self) -> None:
        """Forget gradients that were added up and not yet applied."""
        for parameter in [*self._parameters.values(), *self._masters.values()]:
            parameter.grad = None

    @torch.no_grad()
    def _copy_back(self, names: list[str]) -> None:
        for name in names:
            if self._masters[name] is not self._parameters[name]:
                self._parameters[name].copy_(self._masters[name])

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Do nothing: every process has all weights, always."""
        yield

    def trainable_tensors(self) -> dict[str, Tensor]:
        """Return the parameters that a checkpoint holds."""
        return {name: parameter.detach() for name, parameter in self._parameters.items()}

    def describe(self) -> str:
        """Describe where the state lies, and its size: `0.12 GB (whole)`."""
        return f"{self._state_bytes() / 1e9:.3g} GB (whole)"

    def state_tensors(self) -> dict[str, Tensor]:
        """Return everything a resume needs, as named tensors; parameters that are their own masters are left out."""
        tensors = {f"{n}/master": m.detach() for n, m in self._masters.items() if m is not self._parameters[n]}
        for name, master in self._masters.items():
            for key, value in self._adam.state.get(master, {}).items():
                tensors[f"{name}/{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
        return tensors

    def fits(self, trainable: dict[str, Tensor], state: dict[str, Tensor]) -> bool:
        """Return whether these are `trainable_tensors` and `state_tensors` of an optimizer over the same parameters."""
        copied = [name for name, master in self._masters.items() if master is not self._parameters[name]]
        return shapes_of(trainable) == shapes_of(self._parameters) and fit_together(state, self._parameters, copied)

    def saved_bytes(self) -> int:
        """Count the bytes of a checkpoint, once every parameter has been updated."""
        return sum(p.numel() * p.element_size() for p in self._parameters.values()) + self._state_bytes()

    def _state_bytes(self) -> int:
        moments = 2 if self._config.eight_bit else 8
        return sum(
            master.numel() * (moments + (0 if master is self._parameters[name] else 4))
            for name, master in self._masters.items()
        )

    @torch.no_grad()
    def load(self, trainable: dict[str, Tensor], state: dict[str, Tensor]) -> None:
        """Undo `trainable_tensors` and `state_tensors`."""
        for name, parameter in self._parameters.items():
            parameter.copy_(trainable[name])
        for name, master in self._masters.items():
            if master is not self._parameters[name]:
                master.copy_(state[f"{name}/master"])
            prefix = f"{name}/"
            own = {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
            own.pop("master", None)
            if own:
                self._adam.state[master] = {key: self._restored(key, t, master) for key, t in own.items()}

    def _restored(self, key: str, tensor: Tensor, master: Tensor) -> Tensor | int:
        if key == "step" and self._config.eight_bit:  # bitsandbytes counts steps in an int
            return int(tensor)
        return tensor.clone().to(master.device)
