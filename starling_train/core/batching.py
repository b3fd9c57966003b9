"""Sequences to micro-batches: sorted by length and cut by a budget of tokens, never padded to a common maximum."""

from collections.abc import Sequence


def cut_by_tokens(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices grouped, longest sequences first, so that (sequences x longest) of a group stays within the budget.

    A single sequence longer than the budget gets a group of its own. Every index appears exactly once.
    """
    return cut_bundles_by_tokens([[length] for length in lengths], budget)


def cut_bundles_by_tokens(bundles: Sequence[Sequence[int]], budget: int) -> list[list[int]]:
    """As `cut_by_tokens`, for bundles of sequences that stay together, such as the answers to one prompt.

    bundles: lengths of the sequences of each. Returns indices of bundles.
    """
    groups: list[list[int]] = []
    longest = count = 0
    for index in sorted(range(len(bundles)), key=lambda i: (-max(bundles[i]), i)):
        size = len(bundles[index])
        if not groups or (count + size) * longest > budget:
            groups.append([])
            longest, count = max(bundles[index]), 0
        groups[-1].append(index)
        count += size
    return groups
