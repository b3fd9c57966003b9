import math
import random

import pytest

from starling_train.core.intervals import (
    Estimate,
    estimate,
    estimate_of_cases,
    first_reaching,
    holm,
    interval,
    paired_difference_of_shares,
    t_quantile,
    value_at,
    weighted_mean,
)


def test_interval_by_hand():
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0])  # deviation sqrt(2.5), t of 4 degrees 2.776445
    assert found.mean == 3.0 and found.count == 5
    assert found.half == pytest.approx(2.776445 * math.sqrt(2.5) / math.sqrt(5))
    assert (found.low, found.high) == (found.mean - found.half, found.mean + found.half)


@pytest.mark.parametrize(
    "values,verdict",
    [([1.0, 1.1, 0.9], "more"), ([-1.0, -1.1, -0.9], "less"), ([-1.0, 1.0, 0.1], "alike"), ([3.0], "unknown")],
)
def test_verdict(values, verdict):
    assert interval(values).verdict == verdict


def test_nothing_to_take_a_mean_of():
    found = interval([])
    assert found.count == 0 and math.isnan(found.mean) and found.verdict == "unknown"
    assert math.isnan(estimate([]).p_value()) and math.isnan(estimate([2.0]).p_value())


@pytest.mark.parametrize(
    "alpha,degrees,t",
    [
        (0.05, 1, 12.7062), (0.05, 2, 4.3027), (0.05, 3, 3.1824), (0.05, 4, 2.7764), (0.05, 19, 2.0930),
        (0.05, 20, 2.0860), (0.05, 30, 2.0423), (0.05, 60, 2.0003), (0.05, 120, 1.9799), (0.01, 1, 63.6567),
        (0.01, 2, 9.9248), (0.01, 5, 4.0321), (0.001, 3, 12.9240), (0.001, 40, 3.5510), (0.5, 10, 0.6998),
    ],
)  # fmt: skip
def test_students_t_is_that_of_tables(alpha, degrees, t):
    assert t_quantile(alpha, degrees) == pytest.approx(t, rel=1e-4)


def test_a_p_value_is_that_of_students_t():
    # mean 1 and deviation 1 over 4 seeds: t = 2 at 3 degrees of freedom, of which tables have 0.1393
    values = [1 - math.sqrt(1.5), 1 + math.sqrt(1.5), 1.0, 1.0]
    assert estimate(values).p_value() == pytest.approx(0.1393, abs=1e-4)
    found = estimate([1.0, 1.2, 0.9])
    assert found.half(found.p_value()) == pytest.approx(1.0333333)  # the interval that ends at 0
    assert estimate([-1.0, 1.0]).p_value() == 1.0 and estimate([3.0, 3.0]).p_value() == pytest.approx(1e-12)


def test_seeds_and_cases_by_hand():
    """Two seeds, four cases, one lost by both, one by the first alone."""
    found = estimate_of_cases([[-1.0, -1.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0]])
    assert found.mean == -0.375 and (found.seeds, found.cases) == (2, 4)
    assert found.by_seeds == pytest.approx(0.03125 / 2)  # means -1/2 and -1/4, variance 1/32
    # means of the cases -1, -1/2, 0, 0; two more cases: (1 + 1/4 + 1)/6 - (1.5/6)^2 = 0.3125
    # what is left: all of +-1/8, but +-3/8 in the second case: 2 x (3/64 + 9/64) / 3 = 0.125
    assert found.by_cases == pytest.approx(0.3125 / 6 - 0.125 / 8)
    expected = math.hypot(12.706205 * math.sqrt(0.015625), 3.182446 * math.sqrt(0.3125 / 6 - 0.125 / 8))
    assert found.interval().half == pytest.approx(expected)
    percent = found.times(100).interval()
    assert (percent.mean, percent.half, percent.count) == (-37.5, pytest.approx(100 * expected), 2)


def test_where_no_case_changed_the_interval_is_not_empty():
    found = estimate_of_cases([[0.0] * 98] * 5)
    assert found.mean == 0.0 and found.by_seeds == 0.0
    assert found.interval().half == pytest.approx(t_quantile(0.05, 97) / 100)  # two of a hundred cases, 1.98 points
    assert estimate([0.0] * 5).half() == 0.0 and found.p_value() == 1.0


def test_one_seed_has_no_interval_however_many_cases():
    assert math.isnan(estimate_of_cases([[0.0, -1.0, 0.0]]).half())


def test_an_interval_of_seeds_and_cases_is_never_narrower_than_that_of_seeds():
    dice = random.Random(1)
    for _ in range(50):
        rows = [[float(dice.choice([-1, 0, 0, 1])) for _ in range(20)] for _ in range(dice.choice([2, 3, 5]))]
        assert estimate_of_cases(rows).half() >= estimate([sum(row) / 20 for row in rows]).half()


