"""Singular values and SNR: the golden values of laserRMT and Spectrum, ill-conditioned matrices,
hand-made ones.
"""

import json
import math
import re

import numpy as np
import pytest
import torch

from starling_train.core.spectrum import gavish_donoho_threshold, gram, singular_values, snr


def build(recipe: str, cast: str | None = None) -> torch.Tensor:
    """The matrix of a recipe in golden.json: `kind(seed, n, m, ...)`."""
    kind, arguments = re.fullmatch(r"(\w+)\((.*)\)", recipe).groups()
    seed, n, m, *rest = (float(value) for value in arguments.split(","))
    generator, n, m = torch.Generator("cpu").manual_seed(int(seed)), int(n), int(m)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if kind == "gauss":
        matrix = rest[0] * draw(n, m)
    elif kind == "lowrank":
        left, right, noise = draw(n, int(rest[0])), draw(int(rest[0]), m), draw(n, m)
        matrix = rest[1] * left @ right + rest[2] * noise
    else:
        k = min(n, m)
        left, right = torch.linalg.qr(draw(n, k)).Q, torch.linalg.qr(draw(m, k)).Q
        matrix = (left * (rest[1] * torch.arange(1, k + 1, dtype=torch.float64) ** -rest[0])) @ right.T
    return (matrix.bfloat16() if cast == "bf16" else matrix).float()


def reference(matrix: torch.Tensor) -> dict[str, float]:
    """SNR by the formulas, from an fp64 SVD of another library."""
    n, m = matrix.shape
    values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    low, high = np.quantile(values, [0.25, 0.75])
    threshold = (high - low) / 1.349 * (1 + math.sqrt(min(n, m) / max(n, m)))
    signal, noise = values[values > threshold].sum(), values[values <= threshold].sum()
    raw = signal / noise if noise else signal
    return {
        "snr": raw / values[0],
        "threshold": threshold,
        "rank": int((values > threshold).sum()),
        "raw": raw,
    }


