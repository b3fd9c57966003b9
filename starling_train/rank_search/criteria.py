"""What a change of a model is judged by: a number on a part of the data, and the same on a part that judges nothing."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from starling_train.config.fields import UserError
from starling_train.data import preferences, row_files
from starling_train.data.chat import Chat
from starling_train.evals import perplexity
from starling_train.models.budget import Budget
from starling_train.models.causal_lm import CausalLM
from starling_train.rank_search import margin

PREFERENCE = {"preference_margin": "mean", "preference_share": "share"}  # measure -> field of Margin
NAMES = ("perplexity", *PREFERENCE)


@dataclass(frozen=True)
class Criterion:
    """judging, held_out: windows of text, or pairs of answers, `unit` in words. dropped: pairs that were too long."""

    name: str
    unit: str
    judging: list[Any]
    held_out: list[Any]
    dropped: int
    _measure: Callable[[CausalLM, list[Any], Budget], float]

    def measure(self, model: CausalLM, budget: Budget) -> float:
        """On the part that judges."""
        return self._measure(model, self.judging, budget)

    def measure_held_out(self, model: CausalLM, budget: Budget) -> float | None:
        """On the part that judges nothing; None without one."""
        return self._measure(model, self.held_out, budget) if self.held_out else None

    def digest(self) -> str:
        """A hash of the measure and of all tokens that it reads, in hex."""
        return hashlib.sha256(repr((self.name, self.judging, self.held_out)).encode()).hexdigest()

    def is_not_worse(self, after: float, before: float) -> bool:
        """False where `after` is nan."""
        return after <= before if self.name == "perplexity" else after >= before


def of_text(path: str, chat: Chat, window: int, split: "Split") -> Criterion:
    """Perplexity on the text behind `path`. Raises UserError in the name of `perplexity.path`."""
    with _about("perplexity.path", path):
        documents = perplexity.load(path)
        groups = [perplexity.windows(*perplexity.encode(document, chat), window) for document in documents]
        groups = [group for group in groups if group]
        if not groups:
            perplexity.cut(documents, chat, window)  # says so
        groups = groups if len(groups) > 1 else [[one] for one in groups[0]]
    return Criterion("perplexity", "windows", *split(groups), 0, _perplexity)


def _perplexity(model: CausalLM, windows: list[Any], budget: Budget) -> float:
    return perplexity.evaluate(model, windows, budget).perplexity


def of_preferences(name: str, path: str, rows: int | None, chat: Chat, max_tokens: int, split: "Split") -> Criterion:
    """A measure of preference on the pairs of the first `rows` behind `path` (None: all).

    Raises UserError in the name of `preference.path`.
    """
    with _about("preference.path", path):
        if not Path(path).expanduser().exists() and not row_files.HUB_ID.fullmatch(path):
            raise UserError(f"{path}: no such file or directory; give JSONL of preferences, or Nectar's parquet")
        found, dropped = margin.pairs(preferences.load(path)[:rows], chat, max_tokens)

    def measure(model: CausalLM, pairs: list[Any], budget: Budget) -> float:
        return getattr(margin.evaluate(model, pairs, budget), PREFERENCE[name])

    return Criterion(name, "pairs", *split([[pair] for pair in found]), dropped, measure)


@dataclass(frozen=True)
class Split:
    """At most `most` items (None: all), of which that percentage, rounded down, is held out, in an order of chance.

    What belongs together, such as the windows of one document, comes to one side; one group is never held out.
    """

    most: int | None
    held_out_percent: float
    generator: torch.Generator

    def __call__(self, groups: Sequence[list[Any]]) -> tuple[list[Any], list[Any]]:
        """(judging, held out)"""
        order = [groups[i] for i in torch.randperm(len(groups), generator=self.generator).tolist()]
        chosen: list[list[Any]] = []
        room = self.most if self.most is not None else sum(map(len, groups))
        for group in order:
            if room <= 0:
                break
            chosen.append(group[:room])
            room -= len(group)
        wanted = int(sum(map(len, chosen)) * self.held_out_percent / 100)
        held_out: list[Any] = []
        while len(chosen) > 1 and len(held_out) + len(chosen[-1]) <= wanted:
            held_out += chosen.pop()
        return [item for group in chosen for item in group], held_out


@contextmanager
def _about(key: str, path: str) -> Iterator[None]:
    """Name the key, and the file where the error names none."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {error}" if path in str(error) else f"{key}: {path}: {error}") from error