@pytest.mark.parametrize("seeds,cases,loss", [(3, 60, 0.2), (5, 100, 0.03), (5, 40, 0.5)])
def test_intervals_of_seeds_and_cases_hold_what_they_promise(seeds, cases, loss):
    """Of simulated strategies: how often a case is lost depends on the case and on the seed."""
    dice = random.Random(7)
    hits = alone = 0
    for _ in range(300):
        by_seed = [dice.uniform(0.5, 1.5) for _ in range(seeds)]  # of mean 1: on average a case is lost as `loss` says
        by_case = [dice.choice([0.0, 0.0, 3.0]) for _ in range(cases)]
        rows = [[-float(dice.random() < min(1.0, loss * s * c)) for c in by_case] for s in by_seed]
        truth = -sum(min(1.0, loss * (0.5 + i / 100) * 3) for i in range(101)) / 101 / 3
        found = estimate_of_cases(rows)
        hits += abs(found.mean - truth) <= found.half()
        alone += abs(found.mean - truth) <= estimate([sum(row) / cases for row in rows]).half()
    assert hits >= 0.925 * 300  # 95 %, less two standard deviations of 300 draws
    assert alone < hits


def test_holms_correction_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0] and holm([0.02]) == [0.02] and holm([]) == []
    one, other, none = holm([0.02, 0.04, math.nan])
    assert (one, other) == (0.04, 0.04) and math.isnan(none)


def test_an_estimate_without_cases_is_that_of_seeds():
    assert Estimate(2.0, 3, 0.25).half() == pytest.approx(4.302653 * 0.5)


def test_first_reached_by_hand():
    reward, skill = [0.0, 1.0, 0.5, 3.0], [0.0, -4.0, -5.0, -10.0]

    def at(level):
        point = first_reaching(reward, level)
        return point and value_at(skill, point)

    assert at(0.0) == 0.0
    assert at(0.25) == -1.0
    assert at(1.0) == -4.0
    assert at(2.0) == pytest.approx(-5.0 - 5.0 * 1.5 / 2.5)  # from the dip on
    assert at(3.5) is None
    assert first_reaching([2.0, 1.0], 1.5) == (0, 1.0)


def test_a_share_of_the_same_cases_by_hand():
    """10 of 100 cases were lost and 2 gained: (2 - 10) / 102 -+ 1.96 sqrt(13 - 64 / 102) / 102."""
    found = paired_difference_of_shares(10, 2, 100)
    half = 1.959964 * math.sqrt(13 - 64 / 102) / 102
    assert found.mean == -0.08 and found.count == 100
    assert found.low == pytest.approx(-0.16 + 8 / 102 - half)  # as far from the plain change as the other end
    assert found.high == pytest.approx(-8 / 102 + half)
    assert found.verdict == "less"


def test_a_share_s_interval_is_honest_where_nothing_or_everything_changed():
    still = paired_difference_of_shares(0, 0, 50)
    assert still.mean == 0.0 and still.half == pytest.approx(1.959964 / 52) and still.verdict == "alike"
    assert paired_difference_of_shares(1, 0, 1).verdict == "alike"  # one case tells nothing
    lost = paired_difference_of_shares(50, 0, 50)
    assert lost.mean == -1.0 and lost.half > 0.03
    for changes in ((3, 1), (0, 4), (7, 7)):
        there, back = (paired_difference_of_shares(*order, 20) for order in (changes, changes[::-1]))
        assert there.mean == -back.mean and there.half == pytest.approx(back.half)


def test_what_did_not_change_is_no_noise():
    """The same cases, so that 90 which stay right add nothing: a fall of 10 of 100 is told from chance."""
    assert paired_difference_of_shares(10, 0, 100).high < -0.03


def test_a_weighted_mean_by_hand():
    """Values 1 and 4 of weights 3 and 1: 7/4, residuals 3 (1 - 7/4) and 4 - 7/4, half 12.7062 sqrt(2 x 10.125) / 4."""
    found = weighted_mean([1.0, 4.0], [3.0, 1.0])
    assert (found.mean, found.count) == (1.75, 2)
    assert found.half == pytest.approx(12.7062 * math.sqrt(2 * (2.25**2 + 2.25**2)) / 4)
    values = [1.0, 2.0, 4.0, 8.0]
    for weight in (1.0, 7.0):
        even = weighted_mean(values, [weight] * 4)
        assert (even.mean, even.half) == (pytest.approx(3.75), pytest.approx(interval(values).half))
    assert math.isnan(weighted_mean([2.0], [5.0]).half) and weighted_mean([2.0], [5.0]).mean == 2.0
    assert math.isnan(weighted_mean([], []).mean)
