import math

import pytest

from starling_train.core.intervals import first_reached, interval, t_975


def test_interval_by_hand():
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0])  # deviation sqrt(2.5), t of 4 degrees 2.7764
    assert found.mean == 3.0 and found.count == 5
    assert found.half == pytest.approx(2.7764 * math.sqrt(2.5) / math.sqrt(5))
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


@pytest.mark.parametrize(
    "degrees,t", [(1, 12.7062), (4, 2.7764), (20, 2.0860), (30, 2.0423), (60, 2.0003), (120, 1.9799)]
)
def test_students_t_is_that_of_tables(degrees, t):
    assert t_975(degrees) == pytest.approx(t, abs=2e-4)


def test_first_reached_by_hand():
    reward, skill = [0.0, 1.0, 0.5, 3.0], [0.0, -4.0, -5.0, -10.0]
    assert first_reached(reward, skill, 0.0) == 0.0
    assert first_reached(reward, skill, 0.25) == -1.0
    assert first_reached(reward, skill, 1.0) == -4.0
    assert first_reached(reward, skill, 2.0) == pytest.approx(-5.0 - 5.0 * 1.5 / 2.5)  # from the dip on
    assert first_reached(reward, skill, 3.5) is None
    assert first_reached([2.0, 1.0], [7.0, 8.0], 1.5) == 7.0
