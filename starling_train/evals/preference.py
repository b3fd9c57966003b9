"""How often a reward model prefers what people (or a stronger model) preferred.

A preference set is JSONL with one comparison a line: {"prompt", "chosen", "rejected"}, or ranked answers as in Nectar,
{"prompt", "answers": [{"answer", "rank"}, ...]} with rank 1 the best; or Nectar's parquet. prompt: the user's text,
Nectar's `\\n\\nHuman: ... \\n\\nAssistant: `, or a list of messages.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starling_train.config.fields import UserError, given
from starling_train.core.preference import PairCounts, count_pairs
from starling_train.data import preferences, row_files
from starling_train.data.preferences import Comparison
from starling_train.evals.subjects import Subjects, score
from starling_train.evals.suite import ResultLine, Say, Suite, about, data_of, shares, truncation
from starling_train.rewards import kinds

Score = Callable[[list[list[dict]]], list[float]]


def evaluate(comparisons: Sequence[Comparison], score: Score) -> PairCounts:
    """Score all answers, for instance with `RewardModel.score`, and count the pairs that come out as ranked."""
    scores = iter(score([messages for row in comparisons for messages in row.conversations]))
    return count_pairs(([next(scores) for _ in row.ranks] for row in comparisons), [row.ranks for row in comparisons])


@dataclass
class Preference(Suite):
    """The suite: how often the reward model prefers the answer that is ranked higher."""

    comparisons: list[Comparison]

    name = "preference"

    @classmethod
    def find(cls, subjects: Subjects) -> "Preference":
        path, rows = given(subjects.config.preference.path), subjects.config.preference.rows
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
        pairs, answers = count_pairs(ranks, ranks).pairs, sum(map(len, ranks))
        where = f"{self.identity['data']['path']} with {kinds.described(self.subjects.config.reward)}"
        return f"{pairs:,} pairs among {answers:,} answers to {len(ranks):,} prompts of {where}"

    def check(self, dry_run: bool) -> None:
        self.subjects.check_reward()
        self.subjects.admit([row.conversations[0][:-1] for row in self.comparisons], [{} for _ in self.comparisons])

    def measure(self, folder: Path, say: Say) -> dict[str, Any]:
        conversations = [messages for row in self.comparisons for messages in row.conversations]
        with self.journal(folder, "scores") as journal, about("preference"):
            found, truncated = score(conversations, self.subjects, journal, self.progress(say, "answers scored"))
        if without := sum(value is None for value in found):
            raise UserError(f"reward: {without} of {len(found)} answers were not scored, so pairs have no order")
        scores = [value for value in found if value is not None]
        counts = evaluate(self.comparisons, lambda _: scores)
        by_distance = [
            {"distance": distance, "accuracy": right / pairs, "pairs": pairs}
            for distance, (right, pairs) in counts.by_distance.items()
        ]
        result = {"accuracy": counts.accuracy, "pairs": counts.pairs, "by_distance": by_distance}
        return result | {"truncated_answers": truncated}

    def lines(self, result: dict[str, Any]) -> list[ResultLine]:
        parts = result["by_distance"]
        named_parts = [(f"ranks {part['distance']:g} apart", part["accuracy"], part["pairs"]) for part in parts]
        return shares([("", result["accuracy"], result["pairs"]), *named_parts])

    def notes(self, result: dict[str, Any]) -> list[str]:
        return truncation(result)
