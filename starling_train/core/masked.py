"""Statistics over the entries where a mask is True; everything else may hold any value, NaN included."""

from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """Count, sum and sum of squares, float64 scalars: what ranks add up to get global statistics."""

    entries: Tensor
    total: Tensor
    squares: Tensor

    @property
    def mean(self) -> Tensor:
        return self.total / self.entries

    @property
    def variance(self) -> Tensor:
        """Population variance (divided by the count)."""
        return (self.squares / self.entries - self.mean**2).clamp(min=0.0)


def moments(x: Tensor, mask: Tensor) -> Moments:
    """Return the moments of x where mask (same shape) is True."""
    chosen = x[mask].double()
    return Moments(
        torch.tensor(float(chosen.numel()), dtype=torch.float64), chosen.sum().cpu(), (chosen**2).sum().cpu()
    )


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of x where mask is True: a scalar. Entries outside the mask get no gradient."""
    return torch.where(mask, x, 0.0).sum()


def weighted_sum(x: Tensor, weights: Tensor) -> Tensor:
    """Sum of x times weights, a mask counting as 1 and 0: a scalar. Entries of weight 0 get no gradient."""
    return masked_sum(x * weights, weights != 0)


def whiten(x: Tensor, mask: Tensor, of: Moments | None = None, *, shift: bool = True, eps: float = 1e-8) -> Tensor:
    """Return x with mean 0 and deviation 1 over the mask, 0 outside it.

    of: the moments to use, for statistics over more than this tensor (all ranks, a whole batch); those of x if None.
    shift=False divides by the deviation only and keeps the mean's sign.
    """
    of = of or moments(x, mask)
    mean = of.mean.to(x) if shift else 0.0
    scale = (of.variance + eps).rsqrt().to(x)
    return torch.where(mask, (x - mean) * scale, 0.0)


def explained_variance(unexplained: Moments, target: Moments) -> Tensor:
    """Return 1 - Var(target - predicted) / Var(target): 1 is perfect, 0 no better than a constant.

    unexplained: moments of target - predicted. NaN where the targets do not vary.
    """
    variance = target.variance
    return torch.where(variance > 0, 1.0 - unexplained.variance / variance, torch.nan)
