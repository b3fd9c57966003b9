"""How often a reward model prefers what people (or a stronger model) preferred.

A preference set is what `dpo` and `rm` train on: pairs of a better and a worse answer, or ranked answers, in any form
of `data/rows/forms.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starling_train.config.fields import UserError, given
from starling_train.core.preference import PairCounts, count_pairs
from starling_train.data import preferences
from starling_train.data.preferences import Comparison
from starling_train.data.rows.dropped import Dropped
from starling_train.data.rows.source import is_on_hub
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
    """The suite: how often the reward model prefers the answer that is ranked higher.

    dropped: rows of the set that are not comparisons.
    """

    comparisons: list[Comparison]
    dropped: Dropped

    name = "preference"

    @classmethod
    def find(cls, subjects: Subjects) -> "Preference":
        how = subjects.config.preference
        path, dropped = given(how.path), Dropped()
        if not Path(path).expanduser().exists() and not is_on_hub(path):
            raise UserError(f"preference.path: no such file or directory: {path}; give pairs or ranked answers")
        with about("preference.path"):
            comparisons = preferences.load(
                path, subset=how.subset, split=how.split, columns=how.columns, dropped=dropped, key="preference"
            )[: how.rows]
        identity = {
            "suite": cls.name,
            "model": subjects.reward_identity(),
            "data": data_of(path, ([row.conversations, row.ranks] for row in comparisons)),
            "settings": subjects.reward_settings(),
        }
        return cls(subjects, identity, comparisons, dropped)

    def plan(self) -> str:
        ranks = [row.ranks for row in self.comparisons]
        pairs, answers = count_pairs(ranks, ranks).pairs, sum(map(len, ranks))
        where = f"{self.identity['data']['path']} with {kinds.described(self.subjects.config.reward)}"
        return f"{pairs:,} pairs among {answers:,} answers to {len(ranks):,} prompts of {where}{self.dropped.told()}"

    def check(self, dry_run: bool) -> None:
        self.subjects.check_reward()
        self.subjects.admit([row.conversations[0][:-1] for row in self.comparisons], [{} for _ in self.comparisons])

    def measure(self, folder: Path, say: Say) -> dict[str, Any]:
        conversations = [messages for row in self.comparisons for messages in row.conversations]
        with self.journal(folder, "scores") as journal, about("preference"):
            found = score(conversations, self.subjects, journal, self.progress(say, "answers scored"))
        scores = [value for value in found.scores if value is not None]
        if without := len(found.scores) - len(scores):
            raise UserError(f"reward: {without} of {len(found.scores)} answers were not scored, so pairs have no order")
        counts = evaluate(self.comparisons, lambda _: scores)
        by_distance = [
            {"distance": distance, "accuracy": right / pairs, "pairs": pairs}
            for distance, (right, pairs) in counts.by_distance.items()
        ]
        result = {"accuracy": counts.accuracy, "pairs": counts.pairs, "by_distance": by_distance}
        return result | found.cut

    def lines(self, result: dict[str, Any]) -> list[ResultLine]:
        parts = result["by_distance"]
        named_parts = [(f"ranks {part['distance']:g} apart", part["accuracy"], part["pairs"]) for part in parts]
        return shares([("", result["accuracy"], result["pairs"]), *named_parts])

    def notes(self, result: dict[str, Any]) -> list[str]:
        return truncation(result)
