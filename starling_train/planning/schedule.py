"""The steps of a rollout by the engine `slots` on a GPU, counted from lengths (the rules are those of `rollout.slots`).

A step takes one of a few numbers of rows. By length each row reads the positions that it has; else all read as many as
the longest has, rounded up.
"""

import random
from collections.abc import Sequence
from math import exp
from statistics import NormalDist
from typing import NamedTuple

REFILL_SHARE = 8  # of rollout.slots: slots are refilled once an eighth of them is free
BUCKET = 256  # of rollout.graph_steps: positions that a step reads without lengths are a multiple of this
LEAST_ROWS = 4  # of rollout.graph_steps: a step's rows are a power of 2 from here on, or all slots
BLOCK = 128  # keys that FlashAttention reads together, at most, with heads of up to 128
SPREAD = 0.8  # standard deviation of the logarithm of lengths: an assumption, no run of ours stands behind it


class Schedule(NamedTuple):
    """A rollout in numbers.

    steps: how many, without the passes over prompts.
    rows: that take part in them, over all steps.
    tokens: drawn in them; the first of each response comes from its prompt's pass.
    read: positions whose keys and values are read, over all steps and rows.
    real: those of them that a response had.
    """

    steps: int
    rows: int
    tokens: int
    read: int
    real: int


def schedule(
    prompts: Sequence[int], responses: Sequence[int], slots: int, capacity: int, by_length: bool = True
) -> Schedule:
    """Count the rollout of prompts and responses of these lengths.

    capacity: of a slot, the longest prompt and rollout.max_new_tokens. by_length: whether rows read by length.
    """
    count = min(slots, len(prompts))
    waiting = sorted(range(len(prompts)), key=lambda i: prompts[i])  # longest last: taken from the end
    running: list[list[int]] = []  # of each row, tokens so far and tokens to come
    steps = rows = tokens = read = real = 0
    while waiting or running:
        free = count - len(running)
        if waiting and (free == count or free * REFILL_SHARE >= count):
            admitted = [waiting.pop() for _ in range(min(free, len(waiting)))]
            running += [[prompts[i] + 1, responses[i] - 1] for i in admitted if responses[i] > 1]
            continue
        taking_part = rows_of_step(len(running), count)
        longest = max(length for length, _ in running)
        # as many steps at once as no row ends in and, by mask, no new positions are needed for
        ahead = min(left for _, left in running)
        if by_length:
            read += sum(_blocks(length, ahead) for length, _ in running) + ahead * (taking_part - len(running)) * BLOCK
        else:
            ahead = min(ahead, BUCKET - (longest - 1) % BUCKET)
            read += ahead * taking_part * min(capacity, -(-longest // BUCKET) * BUCKET)
        steps, rows, tokens = steps + ahead, rows + ahead * taking_part, tokens + ahead * len(running)
        real += ahead * sum(length for length, _ in running) + len(running) * ahead * (ahead - 1) // 2
        running = [[length + ahead, left - ahead] for length, left in running if left > ahead]
    return Schedule(steps, rows, tokens, read, real)


def rows_of_step(running: int, slots: int) -> int:
    """Return how many rows a step takes when so many run."""
    rows = LEAST_ROWS
    while rows < running:
        rows *= 2
    return min(rows, slots)


def _blocks(length: int, steps: int) -> int:
    """Count the positions that a row reads in so many steps from this length, in whole blocks."""
    return sum(-(-(length + step) // BLOCK) * BLOCK for step in range(steps))


def lengths(count: int, mean: float, limit: int, seed: int) -> list[int]:
    """Return log-normal lengths of about that mean, cut at the limit, in random order: the same every time."""
    marks = [NormalDist(0.0, SPREAD).inv_cdf((index + 0.5) / count) for index in range(count)]
    shape = [exp(mark) for mark in marks]

    def cut(median: float) -> list[int]:
        return [min(limit, max(1, round(median * one))) for one in shape]

    low, high = 0.0, 64.0 * limit
    for _ in range(50):
        median = (low + high) / 2
        low, high = (median, high) if sum(cut(median)) < mean * count else (low, median)
    found = cut(high)
    random.Random(seed).shuffle(found)
    return found
