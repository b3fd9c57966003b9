"""Singular values of a weight matrix and its signal-to-noise ratio (SNR).

The SNR of laserRMT and Spectrum: singular values above a threshold T count as signal, the rest as noise.
T has the form of a Marchenko-Pastur edge, but its sigma is the spread of the *singular values*, not of the matrix
entries: it is not an edge in the strict sense, and values compare within one module type only.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

# Part of the hash by which a scan recognises its earlier results: raise it with every change of the numbers.
VERSION = 2
# Interquartile range of a standard normal, rounded as laserRMT and Spectrum round it.
IQR_OF_NORMAL = 1.349
# A score is fragile when its noise is worth fewer singular values than this.
FRAGILE_BELOW = 10.0
# Bound on the relative error that the Gram matrix may leave in the lower quartile and in the sum of the noise; beyond
# it the SVD is used. The error measured is a hundred times smaller than the bound.
GRAM_TOLERANCE = 1e-6
# Largest relative difference of the eigenvalues' sum, and of that of their squares, from what the Gram matrix has.
EIGENVALUE_TOLERANCE = 1e-9
# Rows of the Gram matrix computed at a time; only its lower triangle is needed.
GRAM_BLOCK = 512


@dataclass(frozen=True)
class Spectrum:
    """What a matrix's singular values say: its SNR and how far to trust it.

    `snr` is `raw / s_max`; `raw` is `signal / noise`; `signal` and `noise` are sums of singular values
    above and not above `threshold`; `rank` counts those above. `stable_rank` is ||W||_F^2 / s_max^2.
    `margin` is the distance from the threshold to the nearest singular value, relative to the threshold
    (infinite at threshold 0). `fragile`: the noise is empty or worth fewer than ten singular values of
    the size of its largest, so a value or two crossing the threshold would change the score.
    """

    snr: float
    raw: float
    threshold: float
    rank: int
    s_max: float
    signal: float
    noise: float
    stable_rank: float
    margin: float
    fragile: bool


def singular_values(matrix: Tensor) -> Tensor:
    """Return all singular values of `matrix` (n, m) in fp64, descending, shape (min(n, m),), on the matrix's device.

    Square roots of the eigenvalues of the fp64 Gram matrix of the short side. The absolute error in a
    value s is about eps * s_max^2 / s, far below what any score sees, unless a quarter of the values, or
    all that counts as noise, are tiny beside the largest: such a matrix goes through the fp64 SVD. Values
    below the numerical rank tolerance are exact zeros.

    Raises ValueError where an entry is nan or infinite.
    """
    return values_of_grams([gram(matrix)], [matrix])[0]


def gram(matrix: Tensor) -> Tensor:
    """Return the fp64 Gram matrix of the short side of `matrix` (n, m): (k, k), k = min(n, m).

    Only the lower triangle, in blocks; what lies above the blocks on the diagonal is left at zero. Raises
    ValueError where an entry of `matrix` is nan or infinite.
    """
    assert matrix.ndim == 2, f"a matrix has two dimensions, not {matrix.ndim}"
    rows = (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T).double()
    k = rows.shape[0]
    result = rows.new_zeros(k, k)
    for start in range(0, k, GRAM_BLOCK):
        stop = min(start + GRAM_BLOCK, k)
        torch.mm(rows[start:stop], rows[:stop].T, out=result[start:stop, :stop])
    if not torch.isfinite(result.diagonal()).all():
        raise ValueError("nan or infinite values")
    return result


def values_of_grams(
    grams: list[Tensor], matrices: list[Tensor], say: Callable[[str], None] = lambda line: None
) -> list[Tensor]:
    """Return the singular values of `matrices` from their `gram` matrices, all of one size; see `singular_values`.

    Eigenvalues that contradict their matrix's trace or Frobenius norm are computed again, each matrix by itself; if
    they still do, the SVD is used. say: is told of it in a line.
    """
    stacked = grams[0][None] if len(grams) == 1 else torch.stack(grams)
    eigenvalues = list(torch.linalg.eigvalsh(stacked, UPLO="L").flip(1))
    wrong = [i for i, gram in enumerate(grams) if not eigenvalues_agree(eigenvalues[i], gram)]
    if wrong:
        say(
            f"eigenvalues of {len(wrong)} of {len(grams)} matrices contradict their trace or Frobenius norm, a fault "
            "of the library that computed them: computed again, one matrix at a time"
        )
    alone = {i: torch.linalg.eigvalsh(grams[i], UPLO="L").flip(0) for i in wrong if len(grams) > 1}
    checked: list[Tensor | None] = [None if i in wrong else values for i, values in enumerate(eigenvalues)]
    for i, values in alone.items():
        checked[i] = values if eigenvalues_agree(values, grams[i]) else None
    return [_values(one, matrix) for one, matrix in zip(checked, matrices, strict=True)]


def eigenvalues_agree(eigenvalues: Tensor, gram: Tensor) -> bool:
    """Return whether the eigenvalues have the sum and the sum of squares of those of `gram`, stored as `gram` does.

    The sum is the trace, the sum of squares that of all entries; a right result is off by rounding, some 1e-12.
    """
    trace, squares = gram.diagonal().sum(), torch.zeros_like(gram[0, 0])
    for start in range(0, len(gram), GRAM_BLOCK):
        rows = gram[start : start + GRAM_BLOCK]
        left, on_diagonal = rows[:, :start], rows[:, start : start + GRAM_BLOCK]
        squares += 2 * torch.linalg.vector_norm(left) ** 2 + torch.linalg.vector_norm(on_diagonal) ** 2
    sums = (eigenvalues.sum() - trace).abs() <= EIGENVALUE_TOLERANCE * trace
    return bool(sums & ((eigenvalues.square().sum() - squares).abs() <= EIGENVALUE_TOLERANCE * squares))  # nan: False


def _values(eigenvalues: Tensor | None, matrix: Tensor) -> Tensor:
    values = None if eigenvalues is None else eigenvalues.clamp_min(0.0).sqrt()
    if values is None or not gram_is_accurate(values, *matrix.shape):
        values = torch.linalg.svdvals(matrix.double())
    tolerance = max(matrix.shape) * torch.finfo(torch.float64).eps * values[0]
    return torch.where(values > tolerance, values, 0.0)


def gram_is_accurate(values: Tensor, n: int, m: int) -> bool:
    """Return whether roots of the Gram eigenvalues (descending) of an (n, m) matrix are good enough for every score.

    An eigenvalue is off by at most 8 eps s_max^2 (bound), so its root s by the smaller of bound / 2s and sqrt(bound).
    Scores need the lower quartile (it sets the threshold) and the sum of the noise, which may consist of tiny values
    only: a few rows that are copies of others are enough.
    """
    bound = 8 * torch.finfo(torch.float64).eps * values[0] ** 2
    error = torch.minimum(bound / (2 * values), bound.sqrt())
    for threshold in (marchenko_pastur_threshold, gavish_donoho_threshold):
        is_noise = values <= threshold(values, n, m) + error
        if not error[is_noise].sum() <= GRAM_TOLERANCE * values[is_noise].sum():
            return False
    lower_quartile = torch.quantile(values, 0.25)
    return bool(bound / (2 * lower_quartile**2) < GRAM_TOLERANCE)  # False for nan: the zero matrix


def marchenko_pastur_threshold(values: Tensor, n: int, m: int) -> float:
    """Return T = sigma (1 + sqrt(beta)) of laserRMT and Spectrum.

    sigma = (Q75 - Q25) / 1.349 of the singular values.
    """
    quartiles = torch.quantile(values, torch.tensor([0.25, 0.75], dtype=values.dtype, device=values.device))
    sigma = (quartiles[1] - quartiles[0]).item() / IQR_OF_NORMAL
    return sigma * (1 + math.sqrt(min(n, m) / max(n, m)))


def gavish_donoho_threshold(values: Tensor, n: int, m: int) -> float:
    """Return T = omega(beta) * median singular value: the optimal hard threshold at unknown noise level.

    Gavish and Donoho, 'The optimal hard threshold for singular values is 4/sqrt(3)' (arXiv 1305.5870),
    equations 3 to 5: omega(beta) = lambda(beta) / sqrt(median of the Marchenko-Pastur distribution).
    """
    beta = min(n, m) / max(n, m)
    return _omega(beta) * torch.quantile(values, 0.5).item()


@cache
def _omega(beta: float) -> float:
    root = math.sqrt(beta * beta + 14 * beta + 1)
    optimal = math.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + root))
    return optimal / math.sqrt(_marchenko_pastur_median(beta))


def _marchenko_pastur_median(beta: float, points: int = 20_000) -> float:
    """Return the median of the Marchenko-Pastur law of ratio beta in (0, 1], unit variance.

    With x = middle + radius * sin(u) the density's square-root edges are smooth in u, so the midpoint
    rule converges.
    """
    middle, radius = 1 + beta, 2 * math.sqrt(beta)
    u = (torch.arange(points, dtype=torch.float64) + 0.5) / points * math.pi - math.pi / 2
    mass = torch.cumsum(torch.cos(u) ** 2 / (middle + radius * torch.sin(u)), dim=0)
    cell = int(torch.searchsorted(mass, mass[-1] / 2))
    below = mass[cell - 1] if cell else 0.0
    inside = (mass[-1] / 2 - below) / (mass[cell] - below)
    return middle + radius * math.sin((cell + float(inside)) / points * math.pi - math.pi / 2)


THRESHOLDS: dict[str, Callable[[Tensor, int, int], float]] = {
    "spectrum": marchenko_pastur_threshold,
    "laserrmt": marchenko_pastur_threshold,
    "gavish_donoho": gavish_donoho_threshold,
}


def snr(matrix: Tensor, dialect: str = "spectrum") -> Spectrum:
    """Return the signal-to-noise ratio of a weight matrix (n, m) of any floating dtype.

    Dialects: `spectrum` and `laserrmt` share the threshold and differ where no noise is left: Spectrum
    divides by 1.0, laserRMT gives infinity. `gavish_donoho` takes the threshold of arXiv 1305.5870. A
    matrix of zeros scores 0.
    """
    n, m = matrix.shape
    return score(singular_values(matrix), n, m, dialect)


def score(values: Tensor, n: int, m: int, dialect: str = "spectrum") -> Spectrum:
    """Return the SNR from the singular values (descending, fp64) of an (n, m) matrix; see `snr`."""
    assert dialect in THRESHOLDS, f"unknown dialect {dialect}; one of {sorted(THRESHOLDS)}"
    threshold = THRESHOLDS[dialect](values, n, m)
    is_signal = values > threshold
    signal = values[is_signal].sum().item()
    noise = values[~is_signal].sum().item()
    s_max = values[0].item()
    raw = _ratio(signal, noise, dialect)
    largest_noise = values[~is_signal].max().item() if noise > 0 else 0.0
    return Spectrum(
        snr=raw / s_max if s_max > 0 else 0.0,
        raw=raw,
        threshold=threshold,
        rank=int(is_signal.sum()),
        s_max=s_max,
        signal=signal,
        noise=noise,
        stable_rank=(values.square().sum().item() / s_max**2) if s_max > 0 else 0.0,
        margin=(values - threshold).abs().min().item() / threshold if threshold > 0 else math.inf,
        fragile=noise < FRAGILE_BELOW * largest_noise or noise == 0,
    )


def _ratio(signal: float, noise: float, dialect: str) -> float:
    if noise > 0:
        return signal / noise
    if signal == 0:  # a matrix of zeros has no signal either; 0 / 0 must not rank first
        return 0.0
    return math.inf if dialect == "laserrmt" else signal
