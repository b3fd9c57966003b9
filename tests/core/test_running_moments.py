"""Running mean and deviation against the statistics module and numbers computed by hand."""

import json
import random
import statistics

import pytest

from starling_train.core.running_moments import RunningMoments


def test_by_hand():
    moments = RunningMoments()
    assert (moments.mean, moments.std) == (0.0, 1.0)
    moments.update([2.0])
    assert (moments.mean, moments.std) == (2.0, 1.0)
    moments.update([4.0, 6.0])
    assert (moments.mean, moments.std, moments.count) == (4.0, 2.0, 3)


@pytest.mark.parametrize("shift", [0.0, -8.32, 1e8])
def test_any_cut_into_batches_gives_the_moments_of_the_whole(shift):
    draw = random.Random(0)
    numbers = [shift + draw.gauss(0.0, 2.1) for _ in range(500)]
    moments = RunningMoments()
    left = numbers
    while left:
        size = draw.randrange(0, 40)
        moments.update(left[:size])
        left = left[size:]
    assert moments.mean == pytest.approx(statistics.fmean(numbers), rel=1e-12)
    assert moments.std == pytest.approx(statistics.stdev(numbers), rel=1e-6)


def test_state_survives_json_to_the_last_bit():
    straight, resumed = RunningMoments(), RunningMoments()
    straight.update([0.1, 0.7, -3.3])
    resumed.load_state_dict(json.loads(json.dumps(straight.state_dict())))
    for moments in (straight, resumed):
        moments.update([1 / 3, 2 / 3])
    assert resumed.state_dict() == straight.state_dict() and resumed.std == straight.std


def test_a_score_that_is_not_finite_is_refused():
    with pytest.raises(AssertionError, match="not finite"):
        RunningMoments().update([1.0, float("nan")])
