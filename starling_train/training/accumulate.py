"""Gradients of a mini-batch, added up micro-batch by micro-batch, in one process or in many."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from torch import Tensor, nn

from starling_train.models.budget import Budget
from starling_train.training.optimizer import Optimizer

Batch = TypeVar("Batch")
Sums = TypeVar("Sums")
Losses = Callable[[nn.Module, Batch], Iterable[tuple[Tensor, Sums]]]


def accumulate(
    optimizer: Optimizer,
    cut: Callable[[int], Iterable[Batch]],
    losses: Losses[Batch, Sums],
    spare: Batch,
    budget: Budget,
) -> list[Sums]:
    """Back-propagate every loss of the mini-batch; returns the sums that metrics are made of.

    cut: splits this process's items into micro-batches of at most so many tokens.
    losses: yields each loss of a micro-batch, through the module given, with its detached sums. A loss is
        back-propagated, and its activations freed, before the next one is computed. It is already divided by the
        count that the mini-batch's mean is taken over.
    spare: what a process computes, with weight zero, while others still have micro-batches left.
    budget: when memory runs out, everything is repeated with half the tokens, where the optimizer can.
    """

    def attempt(tokens: int) -> list[Sums]:
        batches = list(cut(tokens))
        rounds = optimizer.rounds(len(batches))
        collected: list[Sums] = []
        for index in range(rounds):
            is_spare = index >= len(batches)
            for loss, sums in losses(optimizer.module, spare if is_spare else batches[index]):
                optimizer.backward(0.0 * loss if is_spare else loss, is_last=index == rounds - 1)
                del loss  # its graph holds activations until nobody has it: not into the next forward pass
                if not is_spare:
                    collected.append(sums)
        return collected

    return optimizer.attempt(budget, attempt)
