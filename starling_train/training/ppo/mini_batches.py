"""A step's sequences divided into mini-batches in which every process has about as much to do.

The processes of a run exchange gradients after each mini-batch: it takes as long as the one with the most tokens in it.
`Runtime.shard` gives process r of W every W-th sequence. With m sequences a mini-batch, the sequences of a step whose
numbers leave the same remainder by m are a stratum, and each mini-batch takes one of every stratum: for any W that
divides m it then holds m / W sequences of every process, and nobody needs to know W.

Which of a stratum goes into which mini-batch balances tokens, by the differencing method for parts of equal size
(Karmarkar and Karp 1982; balanced: Michiels et al. 2003): two sets of parts become one by adding the longest of one to
the shortest of the other. Strata of the same remainder by m/2, m/4, ... are joined first, which are those of one of
m/2, m/4, ... processes. Parts of some sequences are about as long as each other; from then on longest is added to
longest, so that processes have what is left of a difference in the same mini-batch.
"""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple, Protocol

import torch

# Share of its length by which a sequence may count as shorter or longer, drawn in each epoch: sequences of like length
# change places, so that epochs have other mini-batches.
SPREAD = 0.1

ALIKE = 4  # sequences in each part, from which on parts are about as long as each other

Part = tuple[float, list[int]]  # of a mini-batch: tokens, and the indices of its sequences


class Numbered(Protocol):
    """A sequence with its number among all of the step, and its tokens."""

    @property
    def number(self) -> int: ...
    @property
    def tokens(self) -> int: ...


class StepSequences(NamedTuple):
    """The sequences of a step that are learned from, over all processes and alike on all.

    of_step: all sequences of the step, with those that are left out.
    numbers: of each among all of the step, counted from 0, in order.
    tokens: of each that go through the model, of prompt and response.
    group: neighbours in number that have one prompt.
    """

    of_step: int
    numbers: list[int]
    tokens: list[int]
    group: int = 1

    @classmethod
    def of(cls, of_step: int, used: Sequence[Numbered], group: int) -> "StepSequences":
        """Take the numbers and tokens of those that are learned from."""
        return cls(of_step, [one.number for one in used], [one.tokens for one in used], group)


def draw(sequences: StepSequences, count: int, generator: torch.Generator) -> list[list[int]]:
    """Divide sequences into at most `count` mini-batches, none empty; returns indices into `sequences.numbers`.

    Every index appears once. It depends on the generator and the sequences, not on the number of processes. Groups stay
    whole, so that their prompt is computed once, if there are as many as mini-batches, and are cut into as few parts as
    that takes if not.
    """
    if sequences.group > 1:
        return _draw_groups(sequences, count, generator)
    spread = 1.0 - SPREAD + 2 * SPREAD * torch.rand(len(sequences.tokens), generator=generator, dtype=torch.float64)
    order = torch.randperm(count, generator=generator).tolist()
    parts = _joined(_strata(sequences, count, spread.tolist()))
    return [sorted(parts[index][1]) for index in order if parts[index][1]]


def _draw_groups(sequences: StepSequences, count: int, generator: torch.Generator) -> list[list[int]]:
    """Divide groups, or parts of groups, as if each were a sequence."""
    groups = sequences.of_step // sequences.group
    parts = min(sequences.group, -(-count // groups))  # of each group
    members: dict[int, list[int]] = {}
    for index, number in enumerate(sequences.numbers):
        group, place = divmod(number, sequences.group)
        # numbered so that one of n processes has those of a remainder by n, as its prompts are dealt out
        members.setdefault(place * parts // sequences.group * groups + group, []).append(index)
    units = sorted(members)
    tokens = [sum(sequences.tokens[index] for index in members[unit]) for unit in units]
    drawn = draw(StepSequences(groups * parts, units, tokens), count, generator)
    return [sorted(index for place in places for index in members[units[place]]) for places in drawn]


def _strata(sequences: StepSequences, count: int, spread: list[float]) -> list[list[Part]]:
    """Return each stratum as `count` parts of one sequence, the longest first; the last are empty if it has fewer."""
    strata: list[list[Part]] = [[] for _ in range(max(1, -(-sequences.of_step // count)))]
    for index, number in enumerate(sequences.numbers):
        strata[number % len(strata)].append((sequences.tokens[index] * spread[index], [index]))
    return [_longest_first(parts) + [(0.0, [])] * (count - len(parts)) for parts in strata]


def _joined(strata: list[list[Part]]) -> list[Part]:
    """Join strata to one, those of the same process first, whichever of the possible numbers of processes there is."""
    while len(strata) > 1:
        remainders = len(strata) // _smallest_factor(len(strata))
        strata = [reduce(_paired, strata[first::remainders]) for first in range(remainders)]
    return strata[0]


def _paired(one: list[Part], other: list[Part]) -> list[Part]:
    """Add the shortest part of one to the longest of the other, and so on; longest to longest if they are alike."""
    alike = all(len(indices) >= ALIKE for _, indices in (*one, *other))
    pairs = zip(one, other if alike else reversed(other), strict=True)
    return _longest_first([(a + b, [*i, *j]) for (a, i), (b, j) in pairs])


def _longest_first(parts: Sequence[Part]) -> list[Part]:
    return sorted(parts, key=lambda part: -part[0])  # stable: equal ones stay in order


def _smallest_factor(number: int) -> int:
    return next(factor for factor in range(2, number + 1) if number % factor == 0)
