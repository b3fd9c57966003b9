"""TODO docstring."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from starling_train.data import openchat
from starling_train.evals import function_calling
from starling_train.evals.subjects import Subjects
from starling_train.evals.suite import Line, Progress, Say, about, digest, named, shares, unique
from starling_train.files.journal import Journal


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
