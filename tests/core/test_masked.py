import pytest
import torch

from starling_train.core.masked import explained_variance, moments, whiten

X = torch.tensor([[1.0, 2.0, float("nan")], [6.0, float("inf"), 999.0]])
MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_moments_by_hand():
    found = moments(X, MASK)  # mean 3, squares 1 + 4 + 36 = 41, variance 41/3 - 9 = 14/3
    assert found.entries == 3
    assert found.mean.item() == pytest.approx(3.0)
    assert found.variance.item() == pytest.approx(14 / 3)


def test_whiten_by_hand():
    deviation = (14 / 3) ** 0.5
    expected = torch.tensor([[-2 / deviation, -1 / deviation, 0.0], [3 / deviation, 0.0, 0.0]])
    torch.testing.assert_close(whiten(X, MASK), expected)


def test_whiten_without_shift_keeps_signs():
    torch.testing.assert_close(whiten(X, MASK, shift=False)[0, :2], torch.tensor([1.0, 2.0]) / (14 / 3) ** 0.5)


def test_whiten_with_the_moments_of_a_larger_batch():
    whole = moments(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([True] * 3))
    part = whiten(torch.tensor([2.0]), torch.tensor([True]), whole)
    assert part.item() == pytest.approx(-1 / (14 / 3) ** 0.5)


def explained(predicted, target, mask):
    return explained_variance(moments(target - predicted, mask), moments(target, mask))


def test_explained_variance_by_hand():
    target = torch.tensor([0.0, 2.0, 4.0, 50.0])
    mask = torch.tensor([True, True, True, False])
    # errors 0, 1, 2 -> variance 2/3; targets' variance 8/3
    assert explained(torch.tensor([0.0, 1.0, 2.0, 0.0]), target, mask).item() == pytest.approx(0.75)
    assert explained(target, target, mask).item() == pytest.approx(1.0)
    assert explained(torch.full((4,), 7.0), target, mask).item() == pytest.approx(0.0)


def test_explained_variance_of_constant_targets_is_undefined():
    assert explained(torch.zeros(2), torch.ones(2), torch.tensor([True, True])).isnan()
