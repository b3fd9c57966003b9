"""`metrics.jsonl` and `samples.jsonl`, and the optional tracker."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starling_train.config.fields import UserError


class JsonLines:
    """An append-only file of JSON objects with a `step`. A step that is in the file already is not written again.

    A resumed run repeats the steps since its checkpoint, with the same numbers: they are passed over. A last line
    that a kill cut in half is removed when the file is opened.

    logged: for a file with several rows a step, the last step whose rows are there for certain: a kill may have left
    only some of the last step's, so those of a later one are removed, to be written again.
    last: the last step in the file, -1 if there is none. Raises UserError if the file holds something else.
    """

    def __init__(self, path: Path, logged: int | None = None):
        self._path = path
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        size = sum(map(len, lines))
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()
        steps = [_step(line, path, number) for number, line in enumerate(lines, 1)]
        if logged is not None and steps and steps[-1] > logged:
            lines = lines[: steps.index(steps[-1])]
        self.last = steps[len(lines) - 1] if lines else -1
        self._size = sum(map(len, lines))
        if self._size < size:
            os.truncate(path, self._size)

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append the rows of one step and flush them to disk; NaN and infinities become null, as strict JSON wants."""
        new = [row for row in rows if row["step"] > self.last]
        if not new:
            return
        text = "".join(json.dumps(strict(row), allow_nan=False) + "\n" for row in new).encode()
        try:
            with self._path.open("ab") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())  # before the checkpoint of this step: a power cut must not leave a gap
        except OSError:  # a full disk: not half a line
            os.truncate(self._path, self._size)
            raise
        self._size += len(text)
        self.last = new[-1]["step"]


class NoLines:
    """Writes nothing: the first process of a run does."""

    last = -1

    def write(self, rows: Sequence[dict[str, Any]]) -> None: ...


def _step(line: bytes, path: Path, number: int) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"run_dir: line {number} of {path} is damaged, no JSON object with a step; put the file back, or give "
            "another run_dir"
        ) from None


def strict(row: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
