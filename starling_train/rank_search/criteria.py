"""The criteria that judge a change of a model: a number on one part of the data, and the same on a held-out part."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from starling_train.config.fields import UserError, given
from starling_train.config.laser import PairsConfig
from starling_train.config.sections import SourceConfig
from starling_train.data import preferences
from starling_train.data.chat import Chat
from starling_train.data.rows.dropped import Dropped
from starling_train.data.rows.source import is_on_hub
from starling_train.evals import perplexity
from starling_train.models.budget import Budget
from starling_train.models.causal_lm import CausalLM
from starling_train.rank_search import margin

PREFERENCE = {"preference_margin": "mean", "preference_share": "share"}  # measure -> field of Margin
NAMES = ("perplexity", *PREFERENCE)


@dataclass(frozen=True)
class Criterion:
    """A measure with its data.

    name: of the measure.
    unit: what an item is called: windows, or pairs.
    judging: the windows of text or pairs of answers that decide.
    held_out: those that decide nothing.
    dropped: how many pairs were too long.
    unread: the rows of the data that hold no text or pair.
    """

    name: str
    unit: str
    judging: list[Any]
    held_out: list[Any]
    dropped: int
    _measure: Callable[[CausalLM, list[Any], Budget], float]
    unread: Dropped = field(default_factory=Dropped)

    def measure(self, model: CausalLM, budget: Budget) -> float:
        """Measure on the part that decides."""
        return self._measure(model, self.judging, budget)

    def measure_held_out(self, model: CausalLM, budget: Budget) -> float | None:
        """Measure on the held-out part; None without one."""
        return self._measure(model, self.held_out, budget) if self.held_out else None

    def digest(self) -> str:
        """Return a hash of the measure and of all tokens that it reads, in hex."""
        return hashlib.sha256(repr((self.name, self.judging, self.held_out)).encode()).hexdigest()

    def is_not_worse(self, after: float, before: float) -> bool:
        """Whether `after` is at least as good as `before`; False where `after` is nan."""
        return after <= before if self.name == "perplexity" else after >= before


def of_text(how: SourceConfig, chat: Chat, window: int, split: "Split") -> Criterion:
    """Make the criterion perplexity on a text. Raises UserError that names `perplexity.path`.

    how: names the text.
    chat: the model's tokenizer and template.
    window: tokens that are read together.
    split: divides the windows.
    """
    path, dropped = given(how.path), Dropped()
    with _about("perplexity.path", path):
        documents = perplexity.load(path, subset=how.subset, split=how.split, columns=how.columns, dropped=dropped)
        groups = [group for group in perplexity.windows_of(documents, chat, window) if group]
        if not groups:
            perplexity.cut(documents, chat, window)  # raises the error
        groups = groups if len(groups) > 1 else [[one] for one in groups[0]]
    return Criterion("perplexity", "windows", *split(groups), 0, _perplexity, dropped)


def _perplexity(model: CausalLM, windows: list[Any], budget: Budget) -> float:
    return perplexity.evaluate(model, windows, budget).perplexity


def of_preferences(name: str, how: PairsConfig, chat: Chat, max_tokens: int, split: "Split") -> Criterion:
    """Make a criterion of preference on pairs of answers. Raises UserError that names `preference.path`.

    name: of the measure.
    how: names the pairs, and how many of the first rows.
    chat: the model's tokenizer and template.
    max_tokens: longer pairs are dropped.
    split: divides the pairs.
    """
    path, unread = given(how.path), Dropped()
    with _about("preference.path", path):
        if not Path(path).expanduser().exists() and not is_on_hub(path):
            raise UserError(f"{path}: no such file or directory; give pairs or ranked answers")
        comparisons = preferences.load(
            path, subset=how.subset, split=how.split, columns=how.columns, dropped=unread, key="preference"
        )
        pairs, dropped = margin.pairs(comparisons[: how.rows], chat, max_tokens)

    def measure(model: CausalLM, pairs: list[Any], budget: Budget) -> float:
        return getattr(margin.evaluate(model, pairs, budget), PREFERENCE[name])

    return Criterion(name, "pairs", *split([[pair] for pair in pairs]), dropped, measure, unread)


@dataclass(frozen=True)
class Split:
    """A split of items, in random order, into those that decide and those held out.

    Groups that belong together, such as the windows of one document, stay on one side; at least one group decides.

    most: how many items in all; None: all.
    held_out_percent: of them, rounded down.
    generator: of the random order.
    """

    most: int | None
    held_out_percent: float
    generator: torch.Generator

    def __call__(self, groups: Sequence[list[Any]]) -> tuple[list[Any], list[Any]]:
        """Return (judging, held out)."""
        order = [groups[i] for i in torch.randperm(len(groups), generator=self.generator).tolist()]
        chosen: list[list[Any]] = []
        room = self.most if self.most is not None else sum(map(len, groups))
        for group in order:
            if room <= 0:
                break
            chosen.append(group[:room])
            room -= len(group)
        most = int(sum(map(len, chosen)) * self.held_out_percent / 100)
        held_out: list[Any] = []
        while len(chosen) > 1 and len(held_out) + len(chosen[-1]) <= most:
            held_out += chosen.pop()
        return [item for group in chosen for item in group], held_out


@contextmanager
def _about(key: str, path: str) -> Iterator[None]:
    """Name the key in a UserError that names none of its section, and the file where the error does not."""
    try:
        yield
    except UserError as error:
        if str(error).startswith(f"{key.removesuffix('path')}"):
            raise
        raise UserError(f"{key}: {error}" if path in str(error) else f"{key}: {path}: {error}") from error
