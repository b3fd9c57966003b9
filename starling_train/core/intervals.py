"""Means over a few seeds with intervals, and values at an equal level of something else. Plain Python numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist, fmean, mean, variance

# Degrees of freedom from which on Cornish and Fisher's expansion is exact to four figures
MANY = 21


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


@dataclass(frozen=True)
class Estimate:
    """A mean whose error has two sources: few seeds, and few cases.

    mean: over `seeds` seeds.
    by_seeds: variance of the mean that is due to the seeds; nan for less than two.
    cases: how many cases each seed was measured on, 0 where the value is not a share of cases.
    by_cases: variance of the mean that is due to the choice of cases.
    """

    mean: float
    seeds: int
    by_seeds: float
    cases: int = 0
    by_cases: float = 0.0

    def half(self, alpha: float = 0.05) -> float:
        """Return half the width of the interval that misses the true mean with probability `alpha` at most.

        Each source has its own Student's t, and the half-widths add up as squares (Banerjee 1960), which keeps the
        promise for any two variances. Without cases it is the usual interval of a mean.
        """
        if self.seeds < 2:
            return math.nan
        half = t_quantile(alpha, self.seeds - 1) * math.sqrt(self.by_seeds)
        if self.cases > 1:
            half = math.hypot(half, t_quantile(alpha, self.cases - 1) * math.sqrt(self.by_cases))
        return half

    def interval(self) -> Interval:
        """Return the 95 % interval."""
        return Interval(self.mean, self.half(), self.seeds)

    def p_value(self) -> float:
        """Return the largest `alpha` whose interval still includes 0; nan without an interval."""
        if self.seeds < 2:
            return math.nan
        if self.mean == 0.0:
            return 1.0
        low, high = -12.0, 0.0  # powers of ten
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if self.half(10**middle) >= abs(self.mean) else (low, middle)
        return 10**high

    def times(self, factor: float) -> "Estimate":
        """Return the same in another unit."""
        return Estimate(
            self.mean * factor, self.seeds, self.by_seeds * factor**2, self.cases, self.by_cases * factor**2
        )


@lru_cache(maxsize=4096)
def t_quantile(alpha: float, degrees: int) -> float:
    """Return the value that Student's t is beyond, on either side, with probability `alpha`."""
    if degrees >= MANY:
        z = NormalDist().inv_cdf(1 - alpha / 2)
        first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
        third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
        return z + first / degrees + second / degrees**2 + third / degrees**3
    low, high = 0.0, math.pi / 2  # angles, whose tangent is t / sqrt(degrees)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _beyond(middle, degrees) > alpha else (low, middle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def t_975(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t."""
    return t_quantile(0.05, degrees)


def _beyond(angle: float, degrees: int) -> float:
    """Return how probable a larger |t| is than tan(angle) sqrt(degrees): Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    term, total = (cosine, 0.0) if degrees % 2 else (1.0, 0.0)
    for power in range(1 + degrees % 2, degrees, 2):
        total += term
        term *= cosine**2 * power / (power + 1)
    inside = 2 / math.pi * (angle + sine * total) if degrees % 2 else sine * total
    return 1 - inside


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of values that are independent and about normal, one a seed."""
    if not values:
        return Estimate(math.nan, 0, math.nan)
    by_seeds = variance(values) / len(values) if len(values) > 1 else math.nan
    return Estimate(float(mean(values)), len(values), by_seeds)


