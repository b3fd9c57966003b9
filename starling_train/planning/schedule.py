"""The steps of a rollout by the engine `slots` on a GPU, counted from lengths (the rules are those of `rollout.slots`).

All slots take part in every step, free ones too, and each reads as many positions as the longest row has, rounded up.
"""

import random
from collections.abc import Sequence
from math import exp
from statistics import NormalDist
from typing import NamedTuple

REFILL_SHARE = 8  # of rollout.slots: slots are refilled once an eighth of them is free
BUCKET = 256  # of rollout.decode_step: positions that a step reads are a multiple of this
SPREAD = 0.8  # standard deviation of the logarithm of lengths: an assumption, no run of ours stands behind it


class Schedule(NamedTuple):
    """A rollout in numbers.

    steps: how many, without the passes over prompts.
    tokens: drawn in them; the first of each response comes from its prompt's pass.
    read: positions whose keys and values are read, over all steps and slots.
    """

    steps: int
    tokens: int
    read: int


def schedule(prompts: Sequence[int], responses: Sequence[int], slots: int, capacity: int) -> Schedule:
    """Count the rollout of prompts and responses of these lengths.

    capacity: of a slot, the longest prompt and rollout.max_new_tokens.
    """
    count = min(slots, len(prompts))
    waiting = sorted(range(len(prompts)), key=lambda i: prompts[i])  # longest last: taken from the end
    running: list[list[int]] = []  # of each row, tokens so far and tokens to come
    steps = tokens = read = 0
    while waiting or running:
        free = count - len(running)
        if waiting and (free == count or free * REFILL_SHARE >= count):
            admitted = [waiting.pop() for _ in range(min(free, len(waiting)))]
            running += [[prompts[i] + 1, responses[i] - 1] for i in admitted if responses[i] > 1]
            continue
        longest = max(length for length, _ in running)
        # as many steps at once as no row ends in and no new positions are needed for
        ahead = min(min(left for _, left in running), BUCKET - (longest - 1) % BUCKET)
        steps, tokens = steps + ahead, tokens + ahead * len(running)
        read += ahead * count * min(capacity, -(-longest // BUCKET) * BUCKET)
        running = [[length + ahead, left - ahead] for length, left in running if left > ahead]
    return Schedule(steps, tokens, read)


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
