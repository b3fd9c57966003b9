"""Files and folders that are complete or absent: written beside their path, flushed to disk, then renamed to it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def write_text(path: Path, text: str, shared: bool = False) -> Path:
    """Write a file of text in UTF-8; what UTF-8 cannot carry becomes a question mark. See `write_whole`."""
    content = text.encode("utf-8", errors="replace")
    return write_whole(path, lambda partial: partial.write_bytes(content), shared)


def write_whole(path: Path, write: Callable[[Path], object], shared: bool = False) -> Path:
    """Let `write` make a file or a folder beside `path`, flush it, then rename it to `path`, which is returned.

    A reader sees the old content or the new, never half of it, even after a power cut. Nothing remains of what `write`
    could not finish (a full disk, a signal). What a kill left is removed by the next write to the same path.

    shared: other processes may write to the same path at the same time. The last file stays, and the first folder.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial" if shared else f".{path.name}.partial")
    for leftover in (partial, _hidden(path)):
        _delete(leftover)
    try:
        write(partial)
        for inner in [*partial.rglob("*"), partial]:
            flush(inner)
        if shared and partial.is_dir() and path.exists():
            _delete(partial)
            return path
        if partial.is_dir() and (path.exists() or path.is_symlink()):  # a file is replaced by the rename itself
            remove(path)
        partial.replace(path)
    except BaseException:
        _delete(partial)
        raise
    flush(path.parent)
    return path


def remove(path: Path) -> None:
    """Delete a folder or file; renamed first, so that a kill leaves nothing half deleted under its name."""
    hidden = _hidden(path)
    _delete(hidden)
    path.rename(hidden)
    _delete(hidden)


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flush a file or folder to disk, so that a rename never names something that is missing."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
