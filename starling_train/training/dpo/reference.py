"""The reference's log-probabilities: computed once, before the first step, and kept in the run's directory.

They are numbers, not a model: no second policy is in memory while the first one trains. `reference.jsonl` has a line
for every chunk of the data that is done, so that a run that is stopped in between continues from there.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from starling_train.config.fields import UserError
from starling_train.data.pairs import PairedRow
from starling_train.files import json_lines
from starling_train.files.json_lines import JsonLines, NoLines

FILE = "reference.jsonl"
CHUNK = 256  # rows that are computed together, and then written: what a signal or a kill can lose
Compute = Callable[[list[PairedRow]], list[list[float]]]


def chunks(rows: Sequence[PairedRow]) -> list[list[PairedRow]]:
    """Cut the rows into the chunks that are computed together, always the same, for the same numbers after a resume."""
    return [list(rows[first : first + CHUNK]) for first in range(0, len(rows), CHUNK)]


def identity(base: str, settings: dict[str, Any], rows: Sequence[PairedRow], probe: Any) -> dict[str, Any]:
    """Identify everything the log-probabilities depend on.

    base: sha256 of the model's files. probe: some of the data as token ids.
    """
    digest = hashlib.sha256(json.dumps(probe).encode())
    for row in rows:
        digest.update(json.dumps([row.messages, row.answers]).encode())
    return {"base": base, "data": digest.hexdigest()} | settings


class Reference:
    """Log-probabilities of the answers under the policy that training starts from.

    needed: the chunks of rows that are needed. existing: the result of `read`.
    """

    def __init__(self, needed: Sequence[list[PairedRow]], who: dict[str, Any], existing: list[list[list[float]]]):
        self._needed, self._who = needed, who
        self._of: dict[int, list[float]] = {}  # by a row's index; NaN for what was not a finite number
        self._done = 0
        for values in existing[: len(needed)]:
            self._take(values)

    def _take(self, values: list[list[float]]) -> None:
        for row, numbers in zip(self._needed[self._done], values, strict=True):
            self._of[row.index] = numbers
        self._done += 1

    @property
    def is_complete(self) -> bool:
        return self._done == len(self._needed)

    def check_complete(self, step: int, path: Path) -> None:
        """Raise UserError if a run that has trained already lacks some: the policy no longer is its own reference."""
        if step and not self.is_complete:
            raise UserError(
                f"run_dir: {path} is not whole, and cannot be computed from weights that have trained; put the file "
                "back, or give another run_dir"
            )

    def complete(self, compute: Compute, log: JsonLines | NoLines, say: Callable[[str], None]) -> None:
        """Compute and write what is missing. say: called ten times with the progress, if there is much to do."""
        count = len(self._needed)
        log.write([{"step": 0, "identity": self._who}])
        while not self.is_complete:
            values = compute(self._needed[self._done])
            logprobs = [[value if math.isfinite(value) else None for value in numbers] for numbers in values]
            self._take(values)
            log.write([{"step": self._done, "logprobs": logprobs, "sha256": _digest(logprobs)}])
            if count >= 10 and self._done * 10 // count != (self._done - 1) * 10 // count:
                say(f"the reference's log-probabilities: {self._done} of {count} parts are done")

    def usable(self, rows: Sequence[PairedRow]) -> tuple[list[PairedRow], int]:
        """Add the numbers to rows and drop pairs without a finite one for each answer: (rows, pairs dropped)."""
        usable, lost = [], 0
        for row in rows:
            known = self._of.get(row.index)
            if known is not None:  # else no step trains on it
                good = [pair for pair in row.pairs if all(math.isfinite(known[i]) for i in pair)]
                lost += len(row.pairs) - len(good)
                row = replace(row, reference=known).only(good)
            usable.append(row)
        return usable, lost


def read(path: Path, who: dict[str, Any], needed: Sequence[list[PairedRow]]) -> list[list[list[float]]]:
    """Read the finished chunks of the file, in order; a line that a kill cut in half is left out.

    Raises UserError if the file is damaged, or of another model, other data or other settings.
    """
    done: list[list[list[float]]] = []
    for number, row in enumerate(json_lines.read(path)):
        try:
            if row is None:
                raise ValueError("not a JSON object")
            existing = row["identity"] if number == 0 else who
            done += [_values(row, number, needed)] if number else []
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            raise UserError(
                f"run_dir: line {number + 1} of {path} is damaged; put the file back, or give another run_dir"
            ) from None
        _check(path, existing, who)
    return done


def _check(path: Path, existing: Any, who: dict[str, Any]) -> None:
    names = {"base": "another model", "data": "other data or another tokenizer"}
    existing = existing if isinstance(existing, dict) else {}
    different = [names.get(key, "other settings") for key in who if existing.get(key) != who[key]]
    if different:
        raise UserError(
            f"run_dir: {path} holds the log-probabilities of {different[0]}; give those that the run began with, or "
            "another run_dir"
        )


def _values(row: dict[str, Any], number: int, needed: Sequence[list[PairedRow]]) -> list[list[float]]:
    """Parse the numbers of a line. Raises ValueError and the like for anything that `complete` does not write."""
    logprobs = row["logprobs"]
    fits = [len(numbers) for numbers in logprobs] == [len(r.answers) for r in needed[number - 1]]
    if row["step"] != number or row["sha256"] != _digest(logprobs) or not fits:
        raise ValueError
    return [[math.nan if value is None else float(value) for value in numbers] for numbers in logprobs]


def _digest(logprobs: list[list[float | None]]) -> str:
    return hashlib.sha256(json.dumps(logprobs).encode()).hexdigest()
