"""A run directory for a command that only reads it: settings, and one intact checkpoint.

Nothing is written, locked or cleaned up: the run may still be going on.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from starling_train.config.fields import UserError
from starling_train.files import identity
from starling_train.run import checkpoints, manifest
from starling_train.run.manifest import Damaged
from starling_train.run.state import TrainState

WEIGHTS, _, STATE = checkpoints.FILES
READ = (WEIGHTS, STATE)  # the optimizer's file, the largest, is not needed here


@dataclass(frozen=True)
class SavedRun:
    """A run and one of its checkpoints. settings: from config.yaml, unchanged. state: the run's at that step."""

    path: Path
    settings: dict[str, Any]
    checkpoint: Path
    state: TrainState

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def weights(self) -> Path:
        return self.checkpoint / WEIGHTS

    @property
    def step(self) -> int:
        return self.state.step


def find(run: Path, which: str) -> SavedRun:
    """Find the run in a directory and one of its checkpoints, and read its small files.

    which: `newest`, `best` (of the highest held-out score), or a folder's name. Raises UserError.
    """
    settings = _settings(run)
    folders = checkpoints.folders(run / "checkpoints")
    if not folders:
        raise UserError(f"run_dir: {run} has no checkpoint; give a run that has saved one")
    if which == "best":
        which = manifest.folder_name(_best_step(folders[-1]))
    chosen = folders[-1] if which == "newest" else run / "checkpoints" / which
    if chosen not in folders:
        names = ", ".join(folder.name for folder in folders)
        raise UserError(f"checkpoint: {run} has no {which[:80]!r}; use newest, best or one of: {names}")
    return SavedRun(run, settings, chosen, _state(chosen))


def verify(run: SavedRun, base: Path) -> identity.Identity:
    """Compare the checkpoint's files and the base model in `base` with what they were, byte by byte.

    Returns the base's identity. Raises UserError for a difference.
    """
    try:
        written = manifest.verify(run.checkpoint, checkpoints.FILES, compared=READ)
    except Damaged as problem:
        raise _unusable(run.checkpoint, problem) from problem
    existing = identity.identify(base, written.base.files)
    if existing.sha256 != written.base.sha256:
        raise UserError(
            f"base: {base} is not the model that {run.path} was trained from: its config.json or weights have other "
            "bytes; give base=DIR, a directory that has those"
        )
    return existing


def _settings(run: Path) -> dict[str, Any]:
    file = run / "config.yaml"
    if not file.is_file():
        raise UserError(f"run_dir: {run} is not a run, it has no config.yaml; give the directory of a run, runs/NAME")
    try:
        settings = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"run_dir: {file} cannot be read; put the file back") from error
    if not isinstance(settings, dict):
        raise UserError(f"run_dir: {file} is not a run's configuration; give the directory of one")
    return settings


def _best_step(newest: Path) -> int:
    best = _state(newest).best_step
    if best is None:
        raise UserError("checkpoint: the run has no held-out score, so none is best; use newest or a folder's name")
    if best == 0:
        raise UserError("checkpoint: the best held-out score is that of the base model, before the first step; "
                        "use newest or a folder's name")  # fmt: skip
    return best


def _state(folder: Path) -> TrainState:
    try:
        return TrainState.from_json(json.loads((folder / STATE).read_text()))
    except (OSError, ValueError, RecursionError) as error:
        raise _unusable(folder, f"{STATE} cannot be read ({error})") from error


def _unusable(folder: Path, problem: Damaged | str) -> UserError:
    return UserError(f"checkpoint: {folder}: {problem}; use another one, or put the file back")
