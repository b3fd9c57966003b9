"""Lengths of a step's sequences as the recipe `small` may see them, for what is counted without a model.

Log-normal, cut at the limits: prompts of 168 tokens in the mean, responses of 336 (`small` allows 1,024 of each). No run
of ours stands behind the numbers: they are those that the desk-check of November 2026 counted with.
"""

import math
import random


def lengths(count: int, seed: int, limit: int = 1024) -> tuple[list[int], list[int]]:
    """Draw the tokens of `count` prompts and of their responses."""
    generator = random.Random(seed)

    def draw(median: float, spread: float, least: int) -> list[int]:
        drawn = (round(generator.lognormvariate(math.log(median), spread)) for _ in range(count))
        return [min(limit, max(least, length)) for length in drawn]

    return draw(120, 0.85, 8), draw(260, 0.8, 1)
