"""Truncation against numbers by hand, and against a full fp64 SVD that is written here."""

import numpy as np
import pytest
import torch

from starling_train.core import spectrum
from starling_train.core.rank_reduction import factored_size, saving, truncate


def random_matrix(n: int, m: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Noise, and a few directions above it."""
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(n, 3, generator=generator) @ torch.randn(3, m, generator=generator)
    return (torch.randn(n, m, generator=generator) + signal).to(dtype)


def by_numpy(matrix: torch.Tensor, rank: int) -> np.ndarray:
    """Sum of the largest rank-one parts, in fp64."""
    u, s, vt = np.linalg.svd(matrix.double().numpy(), full_matrices=True)
    return sum(s[i] * np.outer(u[:, i], vt[i]) for i in range(rank))


def test_the_smallest_singular_values_go():
    rotation = torch.tensor([[0.6, -0.8, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    found = truncate(rotation @ torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)), 2)
    expected = torch.tensor([[1.8, -1.6, 0.0], [2.4, 1.2, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(found.matrix(torch.float64), expected, atol=1e-14, rtol=0)
    torch.testing.assert_close(found.values, torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    assert found.rank_before == 3


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_is_the_full_svd_in_fp64_rounded_once(shape, dtype):
    matrix = random_matrix(*shape, dtype=dtype)
    for rank in (1, 5, 15):
        found = truncate(matrix, rank)
        expected = by_numpy(matrix, rank)
        np.testing.assert_allclose((found.left @ found.right).numpy(), expected, atol=1e-12)
        assert found.matrix(dtype).dtype == dtype and found.matrix(dtype).is_contiguous()
        step = np.abs(expected) * torch.finfo(dtype).eps / 2 + 1e-7
        assert (np.abs(found.matrix(dtype).double().numpy() - expected) <= step).all()


def test_the_error_is_what_was_dropped():
    matrix = random_matrix(20, 30).double()
    found = truncate(matrix, 7)
    error = torch.linalg.matrix_norm(matrix - found.matrix(torch.float64))
    assert error.item() == pytest.approx(found.values[7:].square().sum().sqrt().item(), rel=1e-12)


def test_the_rank_before_counts_what_is_not_zero():
    low = torch.randn(12, 2, dtype=torch.float64) @ torch.randn(2, 9, dtype=torch.float64)
    found = truncate(low, 1)
    assert found.rank_before == 2
    assert truncate(found.matrix(torch.float64), 1).rank_before == 1


@pytest.mark.parametrize("dialect", spectrum.THRESHOLDS)
@pytest.mark.parametrize("shape", [(32, 32), (24, 48), (48, 20)])
def test_the_rank_of_the_ratio_is_the_number_of_singular_values_above_the_threshold(dialect, shape):
    matrix = random_matrix(*shape, seed=sum(shape))
    found = spectrum.snr(matrix, dialect)
    values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    if dialect != "gavish_donoho":
        low, high = np.quantile(values, [0.25, 0.75])
        threshold = (high - low) / 1.349 * (1 + np.sqrt(min(shape) / max(shape)))
        assert found.threshold == pytest.approx(threshold, rel=1e-9)
    assert found.rank == (values > found.threshold).sum()
    assert 0 < found.rank < min(shape)
    kept = np.linalg.svd(truncate(matrix, found.rank).matrix(torch.float64).numpy(), compute_uv=False)
    np.testing.assert_allclose(kept[: found.rank], values[: found.rank], rtol=1e-12)
    assert (kept[found.rank :] < 1e-12 * values[0]).all()


def test_factors_save_numbers_only_below_the_rank_where_they_are_fewer():
    assert factored_size((4, 6), 2) == 20
    assert [saving((4, 6), rank) for rank in (1, 2, 3, 4)] == [14, 4, 0, 0]
