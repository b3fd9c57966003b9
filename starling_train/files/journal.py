"""What a suite has so far, one JSON object a line: answers, scores, judgments. None of it is requested twice.

The file's first line is the identity of what its rows belong to, and its name has a digest of that: rows of another
model, other data or other settings are never mixed in. Each row is handed to the operating system before the next is
requested, so that a kill loses none; a power cut loses those of the last second.
"""

import hashlib
import json
from pathlib import Path

from starling_train.config.fields import UserError
from starling_train.files.json_lines import Appender, JsonRow, parse, to_line, whole_lines
from starling_train.files.lock import Lock
from starling_train.files.whole import flush

SYNC_EVERY_S = 1.0


class Journal:
    """The rows of `path` by key, to be added to; a context, within which no other process adds to them.

    A last line that a kill cut in half is removed. Raises UserError for a file that is damaged or not a journal.
    """

    def __init__(self, folder: Path, name: str, identity: JsonRow):
        text = json.dumps(identity, sort_keys=True, allow_nan=False)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        self.path = folder / f"{name}-{digest}.jsonl"
        self._identity: JsonRow = json.loads(text)
        self._lock = Lock(self.path)
        self.rows: dict[str, JsonRow] = {}
        self._under_way: tuple[str, JsonRow, int] | None = None  # key, row, and the file's size once it is written

    def __enter__(self) -> "Journal":
        try:
            self._lock.acquire(wait=False)
            lines = whole_lines(self.path)
            for number, line in enumerate(lines, start=1):
                self._store(parse(line), number)
            self._file = Appender(self.path, sum(map(len, lines)), SYNC_EVERY_S)
            if not lines:
                self._file.append(to_line({"identity": self._identity}, ascii_only=False))
        except BlockingIOError:
            raise UserError(
                f"run_dir: another process writes to {self.path}; wait for it, stop it, or give another run_dir"
            ) from None
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        flush(self.path)
        self._lock.release()

    def __contains__(self, key: str) -> bool:
        return key in self.rows

    def add(self, key: str, row: JsonRow) -> None:
        """Write a row, whole or not at all; nothing if the key exists."""
        self._settle()
        if key not in self.rows:
            line = to_line({"id": key} | row, ascii_only=False)
            self._under_way = (key, row, self._file.size + len(line))
            self._file.append(line)
            self._settle()

    def _settle(self) -> None:
        """Record the row that was being written: a signal may raise just after the write."""
        if self._under_way is not None:
            key, row, size = self._under_way
            if self.path.stat().st_size == size:
                self.rows[key] = row
                self._file.size = size
            self._under_way = None

    def _store(self, row: JsonRow | None, number: int) -> None:
        if number == 1:
            fits = row == {"identity": self._identity}
        elif fits := row is not None and isinstance(row.get("id"), str):
            self.rows[row.pop("id")] = row
        if not fits:
            raise UserError(f"run_dir: line {number} of {self.path} is damaged; repair it, or remove the file")
