"""Singular values and SNR: the golden values of laserRMT and Spectrum, ill-conditioned matrices,
hand-made ones.
"""

import json
import math
import re

import numpy as np
import pytest
import torch

from starling_train.core.float64 import scan_note
from starling_train.core.spectrum import gavish_donoho_threshold, gram, singular_values, snr, values_of_grams


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


def lying(monkeypatch, lies) -> list[int]:
    """Have `eigvalsh` pass its results through `lies(values, how many matrices)`; gives how many it gets each time."""
    plain, asked = torch.linalg.eigvalsh, []

    def eigvalsh(matrix, UPLO="L"):
        asked.append(len(matrix) if matrix.ndim == 3 else 1)
        return lies(plain(matrix, UPLO=UPLO).clone(), asked[-1])

    monkeypatch.setattr(torch.linalg, "eigvalsh", eigvalsh)
    return asked


def swapped(values, count):
    """Another matrix's values in the place of the second's: all of them plausible."""
    if count > 1:
        values[1] = values[2]
    return values


def same_sum(values, count):
    """The trace is right, and the Frobenius norm is not."""
    if count > 1:
        values[1] = values[1].mean()
    return values


def not_numbers(values, count):
    if count > 1:
        values[1, 3] = float("nan")
    return values


@pytest.mark.parametrize("lies", [swapped, same_sum, not_numbers])
def test_eigenvalues_that_contradict_their_matrix_are_computed_again_alone(monkeypatch, lies):
    matrices = [build(f"gauss({seed}, 600, 700, 1)") for seed in range(4)]  # 600: a block of rows, and part of another
    grams, expected = [gram(matrix) for matrix in matrices], [singular_values(matrix) for matrix in matrices]
    asked, told = lying(monkeypatch, lies), []
    for found, values in zip(values_of_grams(grams, matrices, told.append), expected, strict=True):
        torch.testing.assert_close(found, values, rtol=1e-12, atol=1e-12)
    assert asked == [4, 1] and len(told) == 1 and told[0].startswith("eigenvalues of 1 of 4 matrices contradict")


def test_eigenvalues_that_are_wrong_alone_too_give_way_to_the_svd(monkeypatch):
    matrices = [build(f"gauss({seed}, 20, 30, 1)") for seed in range(2)]
    expected = [singular_values(matrix) for matrix in matrices]
    asked = lying(monkeypatch, lambda values, count: values * 1.001)
    for found, values in zip(values_of_grams([gram(one) for one in matrices], matrices), expected, strict=True):
        torch.testing.assert_close(found, values, rtol=1e-9, atol=1e-12)
    assert asked == [2, 1, 1]


@pytest.mark.parametrize("recipe", ["gauss(1, 1, 7, 1)", "gauss(2, 700, 513, 1e-20)", "gauss(3, 5, 5, 1e30)"])
def test_right_eigenvalues_are_believed(monkeypatch, recipe):
    asked, told, matrix = lying(monkeypatch, lambda values, count: values), [], build(recipe)
    for one in (matrix, torch.zeros_like(matrix), torch.ones_like(matrix)):
        values_of_grams([gram(one)], [one], told.append)
    assert told == [] and asked == [1, 1, 1]


@pytest.mark.parametrize(
    "name,capability,rate",
    [
        ("NVIDIA GeForce RTX 4090", (8, 9), "1/64"), ("NVIDIA RTX A6000", (8, 6), "1/64"), ("Tesla T4", (7, 5), "1/32"),
        ("NVIDIA GeForce RTX 5090", (12, 0), "1/64"), ("NVIDIA GeForce GTX 1080 Ti", (6, 1), "1/32"),
        ("NVIDIA A100-SXM4-80GB", (8, 0), None), ("NVIDIA H100 80GB HBM3", (9, 0), None),
        ("NVIDIA B200", (10, 0), None), ("Tesla V100-SXM2-32GB", (7, 0), None), ("of the future", (99, 0), None),
    ],
)  # fmt: skip
def test_cards_that_are_slow_in_float64(name, capability, rate):
    note = scan_note(name, capability)
    assert note.startswith(f"{name} computes float64 at {rate} of its float32 rate, ") if rate else note == ""
