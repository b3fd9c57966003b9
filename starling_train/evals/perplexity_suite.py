"""The suite `perplexity`: how well the policy predicts given text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starling_train.config.sections import PerplexityConfig
from starling_train.evals import perplexity
from starling_train.evals.perplexity import Perplexity as Found
from starling_train.evals.perplexity import Window
from starling_train.evals.subjects import Subjects
from starling_train.evals.suite import Line, Progress, Say, about, digest, named
from starling_train.files.journal import Journal
from starling_train.models.budget import Budget

WINDOWS_AT_A_TIME = 64


@dataclass
class Perplexity:
    """exp of the mean negative log-likelihood of a token of the text."""

    subjects: Subjects
    windows: list[Window]
    identity: dict[str, Any]
    name: str = "perplexity"

    @classmethod
    def find(cls, subjects: Subjects) -> "Perplexity":
        """Read the text and look up the policy. Raises UserError."""
        how = subjects.config.perplexity
        with about("perplexity.path"):
            windows = read(how, subjects.tokenizer)
        identity = {
            "suite": cls.name,
            "model": subjects.policy_identity(),
            "data": {"path": named(how.path)} | digest([window.ids, window.predicted] for window in windows),
            "settings": {"window": how.window, **subjects.policy_settings()},
        }
        return cls(subjects, windows, identity)

    def plan(self) -> str:
        tokens = sum(len(window.predicted) for window in self.windows)
        where = f"{self.identity['data']['path']} with {self.subjects.config.model.path}"
        return f"{tokens:,} tokens in {len(self.windows):,} windows of {where}"

    def check(self, dry_run: bool) -> None:
        self.subjects.check_policy()
        self.subjects.check_room(max(len(window.ids) for window in self.windows), "a window", "perplexity.window")

    def measure(self, folder: Path, say: Say) -> dict[str, Any]:
        amount = self.subjects.config.algorithm.tokens_per_microbatch
        budget = Budget("algorithm.tokens_per_microbatch", amount)
        starts = range(0, len(self.windows), WINDOWS_AT_A_TIME)
        with Journal(folder, f"{self.name}.windows", self.identity) as journal:
            done = WINDOWS_AT_A_TIME * len(journal.rows)
            progress = Progress(say, self.name, "windows", len(self.windows), min(done, len(self.windows)))
            for start in starts:
                if str(start) in journal:
                    continue
                group = self.windows[start : start + WINDOWS_AT_A_TIME]
                part = perplexity.evaluate(self.subjects.policy(), group, budget)
                journal.add(str(start), {"nats": part.nats, "tokens": part.tokens})
                progress.step(len(group))
            rows = [journal.rows[str(start)] for start in starts]
        tokens = sum(row["tokens"] for row in rows)
        found = Found(sum(row["nats"] * row["tokens"] for row in rows) / tokens, tokens)
        return {"nats": found.nats, "perplexity": min(found.perplexity, 1e300), "tokens": tokens}

    def lines(self, result: dict[str, Any]) -> list[Line]:
        return [
            Line("", f"{result['perplexity']:.5g}", result["tokens"]),
            Line("nats a token", f"{result['nats']:.5g}", result["tokens"]),
        ]

    def notes(self, result: dict[str, Any]) -> list[str]:
        return []


def read(how: PerplexityConfig, tokenizer: Any) -> list[Window]:
    """Windows of the text that is named, until `tokens` tokens of it are predicted. Raises UserError."""
    kept: list[Window] = []
    left = how.tokens
    for window in perplexity.cut(perplexity.load(how.path), tokenizer, how.window):
        if left is not None:
            window = Window(window.ids, window.predicted[:left])
            left -= len(window.predicted)
        if window.predicted:
            kept.append(window)
    return kept
