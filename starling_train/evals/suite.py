"""What all suites have in common: their shape, how data is identified, and work that a journal remembers."""

import hashlib
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from starling_train.config.fields import UserError
from starling_train.files.journal import Journal
from starling_train.models.budget import Budget
from starling_train.models.causal_lm import CausalLM
from starling_train.run.runtime import Runtime

Say = Callable[[str], None]
Item = TypeVar("Item")
TELL_EVERY_S = 5.0
ANSWERS_AT_A_TIME = 256  # that are scored or asked for between two looks at the journal


@dataclass(frozen=True)
class Line:
    """A line of the table of results: a part of the suite ("" for the whole), its value in words, of how many."""

    part: str
    value: str
    count: int


# what an evaluation during training measures: `eval/*` of a policy as it is now, given budgets of sequences side by
# side and of tokens, and the processes that share the work
Skill = Callable[[CausalLM, Budget, Budget, Runtime], dict[str, float]]


@dataclass
class Suite(ABC):
    """What is needed is found and checked first (`find`, `check`), then it is measured.

    subjects: `Subjects`, the models. identity: all that a result depends on, as JSON: models by a hash of their files,
    data by its contents.
    during_training: makes the suite's `Skill` of (a run's configuration, `Chat`); None where there is none. Raises
    UserError.
    """

    subjects: Any
    identity: dict[str, Any]
    name: ClassVar[str]
    during_training: ClassVar[Callable[..., Skill] | None] = None

    @classmethod
    @abstractmethod
    def find(cls, subjects: Any) -> "Suite":
        """Read the data and look up the models. Raises UserError."""

    @abstractmethod
    def plan(self) -> str:
        """Say what it would do."""

    def check(self, dry_run: bool) -> None:
        """Find what can be found wrong without loading weights. Raises UserError."""
        self.subjects.check_policy()

    @abstractmethod
    def measure(self, folder: Path, say: Say) -> dict[str, Any]:
        """The result, strict JSON. folder: of its journals. say: told how far it is."""

    @abstractmethod
    def lines(self, result: dict[str, Any]) -> list[Line]:
        """A result as lines of a table, the whole first."""

    def notes(self, result: dict[str, Any]) -> list[str]:
        """What must be known beside the numbers: who judged, what failed."""
        return []

    def journal(self, folder: Path, what: str, identity: dict[str, Any] | None = None) -> Journal:
        """Open what was done of a part of the work. identity: what that depends on; the suite's if None."""
        return Journal(folder, f"{self.name}.{what}", identity or self.identity)

    def progress(self, say: Say, items: str) -> "Telling":
        return partial(Progress, say, self.name, items)


class Progress:
    """Tells how many of the items are done: at the first, every few seconds, and at the end."""

    def __init__(self, say: Say, suite: str, items: str, total: int, done: int = 0):
        self._say, self._suite, self._items, self._total, self._done = say, suite, items, total, done
        self._told = self._began = time.monotonic()
        self._before = done
        if done:
            say(f"{suite}: {done:,} of {total:,} {items} are there from an earlier start")

    def step(self, count: int = 1) -> None:
        self._done += count
        now = time.monotonic()
        if self._done == self._total or now - self._told >= TELL_EVERY_S:
            self._told = now
            speed = (self._done - self._before) / max(now - self._began, 1e-9)
            self._say(f"{self._suite}: {self._done:,} of {self._total:,} {self._items}, {speed:.3g} a second")


Telling = Callable[[int, int], Progress]  # of (total, done)


def complete(
    journal: Journal,
    keys: Sequence[str],
    make: Callable[[list[int]], Iterable[dict[str, Any]]],
    progress: Telling,
    at_a_time: int | None = None,
    sizes: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """The journal's row of every key; those that it lacks are made and added first.

    make: the rows of some keys, given their indices, `at_a_time` (ANSWERS_AT_A_TIME if None) at most. sizes: of how
    many items each row is, for the progress; 1 if None.
    """
    size = dict(zip(keys, sizes or [1] * len(keys), strict=True))
    missing = list({key: index for index, key in enumerate(keys) if key not in journal}.values())
    step = at_a_time or ANSWERS_AT_A_TIME
    told = progress(sum(size.values()), sum(size.values()) - sum(size[keys[index]] for index in missing))
    for start in range(0, len(missing), step):
        group = missing[start : start + step]
        for index, row in zip(group, make(group), strict=True):
            journal.add(keys[index], row)
            told.step(size[keys[index]])
    return [journal.rows[key] for key in keys]


def named(path: str) -> str:
    """A local path from the root, a hub id as it is."""
    local = Path(path).expanduser()
    return str(local.resolve()) if local.exists() else path


def digest(rows: Iterable[Any]) -> dict[str, str]:
    """The SHA-256 of rows of JSON values."""
    hashed = hashlib.sha256()
    for row in rows:
        hashed.update(json.dumps(row).encode() + b"\n")
    return {"sha256": hashed.hexdigest()}


def data_of(path: str, rows: Iterable[Any]) -> dict[str, str]:
    """Data by its name and contents, for an identity."""
    return {"path": named(path)} | digest(rows)


def in_turn(groups: Sequence[Sequence[Item]], limit: int | None) -> list[Item]:
    """`limit` items in all, the first ones of each group in turn, in the order of the groups; all if None."""
    total = sum(map(len, groups))
    wanted, taken = min(total, total if limit is None else limit), [0] * len(groups)
    while sum(taken) < wanted:
        for index, group in enumerate(groups):
            if taken[index] < len(group) and sum(taken) < wanted:
                taken[index] += 1
    return [item for group, count in zip(groups, taken, strict=True) for item in group[:count]]


def unique(ids: Sequence[str]) -> list[str]:
    """The ids, those that came before with a number behind them."""
    seen: dict[str, int] = {}
    names = []
    for name in ids:
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return names


def check_finite(scores: Sequence[float]) -> None:
    """Raise UserError if a reward model's score is not a number: it would put nothing in order."""
    if wrong := sum(not math.isfinite(value) for value in scores):
        raise UserError(f"reward: {wrong} of {len(scores)} scores are not finite; try reward.dtype=float32")


@contextmanager
def about(key: str) -> Iterator[None]:
    """Name the key in an error that names a file or a line only."""
    try:
        yield
    except UserError as error:
        if str(error).startswith(("reward", "data.", "model.", "run_dir")):
            raise
        raise UserError(f"{key}: {error}") from error


def shares(parts: list[tuple[str, float, int]]) -> list[Line]:
    """(part, share of right ones, of how many) as lines, in percent."""
    return [Line(part, f"{100 * share:.2f} %", count) for part, share, count in parts]


def truncation(result: dict[str, Any]) -> list[str]:
    count = result.get("truncated_answers")
    return [f"{count:,} answers were longer than reward.max_length and lost their beginning"] if count else []
