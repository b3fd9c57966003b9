"""A model directory that is complete or absent."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def write_whole(directory: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a folder beside `directory`, flush it, then rename it into place."""
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        write(partial)
        flush_folder(partial)
    except BaseException:  # a full disk, a signal: what is half written only takes up space
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)
    flush(directory.parent)
    return directory


def flush_folder(folder: Path) -> None:
    """Ask the disk to keep a folder and the files in it, so that a rename never names something that is not there."""
    for path in [*folder.iterdir(), folder]:
        flush(path)


def flush(path: Path) -> None:
    """Ask the disk to keep a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
