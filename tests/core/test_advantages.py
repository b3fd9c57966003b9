"""What a response is worth beyond the others to its prompt, by hand; `gae` and `token_rewards` are in `test_ppo.py`."""

import math
from dataclasses import dataclass

import pytest
import torch

from starling_train.core.advantages import ADVANTAGES, GROUP_EPS, leave_one_out, token_rewards, within_group

ALL = torch.ones(3, dtype=torch.bool)


@dataclass
class Settings:
    responses_per_prompt: int = 3
    scale_by_group: bool = True
    gamma: float = 1.0
    gae_lambda: float = 0.95


def test_leave_one_out_by_hand():
    # means of the others: (2 + 6) / 2 = 4, (1 + 6) / 2 = 3.5, (1 + 2) / 2 = 1.5
    found = leave_one_out(torch.tensor([1.0, 2.0, 6.0]), ALL, 3)
    torch.testing.assert_close(found, torch.tensor([-3.0, -1.5, 4.5]))


def test_leave_one_out_leaves_out_what_is_not_fit():
    # the second is compared with nobody and nobody with it: 1 - 6, 0, 6 - 1
    found = leave_one_out(torch.tensor([1.0, math.nan, 6.0]), torch.tensor([True, False, True]), 3)
    torch.testing.assert_close(found, torch.tensor([-5.0, 0.0, 5.0]))


def test_groups_are_compared_on_their_own_whatever_is_in_the_others():
    totals = torch.tensor([1.0, 2.0, 6.0, math.inf, 7.0, 5.0])
    fit = torch.tensor([True, True, True, False, True, True])
    torch.testing.assert_close(leave_one_out(totals, fit, 3), torch.tensor([-3.0, -1.5, 4.5, 0.0, 2.0, -2.0]))
    # in pairs: 1 - 2, 6 alone, 7 - 5
    in_pairs = torch.tensor([-1.0, 1.0, 0.0, 0.0, 2.0, -2.0])
    torch.testing.assert_close(leave_one_out(totals, fit, 2), in_pairs)
    torch.testing.assert_close(within_group(totals, fit, 2, scaled=False), in_pairs / 2)


def test_within_a_group_by_hand():
    # mean 3; deviations of a sample of three: sqrt((4 + 1 + 9) / 2) = sqrt(7)
    totals = torch.tensor([1.0, 2.0, 6.0])
    plain = torch.tensor([-2.0, -1.0, 3.0])
    torch.testing.assert_close(within_group(totals, ALL, 3, scaled=False), plain)
    torch.testing.assert_close(within_group(totals, ALL, 3, scaled=True), plain / (math.sqrt(7.0) + GROUP_EPS))


def test_within_a_group_what_is_not_fit_counts_neither_for_mean_nor_deviation():
    # of 1 and 6: mean 3.5, deviation sqrt((6.25 + 6.25) / 1)
    fit, totals = torch.tensor([True, False, True]), torch.tensor([1.0, math.nan, 6.0])
    plain = torch.tensor([-2.5, 0.0, 2.5])
    torch.testing.assert_close(within_group(totals, fit, 3, scaled=False), plain)
    torch.testing.assert_close(within_group(totals, fit, 3, scaled=True), plain / (math.sqrt(12.5) + GROUP_EPS))


ESTIMATORS = [
    leave_one_out,
    lambda totals, fit, group: within_group(totals, fit, group, scaled=True),
    lambda totals, fit, group: within_group(totals, fit, group, scaled=False),
]


@pytest.mark.parametrize("of", ESTIMATORS, ids=["leave one out", "scaled", "not scaled"])
@pytest.mark.parametrize("fit", [[False, True, False], [False, False, False], [True, True, True]])
def test_there_is_nothing_to_learn_where_one_is_fit_or_none_or_all_are_alike(of, fit):
    totals = torch.tensor([0.1, 0.1, 0.1]).where(torch.tensor(fit), torch.nan)
    assert of(totals, torch.tensor(fit), 3).abs().max() < 1e-4  # the rounding of a mean, over GROUP_EPS


@pytest.mark.parametrize("of", ESTIMATORS, ids=["leave one out", "scaled", "not scaled"])
def test_advantages_of_a_group_add_up_to_nothing_and_follow_its_order(of):
    random = torch.Generator().manual_seed(0)
    totals = torch.randn(12, generator=random, dtype=torch.float64)
    fit = torch.tensor([True, True, False, True, False, True, True, False, True, True, True, True])
    found = of(totals, fit, 4)
    torch.testing.assert_close(found.view(3, 4).sum(1), torch.zeros(3, dtype=torch.float64))
    assert (found[~fit] == 0).all() and (found[fit] != 0).all()
    torch.testing.assert_close(of(totals + 7.0, fit, 4), found)  # what all of a prompt have in common says nothing
    order = torch.tensor([2, 0, 3, 1])
    for tensor in (totals, fit, found):
        tensor.view(3, 4).copy_(tensor.view(3, 4)[[1, 2, 0]][:, order])
    torch.testing.assert_close(of(totals, fit, 4), found)


def test_the_mean_of_the_others_is_the_groups_by_another_factor():
    """A - mean of all = (G - 1) / G (A - mean of the others): Dr. GRPO and RLOO differ in the rate alone."""
    totals, fit = torch.randn(20, generator=torch.Generator().manual_seed(1)), torch.ones(20, dtype=torch.bool)
    torch.testing.assert_close(within_group(totals, fit, 5, scaled=False), leave_one_out(totals, fit, 5) * 4 / 5)


@pytest.mark.parametrize("name,factor", [("rloo", 1.0), ("grpo", 1.0 / (math.sqrt(7.0) + GROUP_EPS) * 2 / 3)])
def test_every_token_of_a_response_is_worth_what_the_response_is(name, factor):
    """Of the table by algorithm.name: rewards are scores less KL, padding is worth nothing, nothing is whitened."""
    real = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    kl = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, math.nan], [7.0, math.nan, math.nan]])
    # totals: 1.6 - 0.6, 2.9 - 0.9, 6.7 - 0.7
    rewards = token_rewards(torch.tensor([1.6, 2.9, 6.7]), kl, real, 0.1)
    estimator = ADVANTAGES[name]
    advantages, returns = estimator.of(rewards, torch.zeros(3, 3), real, Settings())
    expected = torch.tensor([[-3.0, -3.0, -3.0], [-1.5, -1.5, 0.0], [4.5, 0.0, 0.0]]) * factor
    torch.testing.assert_close(advantages, expected)
    assert not returns.any() and not estimator.whitens


def test_a_response_that_is_not_fit_has_no_token_and_no_advantage():
    real = torch.tensor([[True, True], [False, False], [True, False]])
    rewards = torch.tensor([[0.5, 0.5], [99.0, 99.0], [6.0, 99.0]])
    advantages, _ = ADVANTAGES["rloo"].of(rewards, torch.zeros(3, 2), real, Settings())
    torch.testing.assert_close(advantages, torch.tensor([[-5.0, -5.0], [0.0, 0.0], [5.0, 0.0]]))


@pytest.mark.parametrize("group", [2, 3, 6, 7])
@pytest.mark.parametrize("reward", [1000.1, 777.7, 12.3, -0.1])
def test_equal_rewards_are_worth_nothing_whatever_their_mean_rounds_to(group, reward):
    totals, fit = torch.full((group,), reward), torch.ones(group, dtype=torch.bool)
    assert within_group(totals, fit, group, scaled=True).abs().max() < 1e-8
    assert leave_one_out(totals, fit, group).abs().max() < 1e-8
