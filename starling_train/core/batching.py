"""Sequences to micro-batches: sorted by length and cut by a budget of tokens, never padded to a common maximum."""

from collections.abc import Sequence


def cut_by_tokens(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices grouped, longest sequences first, so that (sequences x longest) of a group stays within the budget.

    A single sequence longer than the budget gets a group of its own. Every index appears exactly once.
    """
    groups: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not groups or (len(groups[-1]) + 1) * longest > budget:
            groups.append([])
            longest = lengths[index]
        groups[-1].append(index)
    return groups
