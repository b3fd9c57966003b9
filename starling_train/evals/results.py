"""`evaluation.json`: {"results": [...]}, an entry for each measurement, complete or absent.

An entry has `identity` (suite, model, data, settings: all that the result depends on), `result`, and how it was made.
"""

import json
import os
from pathlib import Path
from typing import Any

from starling_train.config import UserError

NAME = "evaluation.json"

Entry = dict[str, Any]


def place(run_dir: str | Path) -> Path:
    """The file of a run's directory, which need not be there yet. Raises UserError where it cannot be."""
    run = Path(run_dir).expanduser()
    existing = next(path for path in (run, *run.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"run_dir: {existing} is a file; give another run_dir= or name=")
    return run / NAME


def read(path: Path) -> list[Entry]:
    """The entries; none where there is no file. Raises UserError for a file of something else."""
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_bytes())["results"]
        whole = all({"identity", "result"} <= entry.keys() for entry in entries)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # not JSON, or JSON of another shape
        whole = False
    if not whole:
        raise UserError(f"run_dir: {path} holds no results of `evaluate`; move it, or give another run_dir=")
    return entries


def make_directory(path: Path) -> None:
    """Make the file's directory. Raises UserError if it cannot be made or nothing can be written into it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run_dir: {path.parent} cannot be made ({error.strerror}); give another one") from error
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"run_dir: nothing can be written into {path.parent}; give another one")


def find(entries: list[Entry], identity: Entry) -> Entry | None:
    """The result of a suite with this identity, if it was measured."""
    return next((entry["result"] for entry in entries if entry["identity"] == identity), None)


def add(path: Path, entry: Entry) -> None:
    """Add an entry to what the file holds by now, and replace it whole. Raises UserError if it cannot be written."""
    text = json.dumps({"results": [*read(path), entry]}, indent=1, ensure_ascii=False, allow_nan=False)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise UserError(f"run_dir: cannot write {path} ({error.strerror}); give another run_dir=") from error
