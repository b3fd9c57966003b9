"""How often a reward model prefers what people (or a stronger model) preferred.

A preference set is JSONL with one comparison a line: {"prompt", "chosen", "rejected"}, or ranked answers as in Nectar,
{"prompt", "answers": [{"answer", "rank"}, ...]} with rank 1 the best; or Nectar's parquet. prompt: the user's text,
Nectar's `\\n\\nHuman: ... \\n\\nAssistant: `, or a list of messages.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from starling_train.config.fields import UserError
from starling_train.data import preferences, row_files
from starling_train.data.preferences import Comparison
from starling_train.evals.subjects import Subjects, score
from starling_train.evals.suite import Line, Say, Suite, about, data_of, shares, truncation
from starling_train.rewards import kinds

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


@dataclass
class Preference(Suite):
    """How often the reward model prefers what is ranked higher."""

    comparisons: list[Comparison]

    name = "preference"

    @classmethod
    def find(cls, subjects: Subjects) -> "Preference":
        path, rows = subjects.config.preference.path, subjects.config.preference.rows
        local = Path(path).expanduser()
        if not local.exists() and not row_files.HUB_ID.fullmatch(path):
            raise UserError(f"preference.path: no such file or directory: {local}; give JSONL, or Nectar's parquet")
        with about("preference.path"):
            comparisons = preferences.load(path)[:rows]
        identity = {
            "suite": cls.name,
            "model": subjects.reward_identity(),
            "data": data_of(path, ([row.conversations, row.ranks] for row in comparisons)),
            "settings": subjects.reward_settings(),
        }
        return cls(subjects, identity, comparisons)

    def plan(self) -> str:
        ranks = [row.ranks for row in self.comparisons]
        pairs, answers = pair_accuracy(ranks, ranks).pairs, sum(map(len, ranks))
        where = f"{self.identity['data']['path']} with {kinds.described(self.subjects.config.reward)}"
        return f"{pairs:,} pairs among {answers:,} answers to {len(ranks):,} prompts of {where}"

    def check(self, dry_run: bool) -> None:
        self.subjects.check_reward()

    def measure(self, folder: Path, say: Say) -> dict[str, Any]:
        conversations = [messages for row in self.comparisons for messages in row.conversations]
        with self.journal(folder, "scores") as journal, about("preference"):
            scores, truncated = score(conversations, self.subjects, journal, self.progress(say, "answers scored"))
        accuracy = evaluate(self.comparisons, lambda _: scores)
        by_distance = [
            {"distance": distance, "accuracy": right / pairs, "pairs": pairs}
            for distance, (right, pairs) in accuracy.by_distance.items()
        ]
        result = {"accuracy": accuracy.accuracy, "pairs": accuracy.pairs, "by_distance": by_distance}
        return result | {"truncated_answers": truncated}

    def lines(self, result: dict[str, Any]) -> list[Line]:
        parts = result["by_distance"]
        named_parts = [(f"ranks {part['distance']:g} apart", part["accuracy"], part["pairs"]) for part in parts]
        return shares([("", result["accuracy"], result["pairs"]), *named_parts])

    def notes(self, result: dict[str, Any]) -> list[str]:
        return truncation(result)
