"""Means over a few seeds with intervals, and values at an equal level of something else. Plain Python numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, mean, stdev

# Student's t, 97.5 % quantile, by degrees of freedom from 1; beyond the table Cornish and Fisher's expansion is exact
# to four figures
T_975 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
)  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """A mean over `count` values, and half the width of its 95 % confidence interval; nan for less than two values."""

    mean: float
    half: float
    count: int

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    @property
    def verdict(self) -> str:
        """`more`, `less` or `alike`: whether the interval leaves out 0; `unknown` without an interval."""
        if math.isnan(self.half):
            return "unknown"
        return "more" if self.low > 0 else "less" if self.high < 0 else "alike"


def t_975(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t."""
    if degrees <= len(T_975):
        return T_975[degrees - 1]
    z = NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def interval(values: Sequence[float]) -> Interval:
    """Return the 95 % interval of the mean of values that are independent and about normal: t x deviation / sqrt(n)."""
    if not values:
        return Interval(math.nan, math.nan, 0)
    if len(values) == 1:
        return Interval(float(values[0]), math.nan, 1)
    half = t_975(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(mean(values), half, len(values))


def difference_of_shares(right_1: float, of_1: int, right_2: float, of_2: int) -> Interval:
    """Return the 95 % interval of the second share minus the first; its mean is the plain difference.

    Agresti and Caffo (2000): a right and a wrong one are added to each side, which keeps the interval honest for few
    cases and for shares near 0 or 1. The two are taken as independent: where the cases are the same, it is too wide.

    right_1, right_2: how many were right.
    of_1, of_2: of how many.
    """
    p_1, p_2 = (right_1 + 1) / (of_1 + 2), (right_2 + 1) / (of_2 + 2)
    half = 1.959964 * math.sqrt(p_1 * (1 - p_1) / (of_1 + 2) + p_2 * (1 - p_2) / (of_2 + 2))
    low, high = p_2 - p_1 - half, p_2 - p_1 + half
    plain = right_2 / of_2 - right_1 / of_1
    return Interval(plain, max(high - plain, plain - low), min(of_1, of_2))


def first_reached(levels: Sequence[float], others: Sequence[float], level: float) -> float | None:
    """Return the value of `others` where `levels`, over the same points, first reaches `level`; None if it never does.

    Between two points both are taken as straight lines.
    """
    for i, here in enumerate(levels):
        if here < level:
            continue
        if i == 0:
            return float(others[i])
        share = (level - levels[i - 1]) / (here - levels[i - 1])
        return others[i - 1] + share * (others[i] - others[i - 1])
    return None
