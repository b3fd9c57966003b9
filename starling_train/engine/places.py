"""Can a command write where it is told to?"""

import tempfile
from pathlib import Path

from starling_train.config import UserError
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
