"""What all suites of `evaluate` have in common: their shape, how data is identified, and how progress is told."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from starling_train.config.fields import UserError

Say = Callable[[str], None]
Item = TypeVar("Item")
TELL_EVERY_S = 5.0


@dataclass(frozen=True)
class Line:
    """A line of the table of results: a part of the suite ("" for the whole), its value in words, of how many."""

    part: str
    value: str
    count: int


class Suite(Protocol):
    """What is needed is found and checked first (`find`, `check`), then it is measured.

    identity: all that a result depends on, as JSON: models by a hash of their files, data by its contents.
    """

    name: str
    identity: dict[str, Any]

    def plan(self) -> str:
        """What it would do, in words."""

    def check(self, dry_run: bool) -> None:
        """What can be found wrong without loading weights. Raises UserError."""

    def measure(self, folder: Path, say: Say) -> dict[str, Any]:
        """The result, strict JSON. folder: of its journals. say: told how far it is."""

    def lines(self, result: dict[str, Any]) -> list[Line]:
        """A result as lines of a table, the whole first."""

    def notes(self, result: dict[str, Any]) -> list[str]:
        """What must be known beside the numbers: who judged, what failed."""


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


def named(path: str) -> str:
    """A local path from the root, a hub id as it is."""
    local = Path(path).expanduser()
    return str(local.resolve()) if local.exists() else path


def digest(rows: Iterable[Any]) -> dict[str, str]:
    """The SHA-256 of rows of JSON values."""
    found = hashlib.sha256()
    for row in rows:
        found.update(json.dumps(row).encode() + b"\n")
    return {"sha256": found.hexdigest()}


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
    found = []
    for name in ids:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return found


def check_finite(scores: Sequence[float]) -> None:
    """Raise UserError if a reward model's score is no number: it would put nothing in order."""
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


ANSWERS_AT_A_TIME = 256