def estimate_of_cases(rows: Sequence[Sequence[float]]) -> Estimate:
    """Return the mean of a table in which every seed is measured on the same cases; both are samples.

    With seeds and cases crossed, a mean over R seeds and C cases has the variance s / R + c / C + e / (R C): of seeds,
    of cases, and of what is left. The means of the rows show s + e / C, those of the columns c + e / R (two-way
    analysis of variance). Three further cases, one that changed up, one down and one not at all, the first two of half
    a weight, keep the interval honest where no case changed (Agresti and Min 2005: half a case in each field of the
    table before x after).

    rows: one for each seed, of two cases or more; values between -1 and 1, as the change of a share has them.
    """
    seeds, cases = len(rows), len(rows[0])
    assert cases > 1 and all(len(row) == cases for row in rows), "every seed has the same cases"
    of_seeds, of_cases = list(map(fmean, rows)), list(map(fmean, zip(*rows, strict=True)))
    plain = estimate(of_seeds)
    if seeds < 2:
        return plain
    left = math.fsum(
        (value - row - column + plain.mean) ** 2
        for values, row in zip(rows, of_seeds, strict=True)
        for value, column in zip(values, of_cases, strict=True)
    ) / ((seeds - 1) * (cases - 1))
    more = cases + 2
    spread = (math.fsum(value**2 for value in of_cases) + 1) / more - (math.fsum(of_cases) / more) ** 2
    by_cases = max(spread / more - left / (seeds * cases), 0.0)
    return Estimate(plain.mean, seeds, plain.by_seeds, cases, by_cases)


def interval(values: Sequence[float]) -> Interval:
    """Return the 95 % interval of the mean of values that are independent and about normal: t x deviation / sqrt(n)."""
    return estimate(values).interval()


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for being several: with all below 0.05 called clear, 5 % of families err at all.

    Holm (1979): the smallest of m times m, the next times m - 1, and so on, none smaller than the one before. nan, a
    comparison that cannot be made, stays nan and does not count.
    """
    order = sorted((index for index, p in enumerate(p_values) if not math.isnan(p)), key=lambda index: p_values[index])
    corrected, so_far = list(p_values), 0.0
    for rank, index in enumerate(order):
        so_far = max(so_far, min(1.0, (len(order) - rank) * p_values[index]))
        corrected[index] = so_far
    return corrected


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


def first_reaching(levels: Sequence[float], level: float) -> tuple[int, float] | None:
    """Return the point at which `levels` first reaches `level`, for `value_at`; None if it never does.

    Between two points levels are taken as a straight line.
    """
    for index, here in enumerate(levels):
        if here >= level:
            before = levels[index - 1] if index else here
            return index, (level - before) / (here - before) if index else 1.0
    return None


def value_at(values: Sequence[float], point: tuple[int, float]) -> float:
    """Return a value on the straight lines between `values`.

    point: an index, and which share of the way to it from the one before.
    """
    index, share = point
    if share == 1.0:
        return float(values[index])
    return values[index - 1] + share * (values[index] - values[index - 1])


def paired_difference_of_shares(lost: int, gained: int, of: int) -> Interval:
    """Return the 95 % interval of the change of a share over the same cases; its mean is the plain change.

    Agresti and Min (2005): half a case is added to each of the four cells (right or wrong, before and after), which
    keeps the interval honest for few changes. With n = of + 2 and c = lost + gained + 1

        (gained - lost) / n +- 1.96 sqrt(c - (gained - lost)^2 / n) / n

    lost: how many were right and are wrong.
    gained: the other way round.
    of: how many cases there are, 1 or more.
    """
    change, n = gained - lost, of + 2
    half = 1.959964 * math.sqrt(lost + gained + 1 - change**2 / n) / n
    plain, centre = change / of, change / n
    return Interval(plain, max(centre + half - plain, plain - centre + half), of)


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> Interval:
    """Return the 95 % interval of a mean in which some values weigh more, such as long texts; values are independent.

    The mean is sum(w x) / sum(w), a ratio of two sums; its variance is by the residuals e = w (x - mean),
    n / (n - 1) sum(e^2) / sum(w)^2 (Cochran 1977, section 6.4). Equal weights give `interval`.
    """
    if not values:
        return Interval(math.nan, math.nan, 0)
    count, total = len(values), math.fsum(weights)
    centre = math.fsum(w * x for x, w in zip(values, weights, strict=True)) / total
    if count == 1:
        return Interval(centre, math.nan, 1)
    squares = math.fsum((w * (x - centre)) ** 2 for x, w in zip(values, weights, strict=True))
    return Interval(centre, t_975(count - 1) * math.sqrt(count / (count - 1) * squares) / total, count)
