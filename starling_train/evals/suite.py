"""What all suites have in common: their interface, how data is identified, and work that a journal remembers."""

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
from starling_train.models.reward.reading import cut_conversations
from starling_train.run.runtime import Runtime
from starling_train.training.measured import Measured

Say = Callable[[str], None]
Item = TypeVar("Item")
REPORT_EVERY_S = 5.0
ANSWERS_AT_A_TIME = 256  # answers scored or generated before the rest is compared with the journal again


@dataclass(frozen=True)
class ResultLine:
    """A line of the table of results: a part of the suite ("" for the whole), its value as text, of how many."""

    part: str
    value: str
    count: int


# A measurement during training: `eval/*` of the present policy, and the cases that it is made of, given a budget of
# sequences side by side, one of tokens, and the processes that share the work.
Skill = Callable[[CausalLM, Budget, Budget, Runtime], Measured]


@dataclass
class Suite(ABC):
    """A suite of `evaluate`: its inputs are first found and checked (`find`, `check`), then it is measured.

    subjects: `Subjects`, the models.
    identity: everything a result depends on, as JSON: models by a hash of their files, data by its contents.
    during_training: makes the suite's `Skill` from (a run's configuration, `Chat`), raising UserError; None for a suite
        that training does not measure.
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
        """Say what `measure` would do."""

    def check(self, dry_run: bool) -> None:
        """Check everything that does not require loading weights. Raises UserError."""
        self.subjects.check_policy()

    @abstractmethod
    def measure(self, folder: Path, say: Say) -> dict[str, Any]:
        """Measure, and return the result as strict JSON. folder: for the journals. say: prints the progress."""

    @abstractmethod
    def lines(self, result: dict[str, Any]) -> list[ResultLine]:
        """Return a result as lines of a table, the whole first."""

    def notes(self, result: dict[str, Any]) -> list[str]:
        """Return what a reader must know beside the numbers: who judged, what failed."""
        return []

    def is_complete(self, result: dict[str, Any]) -> bool:
        """Whether nothing is left that another start could find: no request without a reply."""
        return True

    def journal(self, folder: Path, what: str, identity: dict[str, Any] | None = None) -> Journal:
        """Open the journal of a part of the work. identity: everything that part depends on; None: the suite's."""
        return Journal(folder, f"{self.name}.{what}", identity or self.identity)

    def progress(self, say: Say, items: str) -> "StartProgress":
        return partial(SuiteProgress, say, self.name, items)


class SuiteProgress:
    """Progress of a suite: prints how many items are done, first, every few seconds, and at the end."""

    def __init__(self, say: Say, suite: str, items: str, total: int, done: int = 0):
        self._say, self._suite, self._items, self._total, self._done = say, suite, items, total, done
        self._reported = self._began = time.monotonic()
        self._before = done
        if done:
            say(f"{suite}: {done:,} of {total:,} {items} are there from an earlier start")

    def step(self, count: int = 1) -> None:
        self._done += count
        now = time.monotonic()
        if self._done == self._total or now - self._reported >= REPORT_EVERY_S:
            self._reported = now
            speed = (self._done - self._before) / max(now - self._began, 1e-9)
            self._say(f"{self._suite}: {self._done:,} of {self._total:,} {self._items}, {speed:.3g} a second")


StartProgress = Callable[[int, int], SuiteProgress]  # of (total, done)


def complete(
    journal: Journal,
    keys: Sequence[str],
    make: Callable[[list[int]], Iterable[dict[str, Any]]],
    progress: StartProgress,
    at_a_time: int | None = None,
    sizes: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Make the rows that the journal lacks and add them; return the row of every key.

    journal: the rows of earlier starts.
    keys: of the rows.
    make: returns the rows of some keys, given their indices.
    progress: counts the items.
    at_a_time: how many rows `make` is asked for, at most; None: ANSWERS_AT_A_TIME.
    sizes: of how many items each row is, for the progress; None: 1.
    """
    size = dict(zip(keys, sizes or [1] * len(keys), strict=True))
    missing = list({key: index for index, key in enumerate(keys) if key not in journal}.values())
    step = at_a_time or ANSWERS_AT_A_TIME
    bar = progress(sum(size.values()), sum(size.values()) - sum(size[keys[index]] for index in missing))
    for start in range(0, len(missing), step):
        group = missing[start : start + step]
        for index, row in zip(group, make(group), strict=True):
            journal.add(keys[index], row)
            bar.step(size[keys[index]])
    return [journal.rows[key] for key in keys]


def named(path: str) -> str:
    """Return a local path as an absolute one, a hub id unchanged."""
    local = Path(path).expanduser()
    return str(local.resolve()) if local.exists() else path


def digest(rows: Iterable[Any]) -> dict[str, str]:
    """Return the SHA-256 of rows of JSON values."""
    hashed = hashlib.sha256()
    for row in rows:
        hashed.update(json.dumps(row).encode() + b"\n")
    return {"sha256": hashed.hexdigest()}


def data_of(path: str, rows: Iterable[Any]) -> dict[str, str]:
    """Identify data by its name and contents."""
    return {"path": named(path)} | digest(rows)


def in_turn(groups: Sequence[Sequence[Item]], limit: int | None) -> list[Item]:
    """Return `limit` items in all (None: all), the first ones of each group in turn, in the order of the groups."""
    total = sum(map(len, groups))
    count, taken = min(total, total if limit is None else limit), [0] * len(groups)
    while sum(taken) < count:
        for index, group in enumerate(groups):
            if taken[index] < len(group) and sum(taken) < count:
                taken[index] += 1
    return [item for group, count in zip(groups, taken, strict=True) for item in group[:count]]


def unique(ids: Sequence[str]) -> list[str]:
    """Return the ids, each repeated one with a number appended."""
    seen: dict[str, int] = {}
    names = []
    for name in ids:
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return names


def check_finite(scores: Sequence[float], section: str) -> None:
    """Raise UserError if a reward model's score is not finite: it would not order anything. section: its keys'."""
    if wrong := sum(not math.isfinite(value) for value in scores):
        raise UserError(f"{section}: {wrong} of {len(scores)} scores are not finite; try {section}.dtype=float32")


@contextmanager
def about(key: str) -> Iterator[None]:
    """Name the key in a UserError that names only a file or a line."""
    try:
        yield
    except UserError as error:
        if str(error).startswith(("reward", "data.", "model.", "run_dir", key.removesuffix("path"))):
            raise
        raise UserError(f"{key}: {error}") from error


def shares(parts: list[tuple[str, float, int]]) -> list[ResultLine]:
    """Return (part, share of right ones, of how many) as lines, in percent."""
    return [ResultLine(part, f"{100 * share:.2f} %", count) for part, share, count in parts]


def truncation(result: dict[str, Any]) -> list[str]:
    answers = result.get("truncated_answers", 0)
    key = "max_length of a term" if "terms" in result else "reward.max_length"
    line = cut_conversations(result.get("truncated_prompts", answers), answers, key)
    return [line] if line else []
