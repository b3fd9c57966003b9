"""The training loop of both toy models: AdamW, warm-up and cosine, batches of similar lengths."""

import math
import random
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn


def batches(lengths: Sequence[int], size: int, seed: str) -> Iterator[list[int]]:
    """Yield indices in batches of `size`, endlessly: every pass shuffled, with similar lengths in each batch."""
    rng = random.Random(seed)
    while True:
        order = list(range(len(lengths)))
        rng.shuffle(order)
        span = size * 16
        pools = [sorted(order[i : i + span], key=lengths.__getitem__) for i in range(0, len(order), span)]
        cut = [pool[i : i + size] for pool in pools for i in range(0, len(pool) - size + 1, size)]
        rng.shuffle(cut)
        yield from cut


def train(
    model: nn.Module, loss_of_batch: Callable[[int], Tensor], steps: int, learning_rate: float, weight_decay: float
) -> list[float]:
    """Minimise a loss with AdamW; return the losses.

    model: trained in place.
    loss_of_batch: the loss of a step.
    steps: how many.
    learning_rate: at its peak.
    weight_decay: of matrices.
    """
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), foreach=True)
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * schedule(step, steps)
        loss = loss_of_batch(step)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def schedule(step: int, steps: int) -> float:
    """Return the share of the peak learning rate: up over 5 % of the steps, then a cosine down to 5 %."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))
