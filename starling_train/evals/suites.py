"""The suites whose results are shares of right ones: the reward model's preferences, the policy's function calls."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from starling_train.config.fields import UserError
from starling_train.data import openchat, preferences, row_files
from starling_train.evals import function_calling, preference
from starling_train.evals.subjects import Subjects
from starling_train.evals.suite import Line, Progress, Say, about, check_finite, digest, named, unique
from starling_train.files.journal import Journal

ANSWERS_AT_A_TIME = 256


@dataclass
class Preference:
    """How often the reward model prefers what is ranked higher."""

    subjects: Subjects
    comparisons: list[preferences.Comparison]
    identity: dict[str, Any]
    name: str = "preference"

    @classmethod
    def find(cls, subjects: Subjects) -> "Preference":
        """Read the preference set and look up the reward model. Raises UserError."""
        path, rows = subjects.config.preference.path, subjects.config.preference.rows
        local = Path(path).expanduser()
        if not local.exists() and not row_files.HUB_ID.fullmatch(path):
            raise UserError(f"preference.path: no such file or directory: {local}; give JSONL, or Nectar's parquet")
        with about("preference.path"):
            comparisons = preferences.load(path)[:rows]
        identity = {
            "suite": cls.name,
            "model": subjects.reward_identity(),
            "data": {"path": named(path)} | digest([row.conversations, row.ranks] for row in comparisons),
            "settings": subjects.reward_settings(),
        }
        return cls(subjects, comparisons, identity)

    def plan(self) -> str:
        ranks = [row.ranks for row in self.comparisons]
        pairs, answers = preference.pair_accuracy(ranks, ranks).pairs, sum(map(len, ranks))
        reward = self.subjects.config.reward
        where = f"{self.identity['data']['path']} with {reward.place()} ({reward.kind})"
        return f"{pairs:,} pairs among {answers:,} answers to {len(ranks):,} prompts of {where}"

    def check(self, dry_run: bool) -> None:
        self.subjects.check_reward()

    def measure(self, folder: Path, say: Say) -> dict[str, Any]:
        with Journal(folder, f"{self.name}.scores", self.identity) as journal, about("preference"):
            found = preference.evaluate(
                self.comparisons, lambda conversations: score(conversations, self.subjects, journal, self.name, say)
            )
            truncated = sum(row["truncated"] for row in journal.rows.values())
        by_distance = [
            {"distance": distance, "accuracy": right / pairs, "pairs": pairs}
            for distance, (right, pairs) in found.by_distance.items()
        ]
        result = {"accuracy": found.accuracy, "pairs": found.pairs, "by_distance": by_distance}
        return result | {"truncated_answers": truncated}

    def lines(self, result: dict[str, Any]) -> list[Line]:
        parts = result["by_distance"]
        named_parts = [(f"ranks {part['distance']:g} apart", part["accuracy"], part["pairs"]) for part in parts]
        return shares([("", result["accuracy"], result["pairs"]), *named_parts])

    def notes(self, result: dict[str, Any]) -> list[str]:
        return truncation(result)


@dataclass
class FunctionCalling:
    """How many of the leaderboard's cases the policy answers rightly."""

    subjects: Subjects
    cases: list[function_calling.Case]
    max_new_tokens: int
    identity: dict[str, Any]
    name: str = "function_calling"

    @classmethod
    def find(cls, subjects: Subjects) -> "FunctionCalling":
        """Read the cases and look up the policy. Raises UserError."""
        how = subjects.config.function_calling
        with about("function_calling.path"):
            cases = function_calling.load_cases(Path(how.path).expanduser(), limit=how.cases)
        identity = {
            "suite": cls.name,
            "model": subjects.policy_identity(),
            "data": {"path": named(how.path)} | digest(asdict(case) for case in cases),
            "settings": subjects.greedy_settings(how.max_new_tokens),
        }
        return cls(subjects, cases, how.max_new_tokens, identity)

    def plan(self) -> str:
        where = f"{self.identity['data']['path']} with {self.subjects.config.model.path}"
        return f"{len(self.cases):,} cases of {where}, greedy, up to {self.max_new_tokens} tokens an answer"

    def check(self, dry_run: bool) -> None:
        self.subjects.check_policy()

    def measure(self, folder: Path, say: Say) -> dict[str, Any]:
        keys = unique([case.id for case in self.cases])
        with Journal(folder, f"{self.name}.answers", self.identity) as journal:

            def answer(conversations: list[list[dict]]) -> list[str]:
                prompts = [openchat.encode(messages, self.subjects.tokenizer) for messages in conversations]
                progress = Progress(say, self.name, "answers", len(keys), len(journal.rows))
                self.subjects.answer(
                    dict(zip(keys, prompts, strict=True)),
                    journal,
                    self.subjects.limits(self.max_new_tokens),
                    progress,
                    greedy=True,
                )
                return [journal.rows[key]["response"] for key in keys]

            found = function_calling.evaluate(self.cases, answer)
        cases = Counter(case.category for case in self.cases)
        by_category = [
            {"category": name, "accuracy": percent / 100, "cases": cases[name]}
            for name, percent in found.by_category.items()
        ]
        return {"accuracy": found.accuracy / 100, "cases": len(self.cases), "by_category": by_category}

    def lines(self, result: dict[str, Any]) -> list[Line]:
        parts = [(part["category"], part["accuracy"], part["cases"]) for part in result["by_category"]]
        return shares([("", result["accuracy"], result["cases"]), *parts])

    def notes(self, result: dict[str, Any]) -> list[str]:
        return []


def score(conversations: list[list[dict]], subjects: Subjects, journal: Journal, suite: str, say: Say) -> list[float]:
    """A score for every conversation, from the journal where it has one: {"score", "truncated"} by place.

    truncated: of a group's answers, how many were too long for the reward model; it stands at the group's first.
    Raises UserError for a score that is not finite.
    """
    places = [place for place in range(len(conversations)) if str(place) not in journal]
    progress = Progress(say, suite, "answers scored", len(conversations), len(journal.rows))
    model: Any = subjects.reward() if places else None
    for start in range(0, len(places), ANSWERS_AT_A_TIME):
        group = places[start : start + ANSWERS_AT_A_TIME]
        before = model.truncated
        scores = model.score([conversations[place] for place in group])
        check_finite(scores)
        for place, value in zip(group, scores, strict=True):
            journal.add(str(place), {"score": value, "truncated": model.truncated - before})
            before = model.truncated
            progress.step()
    return [journal.rows[str(place)]["score"] for place in range(len(conversations))]


def shares(parts: list[tuple[str, float, int]]) -> list[Line]:
    """(part, share of right ones, of how many) as lines, in percent."""
    return [Line(part, f"{100 * share:.2f} %", count) for part, share, count in parts]


def truncation(result: dict[str, Any]) -> list[str]:
    count = result.get("truncated_answers")
    return [f"{count:,} answers were longer than reward.max_length and lost their beginning"] if count else []
