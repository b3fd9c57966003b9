"""`evaluation.json`: {"results": [...], "files": {...}}, an entry for each measurement, complete or absent.

An entry has `identity` (suite, model, data, settings: everything the result depends on), `result`, `shown` (what a
report says of it: lines of a table, and notes), and `made` (on what, how long). `files` has the hashes of the models'
files, so that unchanged files are not read again. Entries of earlier versions, which did not hash models whole, have a
`fingerprint` in their identity: they stay in the file and in the report, and their suites are measured again.
"""

import json
import os
from pathlib import Path
from typing import Any

from starling_train.config.fields import UserError
from starling_train.files import whole

NAME = "evaluation.json"

Entry = dict[str, Any]


def path_of(run_dir: str | Path) -> Path:
    """Return the file in a run's directory; neither need exist yet. Raises UserError where they cannot exist."""
    run = Path(run_dir).expanduser()
    existing = next(path for path in (run, *run.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"run_dir: {existing} is a file; give another run_dir= or name=")
    return run / NAME


def read(path: Path) -> list[Entry]:
    """Read the entries; none without a file. Raises UserError for a file with other content."""
    return _read(path)["results"]


def files(path: Path) -> dict[str, Any]:
    """Read the known hashes of the models' files, by directory (`identity.Identity.files`)."""
    known = _read(path).get("files")
    if not isinstance(known, dict):
        return {}
    return {
        directory: hashes
        for directory, hashes in known.items()
        if isinstance(hashes, dict) and all(isinstance(value, dict) for value in hashes.values())
    }


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"results": []}
    try:
        content = json.loads(path.read_bytes())
        entries = content["results"]
        is_ours = all({"identity", "result"} <= entry.keys() for entry in entries)
    # not JSON, or JSON of another shape
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        is_ours = False
    if not is_ours:
        raise UserError(f"run_dir: {path} holds no results of `evaluate`; move it, or give another run_dir=")
    return content


def make_directory(path: Path) -> None:
    """Make the file's directory. Raises UserError if it cannot be made or nothing can be written into it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run_dir: {path.parent} cannot be made ({error.strerror}); give another one") from error
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"run_dir: nothing can be written into {path.parent}; give another one")


def find(entries: list[Entry], identity: Entry) -> Entry | None:
    """Return the result of a suite with this identity, if it was measured."""
    return next((entry["result"] for entry in entries if entry["identity"] == _as_written(identity)), None)


def _as_written(identity: Entry) -> Any:
    return json.loads(json.dumps(identity))  # lists for tuples


def add(path: Path, entry: Entry, hashed: dict[str, Any]) -> None:
    """Add an entry to those that the file holds by now, and replace it whole. Raises UserError if it cannot be written.

    An entry of the same identity, which was not complete, gives way.

    hashed: the hashes of the models' files.
    """
    others = [other for other in read(path) if other["identity"] != _as_written(entry["identity"])]
    content = {"results": [*others, entry], "files": files(path) | hashed}
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    try:
        whole.write_text(path, f"{text}\n")
    except OSError as error:
        raise UserError(f"run_dir: cannot write {path} ({error.strerror}); give another run_dir=") from error
