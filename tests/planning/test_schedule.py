"""The steps of a rollout, counted from lengths alone, against sums done by hand."""

import statistics

import pytest

from starling_train.planning import memory
from starling_train.planning import schedule as module
from starling_train.planning.schedule import Schedule, lengths, schedule
from starling_train.rollout import graph_steps, lean_decoder, slots


def test_the_schedule_by_hand_where_rows_are_masked():
    # two slots; the longest prompts first: 12 and 11, with 4 and 2 tokens, of which the prompts' pass draws one each.
    # One step of both; the second ends, its slot takes the prompt of 10, whose 4 - 1 steps outlast the other's 2
    # (in positions: 13 + 12; 14, 15 and of the third 11, 12; it is alone at 13)
    assert schedule([10, 11, 12], [4, 2, 4], 2, 300, by_length=False) == Schedule(
        steps=4, rows=4 * 2, tokens=1 + 3 + 3, read=4 * 2 * 256, real=13 + 12 + 14 + 15 + 11 + 12 + 13
    )


def test_a_row_beyond_is_read_too_and_positions_come_in_multiples():
    # 254 and a first token: steps write positions 254, 255 (256 are read), 256 and 257 (512, but the slot ends at 260)
    real = 255 + 256 + 257 + 258
    masked = schedule([254, 10], [5, 1], 2, 260, by_length=False)
    assert masked == Schedule(steps=4, rows=4 * 2, tokens=4, read=2 * (2 * 256 + 2 * 260), real=real)


def test_by_length_a_row_reads_its_own_blocks_and_a_row_beyond_one():
    # 3 rows of 4: those of 130, 128 and 5 tokens; after their first step the shortest ends
    found = schedule([129, 127, 4], [3, 3, 2], 4, 512)
    assert found == Schedule(
        steps=2, rows=3 + 3, tokens=3 + 2, read=(256 + 128 + 128) + (256 + 256 + 128), real=130 + 128 + 5 + 131 + 129
    )
    assert schedule([9] * 5, [3] * 5, 16, 512).rows == 2 * 5  # no more slots than prompts
    assert schedule([9] * 9, [2] * 8 + [3], 9, 512).rows == 9 + 4


@pytest.mark.parametrize("slots", [32, 64])
def test_a_rollout_of_small_reads_little_more_than_there_is(slots):
    """The lengths that the recipe `small` may see: 5 to 9 times, before rows were read by length."""
    for seed in range(5):
        drawn = lengths(64, 170, 1024, seed), lengths(64, 338, 1024, seed + 5)
        found = schedule(*drawn, slots, 2048)
        assert found.read < 1.35 * found.real
        assert schedule(*drawn, slots, 2048, by_length=False).read < 4.3 * found.real


def test_slots_wait_until_an_eighth_is_free():
    # 16 slots, 17 prompts of one length, taken from the end: the last of all is the first. After one step a single slot
    # is free, too few; after three all are, and the prompt that waited needs one step more
    assert schedule([9] * 17, [2, *[4] * 15, 2], 16, 99).steps == 3 + 1
    assert schedule([9] * 17, [2, *[4] * 14, 2, 2], 16, 99).steps == 3  # two free slots: beside the others


def test_the_engine_has_the_same_constants():
    assert (module.REFILL_SHARE, module.BUCKET) == (slots.REFILL_SHARE, graph_steps.BUCKET)
    assert memory.LEAN_FROM == lean_decoder.FROM
    assert memory.CAPACITY == slots.CAPACITY
    for count in (1, 3, 4, 20, 32, 64):
        for running in range(1, count + 1):
            assert module.rows_of_step(running, count) == min(n for n in graph_steps.row_counts(count) if n >= running)


@pytest.mark.parametrize("mean, limit", [(338, 1024), (170, 1024), (500, 512), (1, 8)])
def test_lengths_have_the_mean_within_the_limit(mean, limit):
    drawn = lengths(64, mean, limit, seed=0)
    assert statistics.mean(drawn) == pytest.approx(mean, abs=1) and min(drawn) >= 1 and max(drawn) <= limit
    assert drawn == lengths(64, mean, limit, seed=0) and sorted(drawn) == sorted(lengths(64, mean, limit, seed=1))
