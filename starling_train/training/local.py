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
from starling_train.training.staging import Staging

Result = TypeVar("Result")
NO_ROOM_TO_STEP = (
    "optim: out of memory in the optimizer's step ({first}); train fewer matrices, shard the state over several "
    "processes with cluster.zero_stage=2, {other}; " + FRAGMENTS + "; a run that has checkpoints goes on from the last"
)
OTHERS = {  # where the state is in host memory: what else there is
    False: "keep it in host memory with cluster.offload=optimizer, or begin a run with optim.eight_bit=true",
    True: "or use a node with more host memory, which holds it with cluster.offload=optimizer",
}


class LocalOptimizer:
    """AdamW with separate rates for policy and critic, gradient clipping, and skipping of non-finite gradients.

    All of its state is kept in this process; with several processes gradients are summed over them.
    groups: trainable parameters by name, of the policy and of the critic. Parameters in bfloat16 or float16 are updated
    through float32 master copies: at a learning rate of 2e-7 a bfloat16 weight would never move.
    offloaded: moments and float32 copies, of float32 parameters too, are in host memory, and torch's AdamW updates them
    there: the same operations on the same numbers, in the order of a CPU. What is saved is the same.
    See `training/optimizer.py` for what each method promises.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: Groups,
        config: OptimConfig,
        runtime: Runtime | None = None,
        *,
        offloaded: bool = False,
    ):
        policy, self._critic = groups
        self.module, self._runtime = module, runtime or Runtime()
        self._parameters = policy | self._critic
        self._learning = self._parameters  # those that have gradients in this step
        self._staging = Staging(self._runtime.device) if offloaded else None
        self._masters = {name: self._master_of(p) for name, p in self._parameters.items()}
        self._config, self.applied = config, 0
        adam_groups = [{"params": [self._masters[n] for n in names], "lr": 0.0} for names in groups]
        options = adam_options(config)
        if config.eight_bit:
            self._adam = eight_bit_adam(all(p.is_cuda for p in self._masters.values()))(adam_groups, **options)
        else:
            # torch's other ways make temporary copies of all tensors, or a loop over them
            self._adam = torch.optim.AdamW(adam_groups, fused=True, **options)

    def _master_of(self, parameter: Tensor) -> Tensor:
        """Return what is updated in the parameter's place: a copy in float32, or itself."""
        if self._staging:
            return parameter.detach().to("cpu", torch.float32, copy=True).requires_grad_(True)
        return parameter if parameter.dtype == torch.float32 else parameter.detach().float().requires_grad_(True)

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
        other = OTHERS[self._staging is not None]
        with in_one_line(lambda first: NO_ROOM_TO_STEP.format(first=first, other=other)):
            gradients = self._taken()
            if self._runtime.world > 1:
                self._sum_over_processes(gradients)
            norm = self._norm(gradients)
            if math.isfinite(norm):
                self.applied += 1  # now: what is interrupted from here on belongs to no step
                self._apply(gradients, norm)
        self.drop_gradients()
        return float(norm)

    def _taken(self) -> dict[str, Tensor]:
        """Take the gradients away from the parameters that have one: by name, in their own types."""
        gradients = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        for parameter in self._parameters.values():
            parameter.grad = None
        return gradients

    def _sum_over_processes(self, gradients: dict[str, Tensor]) -> None:
        """Put in their places the sums of all processes' gradients, in float32: here all of them exist at once.

        Zero stands for one where this process had no sequence of the mini-batch.
        """
        for name in gradients:
            gradients[name] = gradients[name].float()
        for name, parameter in self._learning.items():
            if name not in gradients:
                gradients[name] = torch.zeros_like(parameter, dtype=torch.float32)
        self._runtime.sum_tensors([gradients[name] for name in self._learning])

    def _norm(self, gradients: dict[str, Tensor]) -> Tensor:
        """Return the L2 norm of all gradients, each as float32 in its turn; 0 without any."""
        ordered = (gradients[name] for name in self._parameters if name in gradients)
        norms = [torch.linalg.vector_norm(gradient.float()) for gradient in ordered]
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.tensor(0.0)

    def _apply(self, gradients: dict[str, Tensor], norm: Tensor) -> None:
        """Clip and update, some tensors at a time: gradients in float32 exist only for those, and go with them."""
        norm = norm.cpu() if self._staging else norm
        for names in self._chunks():
            self._hand_over(names, gradients)
            masters = [self._masters[name] for name in names]
            nn.utils.clip_grads_with_norm_(masters, self._config.max_gradient_norm, norm)
            self._adam.step()
            self._copy_back(names)
            for master in masters:
                master.grad = None

    def _hand_over(self, names: list[str], gradients: dict[str, Tensor]) -> None:
        """Move the gradients of these to their masters, in float32; Adam passes over what has none."""
        names = [name for name in names if name in gradients]
        if self._staging:
            for name, gradient in self._staging.fetch({name: gradients.pop(name) for name in names}).items():
                self._masters[name].grad = gradient.float()
            return
        for name in names:
            self._masters[name].grad = gradients.pop(name).float()

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

    def drop_gradients(self) -> None:
        """Forget gradients that were added up and not yet applied."""
        for parameter in [*self._parameters.values(), *self._masters.values()]:
            parameter.grad = None

    @torch.no_grad()
    def _copy_back(self, names: list[str]) -> None:
        copied = {name: self._parameters[name] for name in names if self._masters[name] is not self._parameters[name]}
        if self._staging:
            self._staging.send(self._masters, copied)
            return
        for name, parameter in copied.items():
            parameter.copy_(self._masters[name])

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Do nothing: every process has all weights, always."""
        yield

    def trainable_tensors(self) -> dict[str, Tensor]:
        """Return the parameters that a checkpoint holds."""
        return {name: parameter.detach() for name, parameter in self._parameters.items()}

    def describe(self) -> str:
        """Describe where the state lies, and its size: `0.12 GB (whole)`."""
        return f"{self._state_bytes() / 1e9:.3g} GB ({'whole, in host memory' if self._staging else 'whole'})"

    def state_tensors(self) -> dict[str, Tensor]:
        """Return everything a resume needs, as named tensors; masters of float32 parameters are these themselves."""
        tensors = {f"{name}/master": self._masters[name].detach() for name in self._rounded()}
        for name, master in self._masters.items():
            for key, value in self._adam.state.get(master, {}).items():
                tensors[f"{name}/{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
        return tensors

    def fits(self, trainable: dict[str, Tensor], state: dict[str, Tensor]) -> bool:
        """Return whether these are `trainable_tensors` and `state_tensors` of an optimizer over the same parameters."""
        return shapes_of(trainable) == shapes_of(self._parameters) and fit_together(
            state, self._parameters, self._rounded()
        )

    def _rounded(self) -> list[str]:
        """Name the parameters that are in a shorter type than their masters."""
        return [name for name, parameter in self._parameters.items() if parameter.dtype != torch.float32]

    def saved_bytes(self) -> int:
        """Count the bytes of a checkpoint, once every parameter has been updated."""
        parameters = sum(p.numel() * p.element_size() for p in self._parameters.values())
        return parameters + self._bytes_with(self._rounded())

    def _state_bytes(self) -> int:
        """Count the bytes that are held beside the parameters."""
        return self._bytes_with(
            [name for name, master in self._masters.items() if master is not self._parameters[name]]
        )

    def _bytes_with(self, copied: list[str]) -> int:
        """Count the bytes of all moments, and of the masters of these parameters."""
        moments = 2 if self._config.eight_bit else 8
        masters = sum(4 * self._masters[name].numel() for name in copied)
        return moments * sum(master.numel() for master in self._masters.values()) + masters

    @torch.no_grad()
    def load(self, trainable: dict[str, Tensor], state: dict[str, Tensor]) -> None:
        """Undo `trainable_tensors` and `state_tensors`."""
        for name, parameter in self._parameters.items():
            parameter.copy_(trainable[name])
        for name, master in self._masters.items():
            if master is not self._parameters[name]:
                master.copy_(state.get(f"{name}/master", trainable[name]))
            prefix = f"{name}/"
            own = {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
            own.pop("master", None)
            self._adam.state.pop(master, None)  # nothing is left of what came after a checkpoint without moments
            if own:
                self._adam.state[master] = {key: self._restored(key, t, master) for key, t in own.items()}

    def _restored(self, key: str, tensor: Tensor, master: Tensor) -> Tensor | int:
        if key == "step" and self._config.eight_bit:  # bitsandbytes counts steps in an int
            return int(tensor)
        return tensor.clone().to(master.device)
