"""How often a reward model prefers what people (or a stronger model) preferred.

A preference set is JSONL with one comparison a line: {"prompt", "chosen", "rejected"}, or ranked answers as in Nectar,
{"prompt", "answers": [{"answer", "rank"}, ...]} with rank 1 the best; or Nectar's parquet. prompt: the user's text,
Nectar's `\\n\\nHuman: ... \\n\\nAssistant: `, or a list of messages.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from starling_train.data.preferences import Comparison

Score = Callable[[list[list[dict]]], list[float]]


@dataclass(frozen=True)
class PairAccuracy:
    """right of pairs, equal scores half right; by_distance the same by difference of ranks (1 for chosen/rejected)."""

    right: float
    pairs: int
    by_distance: dict[float, tuple[float, int]] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """In [0, 1]; NaN without pairs."""
        return self.right / self.pairs if self.pairs else float("nan")


def evaluate(comparisons: Sequence[Comparison], score: Score) -> PairAccuracy:
    """Score all answers, with `RewardModel.score` for instance, and count the pairs that come out as ranked."""
    scores = iter(score([messages for row in comparisons for messages in row.conversations]))
    return pair_accuracy(([next(scores) for _ in row.ranks] for row in comparisons), [row.ranks for row in comparisons])


def pair_accuracy(scores: Iterable[Sequence[float]], ranks: Iterable[Sequence[float]]) -> PairAccuracy:
    """Over all pairs of answers within a row whose ranks differ. scores, ranks: a sequence a row."""
    right: Counter = Counter()
    pairs: Counter = Counter()
    for row_scores, row_ranks in zip(scores, ranks, strict=True):
        rated = sorted(zip(row_ranks, row_scores, strict=True))
        for (better, high), (worse, low) in combinations(rated, 2):
            if better != worse:
                pairs[worse - better] += 1
                right[worse - better] += 1.0 if high > low else 0.5 if high == low else 0.0
    by_distance = {distance: (float(right[distance]), pairs[distance]) for distance in sorted(pairs)}
    return PairAccuracy(float(sum(right.values())), sum(pairs.values()), by_distance)
