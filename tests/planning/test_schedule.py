"""The steps of a rollout, counted from lengths alone, against sums done by hand."""

import statistics

import pytest

from starling_train.planning import schedule as module
from starling_train.planning.schedule import Schedule, lengths, schedule
from starling_train.rollout import decode_step, slots


def test_the_schedule_by_hand():
    # two slots; the longest prompts first: 12 and 11, with 4 and 2 tokens, of which the prompts' pass draws one each.
    # One step of both; the second ends, its slot takes the prompt of 10, whose 4 - 1 steps outlast the other's 2
    assert schedule([10, 11, 12], [4, 2, 4], 2, 300) == Schedule(steps=4, tokens=1 + 3 + 3, read=4 * 2 * 256)


def test_a_free_slot_is_read_too_and_positions_come_in_multiples():
    # 254 and a first token: steps write positions 254, 255 (256 are read), 256 and 257 (512, but the slot ends at 260)
    assert schedule([254, 10], [5, 1], 2, 260) == Schedule(steps=4, tokens=4, read=2 * (2 * 256 + 2 * 260))


def test_slots_wait_until_an_eighth_is_free():
    # 16 slots, 17 prompts of one length, taken from the end: the last of all is the first. After one step a single slot
    # is free, too few; after three all are, and the prompt that waited needs one step more
    assert schedule([9] * 17, [2, *[4] * 15, 2], 16, 99).steps == 3 + 1
    assert schedule([9] * 17, [2, *[4] * 14, 2, 2], 16, 99).steps == 3  # two free slots: beside the others


def test_the_engine_has_the_same_constants():
    assert (module.REFILL_SHARE, module.BUCKET) == (slots.REFILL_SHARE, decode_step.BUCKET)


@pytest.mark.parametrize("mean, limit", [(338, 1024), (170, 1024), (500, 512), (1, 8)])
def test_lengths_have_the_mean_within_the_limit(mean, limit):
    drawn = lengths(64, mean, limit, seed=0)
    assert statistics.mean(drawn) == pytest.approx(mean, abs=1) and min(drawn) >= 1 and max(drawn) <= limit
    assert drawn == lengths(64, mean, limit, seed=0) and sorted(drawn) == sorted(lengths(64, mean, limit, seed=1))