def with_values(values: list[float], n: int, m: int, seed: int = 0) -> torch.Tensor:
    """An fp64 matrix (n, m) with the given singular values."""
    generator = torch.Generator().manual_seed(seed)
    k = min(n, m)
    left = torch.linalg.qr(torch.randn(n, k, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(m, k, generator=generator, dtype=torch.float64)).Q
    return (left * torch.tensor(values, dtype=torch.float64)) @ right.T


def test_golden_values(data_dir):
    golden = json.loads((data_dir / "snr" / "golden.json").read_text())
    assert len(golden) == 7
    for name, case in golden.items():
        if name == "_recipe":
            continue
        matrix = build(case["recipe"], case["cast"])
        assert matrix.flatten()[:3].tolist() == pytest.approx(case["first3"], abs=1e-9), name
        score, laser = snr(matrix), snr(matrix, "laserrmt")
        assert score.snr == pytest.approx(case["spectrum_fp32"], rel=1e-5), name
        assert score.threshold == pytest.approx(case["threshold"], rel=1e-9), name
        assert score.rank == case["k"], name
        assert score.s_max == pytest.approx(case["s_max"], rel=1e-9), name
        assert score.signal == pytest.approx(case["signal"], rel=1e-9), name
        assert score.noise == pytest.approx(case["noise"], rel=1e-9), name
        # the golden files write infinity as a string
        assert laser.raw == pytest.approx(float(case["rmt_laser_snr_fp64_raw"]), rel=1e-9), name
        assert laser.snr == pytest.approx(float(case["laserQlora_fp64_normalised"]), rel=1e-9), name


@pytest.mark.parametrize(
    "recipe",
    [
        "gauss(11,384,300,0.5)",
        "gauss(12,96,97,1.0)",
        "lowrank(13,400,256,5,0.02,0.01)",
        "lowrank(14,256,700,40,0.05,0.01)",
        "powerlaw(15,300,300,1.0,8.0)",  # condition 300
        "powerlaw(16,300,420,1.5,2.0)",  # condition 5e3
        "powerlaw(17,256,256,2.0,1.0)",  # condition 6.5e4
    ],
)
@pytest.mark.parametrize("cast", [None, "bf16"])
def test_agrees_with_an_svd_of_another_library(recipe, cast):
    matrix = build(recipe, cast)
    expected, score = reference(matrix), snr(matrix)
    assert score.rank == expected["rank"]
    assert score.snr == pytest.approx(expected["snr"], rel=1e-8)
    assert score.raw == pytest.approx(expected["raw"], rel=1e-8)
    assert score.threshold == pytest.approx(expected["threshold"], rel=1e-8)


@pytest.mark.parametrize("condition", [1e3, 1e4, 1e5, 1e6, 1e9, 1e12])
def test_ill_conditioned_in_fp64(condition):
    """Geometric decay: half of the values lie below s_max / sqrt(condition), where a Gram matrix alone
    goes wrong.
    """
    values = np.geomspace(1.0, 1 / condition, 200)
    matrix = with_values(list(values), 200, 320)
    found = singular_values(matrix).numpy()
    # eps * s_max^2 / s by the Gram matrix, eps * s_max by the SVD
    assert (np.abs(found - values) < 1e-15 / values + 1e-14).all()
    assert snr(matrix).snr == pytest.approx(reference(matrix)["snr"], rel=1e-8)


def test_outlier_of_condition_3000_over_a_flat_bulk():
    """Where an fp32 Gram matrix is wrong by per cents."""
    matrix = with_values([3000.0, *np.linspace(1.0, 0.2, 255)], 256, 1024)
    assert snr(matrix.float()).snr == pytest.approx(reference(matrix.float())["snr"], rel=1e-8)


def test_by_hand():
    # S = 8, 4, 2, 1, 1: quartiles 1 and 4, sigma = 3 / 1.349 = 2.22387, beta = 1, T = 4.44774
    score = snr(torch.diag(torch.tensor([1.0, 8.0, 2.0, 4.0, 1.0])))
    assert score.threshold == pytest.approx(4.4477390)
    assert (score.rank, score.s_max, score.signal, score.noise) == pytest.approx((1, 8.0, 8.0, 8.0))
    assert (score.raw, score.snr) == pytest.approx((1.0, 0.125))
    assert score.stable_rank == pytest.approx((64 + 16 + 4 + 1 + 1) / 64)
    assert score.margin == pytest.approx((4.4477390 - 4) / 4.4477390)
    assert score.fragile  # a noise of 8, of which one value is 4


def test_dialects_differ_where_no_noise_is_left():
    # S = 3, 3, 3, 2.9: quartiles 2.975 and 3, T = 0.0371, nothing below
    matrix = torch.diag(torch.tensor([3.0, 3.0, 3.0, 2.9]))
    plain, laser = snr(matrix, "spectrum"), snr(matrix, "laserrmt")
    assert (plain.raw, plain.snr) == pytest.approx((11.9, 11.9 / 3))
    assert (laser.raw, laser.snr) == (math.inf, math.inf)
    assert plain.noise == laser.noise == 0 and plain.fragile


def test_zeros_and_rank_deficiency():
    zero = snr(torch.zeros(6, 9))
    assert (zero.snr, zero.raw, zero.rank, zero.s_max, zero.stable_rank) == (0, 0, 0, 0, 0)
    assert snr(torch.zeros(6, 9), "laserrmt").snr == 0
    # rank 1: all other values are exact zeros, so T is 0 and no noise is left, whatever the rounding
    ones = snr(torch.ones(40, 60))
    assert (ones.rank, ones.threshold, ones.noise) == (1, 0.0, 0.0)
    assert ones.raw == pytest.approx(math.sqrt(2400)) and ones.snr == pytest.approx(1.0)
    assert ones.margin == math.inf


def test_transpose_and_scale():
    matrix = build("lowrank(3,60,200,4,0.3,0.1)").double()
    score, transposed, scaled = snr(matrix), snr(matrix.T), snr(4 * matrix)
    assert transposed.snr == pytest.approx(score.snr, rel=1e-12)
    assert scaled.raw == pytest.approx(score.raw, rel=1e-12)
    assert scaled.snr == pytest.approx(score.snr / 4, rel=1e-12)
    assert scaled.margin == pytest.approx(score.margin, rel=1e-6)


def test_noise_of_many_values_is_not_fragile():
    assert not snr(build("gauss(0,256,256,0.02)")).fragile
    # beta = 1/4 < 0.2704: pure noise lies wholly above this threshold
    assert snr(build("gauss(2,400,100,0.02)")).fragile


def test_gram_in_blocks_is_the_gram_matrix():
    matrix = build("gauss(5,1100,600,1.0)")
    expected = matrix.double().T @ matrix.double()
    assert torch.allclose(gram(matrix).tril(), expected.tril(), rtol=1e-13, atol=1e-11)
    assert torch.allclose(torch.linalg.eigvalsh(gram(matrix)), torch.linalg.eigvalsh(expected), rtol=1e-10)


@pytest.mark.parametrize(("beta", "omega"), [(0.1, 1.6089), (0.25, 1.8371), (0.5, 2.1711), (1.0, 2.8582)])
def test_gavish_donoho_factor_of_the_paper(beta, omega):
    # arXiv 1305.5870, table IV; the median of these values is 1
    values = torch.tensor([1.5, 1.0, 0.5], dtype=torch.float64)
    assert gavish_donoho_threshold(values, round(1000 * beta), 1000) == pytest.approx(omega, abs=5e-4)


def test_gavish_donoho_finds_the_planted_rank():
    assert snr(build("lowrank(6,300,500,12,0.05,0.02)"), "gavish_donoho").rank == 12
    assert snr(build("gauss(7,300,500,0.02)"), "gavish_donoho").rank == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused(value):
    matrix = torch.ones(5, 7)
    matrix[3, 2] = value
    with pytest.raises(ValueError, match="nan or infinite"):
        snr(matrix)


def test_rows_that_are_copies_leave_no_noise():
    """The noise consists of rounding alone, which the Gram matrix makes a hundred million times too large."""
    matrix = torch.randn(256, 1024, generator=torch.Generator().manual_seed(1))
    matrix[:40] = matrix[40:80]
    score = snr(matrix)
    assert (score.rank, score.noise) == (216, 0.0)
    assert score.snr == pytest.approx(127.37487, rel=1e-6)


@pytest.mark.parametrize("tiny", [1e-3, 1e-5])
def test_noise_of_tiny_values_only(tiny):
    values = [3000.0, *np.linspace(1.1, 1.0, 200), *[tiny] * 55]
    matrix = with_values(values, 256, 512)
    assert snr(matrix).noise == pytest.approx(55 * tiny, rel=1e-6)


@pytest.mark.parametrize(
    "recipe",
    [
        "gauss(1,256,256,0.02)",  # square: the smallest value is near 0
        "gauss(2,128,448,0.02)",
        "lowrank(3,256,256,8,0.3,0.02)",
        "powerlaw(4,256,256,1.5,2.0)",
    ],
)
def test_ordinary_matrices_need_no_svd(recipe, monkeypatch):
    monkeypatch.setattr(torch.linalg, "svdvals", None)
    assert snr(build(recipe)).snr > 0


def test_an_outlier_of_condition_1e4_needs_no_svd(monkeypatch):
    matrix = with_values([2000.0, *np.linspace(1.0, 0.2, 255)], 256, 448).float()
    monkeypatch.setattr(torch.linalg, "svdvals", None)
    # quartiles 0.4 and 0.8, T = 0.4 / 1.349 * (1 + sqrt(256 / 448)) = 0.521: the outlier and 152 of the flat ones
    assert snr(matrix).rank == 153
