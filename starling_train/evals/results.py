"""`evaluation.json`: {"results": [...], "files": {...}}, an entry for each measurement, complete or absent.

An entry has `identity` (suite, model, data, settings: all that the result depends on), `result`, `shown` (what a report
says of it: lines of a table, and notes), and how it was made. `files` has the hashes of the models' files, so that they
are not read again while they do not change. Entries from before models were hashed whole have a `fingerprint` in their
identity: they are kept and shown, and their suites are measured again.
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
    """The file of a run's directory, which need not be there yet. Raises UserError where it cannot be."""
    run = Path(run_dir).expanduser()
    existing = next(path for path in (run, *run.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"run_dir: {existing} is a file; give another run_dir= or name=")
    return run / NAME


def read(path: Path) -> list[Entry]:
    """The entries; none where there is no file. Raises UserError for a file of something else."""
    return _read(path)["results"]


def files(path: Path) -> dict[str, Any]:
    """What is known of the models' files, by directory (`identity.Identity.files`)."""
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
    """The result of a suite with this identity, if it was measured."""
    identity = json.loads(json.dumps(identity))  # as the file has it: lists for tuples
    return next((entry["result"] for entry in entries if entry["identity"] == identity), None)


def add(path: Path, entry: Entry, hashed: dict[str, Any]) -> None:
    """Add an entry to what the file holds by now, and replace it whole. Raises UserError if it cannot be written.

    hashed: what is known of the models' files.
    """
    content = {"results": [*read(path), entry], "files": files(path) | hashed}
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    try:
        whole.write_text(path, f"{text}\n")
    except OSError as error:
        raise UserError(f"run_dir: cannot write {path} ({error.strerror}); give another run_dir=") from error
