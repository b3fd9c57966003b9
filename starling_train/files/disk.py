"""Whether the disk has room for what a run will write."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from torch import nn

from starling_train.config.fields import UserError, local_path
from starling_train.config.sections import CheckpointConfig


def check_room(run: Path, config: CheckpointConfig, checkpoint: int, model: nn.Module, more: int = 0) -> None:
    """Raise UserError if the checkpoints and the final model do not fit on the disk of `run`.

    While a checkpoint is written, one more than `keep` exists. What an earlier start of the run has written is
    replaced, so its room counts as free.

    run: the run's directory.
    config: how many checkpoints are kept.
    checkpoint: bytes of each.
    model: the final model.
    more: checkpoints that are kept beside those.
    """
    # under ZeRO-3 a parameter is empty here; ds_numel is its size
    final = sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in model.parameters())
    count = (config.keep + 1 if config.every or more else 1) + more
    what = f"{count} checkpoints of {checkpoint / 1e9:.2f}, the final model {final / 1e9:.2f}"
    check_fits(run, count * checkpoint + final, what, "free some, give another run_dir, or lower checkpoint.keep")


def check_fits(run: Path, needed: float, what: str, remedy: str, key: str = "run_dir") -> None:
    """Raise UserError, naming the key and what needs the room, if `needed` bytes do not fit on the disk of `run`."""
    existing = next(folder for folder in (run.absolute(), *run.absolute().parents) if folder.exists())
    # a run directory may be a link to another disk; quotas are not known here, they stop the run when they are reached
    free = shutil.disk_usage(existing).free + _held(run)
    if free < needed:
        raise UserError(
            f"{key}: {run} has room for {free / 1e9:.2f} GB, and {needed / 1e9:.2f} are needed ({what}); {remedy}"
        )


def _held(run: Path) -> int:
    folders = [run / name for name in ("checkpoints", "policy", "reward", "model", "factored", "accepted")]
    files = [path for folder in folders if folder.is_dir() for path in folder.rglob("*")]
    return sum(path.lstat().st_size for path in files)


def check_directory(path: Path, key: str) -> None:
    """Raise UserError unless `path` is, or can become, a directory that can be written into. Leaves nothing behind."""
    path = local_path(path, key).absolute()
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    if not existing.is_dir():
        raise UserError(f"{key}: {existing} is a file; give another one")
    try:
        with tempfile.TemporaryDirectory(prefix=".probe-", dir=existing):
            pass
    except OSError as error:
        raise UserError(
            f"{key}: nothing can be written into {existing} ({error.strerror}); give another one"
        ) from error


def check_new(path: Path, key: str) -> None:
    """Raise UserError unless a directory can be made at `path`, or an empty one exists there."""
    check_directory(path.parent, key)
    if path.is_dir():
        check_directory(path, key)
        if any(path.iterdir()):
            raise UserError(f"{key}: {path} already exists and is not empty; give a new directory")
    elif path.exists() or path.is_symlink():
        raise UserError(f"{key}: {path} is a file; give a new directory")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise the system's errors as OSError with a file's name, `path` where they have none.

    Errors of a full disk have none, and safetensors has its own class for them.
    """
    try:
        yield
    except SafetensorError as error:
        if match := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(match[1]), os.strerror(int(match[1])), str(path)) from error
        raise
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
