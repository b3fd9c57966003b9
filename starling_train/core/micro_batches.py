"""Sequences to micro-batches: sorted by length and cut by a budget of tokens, never padded to a common maximum.

`cut_packed` is for passes without padding, `cut_by_tokens` for padded ones.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

OVERHEAD = 64  # tokens of padding that are worth having to avoid one more micro-batch, where nothing is known
# Seconds that a layer costs however few tokens it gets (launching its kernels), and about how many operations a second.
LAYER_S = 2.5e-4
OPERATIONS_PER_S = {"cpu": 1e11, "cuda": 5e14}


def overhead_of(parameters: int, layers: int, device: str) -> int:
    """Return how many tokens a model computes in the time of an empty micro-batch: few for a large model on a CPU.

    A token takes 2 operations a parameter forwards; forwards and backwards both count three times as much.
    """
    return max(8, round(LAYER_S * layers * OPERATIONS_PER_S.get(device, 1e11) / (2 * parameters)))


def cut_by_tokens(lengths: Sequence[int], budget: int, overhead: int = OVERHEAD) -> list[list[int]]:
    """Group indices, longest sequences first, so that (sequences x longest) of a group stays within the budget.

    Among all ways to cut the sorted sequences, the one with the fewest padded tokens, each group counting `overhead`
    tokens more. A single sequence longer than the budget gets a group of its own. Every index appears exactly once.
    """
    return cut_bundles_by_tokens([[length] for length in lengths], budget, overhead)


def cut_bundles_by_tokens(bundles: Sequence[Sequence[int]], budget: int, overhead: int = OVERHEAD) -> list[list[int]]:
    """Group bundles of sequences that stay together, such as the answers to one prompt, as `cut_by_tokens` does.

    bundles: lengths of the sequences of each. Returns indices of bundles.
    """
    order = sorted(range(len(bundles)), key=lambda i: (-max(bundles[i]), i))
    longest = [max(bundles[i]) for i in order]
    counts = [len(bundles[i]) for i in order]
    # least[k]: cost of the best way to cut the bundles from k on; end[k]: where its first group ends
    least, end = [0] * (len(order) + 1), [0] * len(order)
    for first in reversed(range(len(order))):
        least[first], count = -1, 0
        for last in range(first, len(order)):
            count += counts[last]
            # a bundle that is shorter than the first by more than a group costs is better off in the next group
            if last > first and (count * longest[first] > budget or longest[first] - longest[last] > overhead):
                break
            cost = count * longest[first] + overhead + least[last + 1]
            if least[first] < 0 or cost <= least[first]:
                least[first], end[first] = cost, last + 1
    groups, first = [], 0
    while first < len(order):
        groups.append(order[first : end[first]])
        first = end[first]
    return groups


PADDED_LIMIT = 2  # times the budget: what attention may pad to, which alone pads in a packed pass


class Beginning(NamedTuple):
    """What a sequence has in common with others that name the same number. tokens: of its own length."""

    number: int
    tokens: int


def cut_packed(
    lengths: Sequence[int], budget: int, beginnings: Sequence[Beginning] | None = None, pads: bool = True
) -> list[list[int]]:
    """Group indices, longest sequences first, so that the tokens of a group stay within the budget.

    The fewest groups that sequences in this order can be cut into, and among those cuts one whose largest group is
    smallest. (sequences x longest) of a group stays within twice the budget. A sequence longer than the budget gets a
    group of its own. Every index appears exactly once.

    lengths: of the sequences.
    budget: tokens.
    beginnings: of each sequence; those of the same one stay together, and its tokens count once in each group.
    pads: whether attention pads, as on a GPU; where beginnings are given and it does not, there is no second limit.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    if beginnings:
        longest: dict[int, int] = {}
        for index in order:
            longest.setdefault(beginnings[index].number, len(longest))
        order.sort(key=lambda i: longest[beginnings[i].number])
    most_padded = PADDED_LIMIT * budget if pads or not beginnings else math.inf
    fewest = len(_fill(lengths, order, budget, most_padded, beginnings))
    low, high = 1, budget  # in between lies the smallest limit at which the fewest groups suffice
    while low < high:
        middle = (low + high) // 2
        if len(_fill(lengths, order, middle, most_padded, beginnings)) > fewest:
            low = middle + 1
        else:
            high = middle
    return _fill(lengths, order, high, most_padded, beginnings)


def _fill(
    lengths: Sequence[int],
    order: Sequence[int],
    most: int,
    most_padded: float,
    beginnings: Sequence[Beginning] | None = None,
) -> list[list[int]]:
    """Group neighbours, filling each group up to `most` tokens, and `most_padded` where it is padded."""
    groups: list[list[int]] = []
    tokens = widest = 0
    for index in order:
        group = groups[-1] if groups else []
        own = lengths[index]
        if beginnings and group and beginnings[group[-1]].number == beginnings[index].number:
            own -= beginnings[index].tokens
        padded = (len(group) + 1) * max(widest, lengths[index]) if group else 0
        if not group or tokens + own > most or padded > most_padded:
            groups.append([])
            tokens, widest, own = 0, 0, lengths[index]
        groups[-1].append(index)
        tokens, widest = tokens + own, max(widest, lengths[index])
    return groups
