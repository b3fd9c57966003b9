"""Files of JSON objects, one a line, that are only ever added to: read without the half line that a kill leaves."""

import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starling_train.config.fields import UserError

JsonRow = dict[str, Any]


def whole_lines(path: Path, with_cut: bool = False) -> list[bytes]:
    """Read the lines of a file, their ends included; empty if it does not exist.

    with_cut: also a last line without an end, which a kill may have cut in half.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return lines if with_cut or not lines or lines[-1].endswith(b"\n") else lines[:-1]


def parse(line: bytes) -> JsonRow | None:
    """Parse a line as a JSON object; None for anything else."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def read(path: Path) -> list[JsonRow | None]:
    """Parse every whole line, None for a damaged one; empty if the file does not exist."""
    return [parse(line) for line in whole_lines(path)]


def to_line(row: JsonRow, ascii_only: bool = True) -> bytes:
    """Render a row as a line of strict JSON. Raises ValueError for NaN and infinities."""
    text = json.dumps(row, ensure_ascii=ascii_only, allow_nan=False)
    return f"{text}\n".encode(errors="replace")


def strict(row: JsonRow) -> JsonRow:
    """Make a row strict JSON: NaN and infinities become null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


class Appender:
    """Adds lines to a file, either all of a call's or none, and flushes them to disk.

    size: bytes that count; the rest of the file is cut off at once. sync_every_s: least time between flushes to disk.
    Until one, lines are only with the operating system: a power cut loses them, a kill does not.
    """

    def __init__(self, path: Path, size: int, sync_every_s: float = 0.0):
        self.path, self.size, self._sync_every_s = path, size, sync_every_s
        self._synced = -math.inf
        if path.exists() and path.stat().st_size > size:
            os.truncate(path, size)

    def append(self, *lines: bytes) -> None:
        """Add lines. Raises OSError, with the file unchanged."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        text = b"".join(lines)
        try:
            rest = text
            while rest:  # a disk that fills up accepts a part first
                rest = rest[os.write(descriptor, rest) :]
            if time.monotonic() - self._synced >= self._sync_every_s:
                os.fsync(descriptor)
                self._synced = time.monotonic()
        except OSError as error:
            os.truncate(self.path, self.size)  # not half a line
            error.filename = str(self.path)
            raise
        finally:
            os.close(descriptor)
        self.size += len(text)


class JsonLines:
    """`metrics.jsonl`, `samples.jsonl` and the like: rows with a `step`. A step in the file is not written again.

    A resumed run repeats the steps since its checkpoint, with the same numbers: they are passed over.

    logged: for a file with several rows a step, the last step that is certainly complete: a kill may have left only
    some rows of the last step, so those of a later one are removed, to be written again.
    last: the last step in the file, -1 if it is empty. Raises UserError if the file holds something else.
    """

    def __init__(self, path: Path, logged: int | None = None):
        lines = whole_lines(path)
        steps = [_step(line, path, number) for number, line in enumerate(lines, 1)]
        if logged is not None and steps and steps[-1] > logged:
            lines = lines[: steps.index(steps[-1])]
        self.last = steps[len(lines) - 1] if lines else -1
        self._file = Appender(path, sum(map(len, lines)))

    def write(self, rows: Sequence[JsonRow]) -> None:
        """Append the rows of one step and flush them to disk; NaN and infinities become null."""
        new = [row for row in rows if row["step"] > self.last]
        if new:
            # on the disk before the checkpoint of this step: a power cut must not leave a gap
            self._file.append(*(to_line(strict(row)) for row in new))
            self.last = new[-1]["step"]


class NoLines:
    """Writes nothing: only the first process of a run writes."""

    last = -1

    def write(self, rows: Sequence[JsonRow]) -> None: ...


def _step(line: bytes, path: Path, number: int) -> int:
    try:
        return int((parse(line) or {})["step"])
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"run_dir: line {number} of {path} is damaged, not a JSON object with a step; put the file back, or give "
            "another run_dir"
        ) from None
