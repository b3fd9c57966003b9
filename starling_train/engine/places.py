"""Can a command write where it is told to?"""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from starling_train.config.fields import UserError
from starling_train.models import load


def check_directory(path: Path, key: str) -> None:
    """Raise UserError unless files can be written into a directory, or the directory be made. Leaves nothing."""
    path = load.local_path(str(path), key).absolute()
    existing = next(place for place in (path, *path.parents) if place.exists())
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
    """Raise UserError unless a directory can be made at a path where there is nothing, or an empty directory."""
    check_directory(path.parent, key)
    if path.is_dir():
        check_directory(path, key)
        if any(path.iterdir()):
            raise UserError(f"{key}: {path} is there already, and not empty; give a new directory")
    elif path.exists() or path.is_symlink():
        raise UserError(f"{key}: {path} is a file; give a new directory")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """The system's errors leave as OSError with a file's name, `path` where they have none.

    Those of a full disk have none, and safetensors has a class of its own for them.
    """
    try:
        yield
    except SafetensorError as error:
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
        raise
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
