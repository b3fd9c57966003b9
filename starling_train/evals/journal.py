"""What a suite has got so far, one JSON object a line: answers, scores, judgments. Nothing in it is asked for twice.

The file's first line is the identity of what its rows belong to, and its name has a digest of that, so that rows of
another model, other data or other settings are never mixed in. Every row is on disk before the next one is asked for.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from starling_train.config import UserError
from starling_train.engine.run_lock import RunLock

Row = dict[str, Any]


class Journal:
    """The rows of `path` by key, to be added to; a context, within which no other process adds to them.

    A last line that a kill cut in half is removed. Raises UserError for a file that is damaged or of something else.
    """

    def __init__(self, folder: Path, name: str, identity: Row):
        text = json.dumps(identity, sort_keys=True, allow_nan=False)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        self.path = folder / f"{name}-{digest}.jsonl"
        self._identity: Row = json.loads(text)
        self._lock = RunLock(folder / f".{self.path.name}.lock")
        self.rows: dict[str, Row] = {}

    def __enter__(self) -> "Journal":
        self._lock.acquire()
        try:
            self._read()
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            if not os.fstat(self._file).st_size:
                self._write({"identity": self._identity})
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._file)
        self._lock.release()

    def __contains__(self, key: str) -> bool:
        return key in self.rows

    def add(self, key: str, row: Row) -> None:
        """Write a row, whole or not at all; nothing if there is one of this key."""
        if key not in self.rows:
            self._write({"id": key} | row)
            self.rows[key] = row

    def _write(self, row: Row) -> None:
        line = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", errors="replace")
        size = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) < len(line):
                raise OSError(28, "No space left on device", str(self.path))
            os.fsync(self._file)
        except OSError as error:  # a full disk: not half a line
            os.truncate(self.path, size)
            error.filename = str(self.path)
            raise

    def _read(self) -> None:
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        size = sum(map(len, lines))
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()
        if (kept := sum(map(len, lines))) < size:
            os.truncate(self.path, kept)
        for number, line in enumerate(lines, start=1):
            self._take(line, number)

    def _take(self, line: bytes, number: int) -> None:
        try:
            row = json.loads(line)
            if number == 1:
                fits = row == {"identity": self._identity}
            else:
                self.rows[row.pop("id")] = row
                fits = True
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            fits = False
        if not fits:
            raise UserError(f"run_dir: line {number} of {self.path} is damaged; repair it, or remove the file")
