"""Gradients of a step, added up micro-batch by micro-batch, with DeepSpeed and without."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor, nn

from starling_train.models.budget import Budget
from starling_train.run.runtime import Runtime
from starling_train.training.optimizer import Optimizer
from starling_train.training.zero import ZeroOptimizer

Item = TypeVar("Item")
Sums = TypeVar("Sums")
Cut = Callable[[int], Sequence[Sequence[Item]]]
LossOf = Callable[[nn.Module, Sequence[Item]], tuple[Tensor, Sums]]


def add_gradients(
    module: nn.Module,
    optimizer: Optimizer | ZeroOptimizer,
    cut: Cut,
    loss_of: LossOf,
    total: float,
    spare: Sequence[Item],
    budget: Budget,
    runtime: Runtime,
) -> list[Sums]:
    """Add the gradients of (sum of all losses) / total; returns what `loss_of` gave beside each loss.

    cut: micro-batches of this process's items, each of so many tokens at most. loss_of: the sum of a micro-batch's
    losses, and what metrics are made of. total: what the loss is a mean over, on all processes. When memory runs out,
    it begins again with half of the budget.

    Under DeepSpeed processes exchange gradients after every micro-batch, so all take as many: `spare` is a micro-batch
    for nothing but the exchange, whose loss counts zero times. When memory runs out there, the run stops.
    """
    if not isinstance(optimizer, ZeroOptimizer):
        return budget.attempt(
            lambda tokens: accumulate(module, cut(tokens), loss_of, total), undo=optimizer.drop_gradients
        )
    return budget.only_attempt(lambda tokens: _accumulate_zero(optimizer, cut(tokens), loss_of, total, spare, runtime))


def _accumulate_zero(
    optimizer: ZeroOptimizer,
    groups: Sequence[Sequence[Item]],
    loss_of: LossOf,
    total: float,
    spare: Sequence[Item],
    runtime: Runtime,
) -> list[Sums]:
    wanted = max(1, int(runtime.maximum([len(groups)])[0]))
    found = []
    for index in range(wanted):
        is_real = index < len(groups)
        loss, sums = loss_of(optimizer.engine, groups[index] if is_real else spare)
        optimizer.backward(loss / total if is_real else 0.0 * loss, is_last=index == wanted - 1)
        if is_real:
            found.append(sums)
    return found


def accumulate(module: nn.Module, groups: Sequence[Sequence[Item]], loss_of: LossOf, total: float) -> list[Sums]:
    """`add_gradients` of one process, without an optimizer."""
    found = []
    for group in groups:
        loss, sums = loss_of(module, group)
        (loss / total).backward()
        found.append(sums)
    return found
