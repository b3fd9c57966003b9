"""What a training loop needs of an optimizer, and which one a run gets."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from torch import Tensor, nn

from starling_train.config.fields import UserError
from starling_train.config.sections import ClusterConfig, OptimConfig
from starling_train.files.tensor_file import Tensors
from starling_train.models.actors import Groups
from starling_train.models.budget import Budget
from starling_train.run.runtime import Runtime
from starling_train.training import zero
from starling_train.training.local import LocalOptimizer

Result = TypeVar("Result")


class Optimizer(Protocol):
    """AdamW over what trains. `LocalOptimizer` keeps all of its state in this process, `ZeroOptimizer` a shard of it.

    module: what forward passes go through: the model, or DeepSpeed's wrapper around it. applied: updates so far.
    """

    module: nn.Module
    applied: int

    def set_rates(self, step: int, steps: int, train_policy: bool = True) -> float: ...
    def rounds(self, own: int) -> int: ...
    def backward(self, loss: Tensor, is_last: bool) -> None: ...
    def attempt(self, budget: Budget, phase: Callable[[int], Result]) -> Result: ...
    def step(self, is_finite: bool = True) -> float: ...
    def gathered(self) -> AbstractContextManager[None]: ...
    def trainable_tensors(self) -> Tensors: ...
    def state_tensors(self) -> Tensors: ...
    def fits(self, trainable: dict[str, Tensor], state: dict[str, Tensor]) -> bool: ...
    def load(self, trainable: dict[str, Tensor], state: dict[str, Tensor]) -> None: ...
    def saved_bytes(self) -> int: ...
    def describe(self) -> str: ...


def make_optimizer(
    module: nn.Module,
    groups: Groups,
    config: OptimConfig,
    cluster: ClusterConfig,
    runtime: Runtime,
) -> Optimizer:
    """Make the optimizer of `cluster.zero_stage`; at 0 every process has all of the state, and gradients are summed.

    groups: trainable parameters by name, of the policy and of the critic (or head), each with its own learning rate.
    Raises UserError without DeepSpeed, and for 8-bit moments in shards.
    """
    if cluster.zero_stage == 0 or runtime.world == 1:  # in one process the only shard is the whole
        return LocalOptimizer(module, groups, config, runtime, offloaded=cluster.offload == "optimizer")
    if config.eight_bit:
        raise UserError("optim.eight_bit: 8-bit moments cannot be sharded; use cluster.zero_stage=0")
    zero.check_installed()
    zero.remove_old_locks()
    return zero.ZeroOptimizer(module, groups, config, cluster, runtime)
