"""What a suite has got so far, one JSON object a line: answers, scores, judgments. Nothing in it is asked for twice.

The file's first line is the identity of what its rows belong to, and its name has a digest of that, so that rows of
another model, other data or other settings are never mixed in. Every row is with the system before the next is asked
for, so that a kill loses none; a power cut loses those of the last second.
"""

import errno
import fcntl
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from starling_train.config.fields import UserError
from starling_train.files.lock import UNSUPPORTED

Row = dict[str, Any]
SYNC_EVERY_S = 1.0


class Journal:
    """The rows of `path` by key, to be added to; a context, within which no other process adds to them.

    A last line that a kill cut in half is removed. Raises UserError for a file that is damaged or of something else.
    """

    def __init__(self, folder: Path, name: str, identity: Row):
        text = json.dumps(identity, sort_keys=True, allow_nan=False)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        self.path = folder / f"{name}-{digest}.jsonl"
        self._identity: Row = json.loads(text)
        self.rows: dict[str, Row] = {}
        self._under_way: tuple[str, Row, int] | None = None  # key, row, and the file's size once it is written
        self._synced = 0.0

    def __enter__(self) -> "Journal":
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            self._lock()
            self._read()
            if not os.fstat(self._file).st_size:
                self._write(_line({"identity": self._identity}))
        except BaseException:
            os.close(self._file)
            raise
        return self

    def __exit__(self, *error: object) -> None:
        os.fsync(self._file)
        os.close(self._file)  # and with it the lock

    def __contains__(self, key: str) -> bool:
        return key in self.rows

    def add(self, key: str, row: Row) -> None:
        """Write a row, whole or not at all; nothing if there is one of this key."""
        self._settle()
        if key not in self.rows:
            line = _line({"id": key} | row)
            self._under_way = (key, row, os.fstat(self._file).st_size + len(line))
            self._write(line)
            self._settle()

    def _settle(self) -> None:
        """Take up the row that was being written: a signal may raise behind the write, and somebody add it again."""
        if self._under_way is not None:
            key, row, size = self._under_way
            if os.fstat(self._file).st_size == size:
                self.rows[key] = row
            self._under_way = None

    def _write(self, line: bytes) -> None:
        size = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if time.monotonic() - self._synced > SYNC_EVERY_S:
                os.fsync(self._file)
                self._synced = time.monotonic()
        except OSError as error:  # a full disk: not half a line
            os.truncate(self.path, size)
            error.filename = str(self.path)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"run_dir: another process writes to {self.path}; wait for it, stop it, or give another run_dir"
            ) from None
        except OSError as error:
            if error.errno not in UNSUPPORTED:  # a file system without locks: it is up to the user
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


def _line(row: Row) -> bytes:
    return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", errors="replace")
