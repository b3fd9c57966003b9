"""Which model a directory holds: what distinguishes a run's base model from another one."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starling_train.files.weight_files import WeightFiles, weight_files

EDGE = 1 << 20  # bytes read at both ends of a weight file


@dataclass(frozen=True)
class Identity:
    """A model's identity. sha256: over every byte of config.json and of the weight files, and their names.

    files: by file name `{"stat": [...], "sha256": ...}`, so that unchanged files need not be read again.
    """

    sha256: str
    files: dict[str, dict[str, Any]] = field(default_factory=dict)


def identify(
    directory: Path, known: dict[str, dict[str, Any]] | None = None, weights: WeightFiles | None = None
) -> Identity:
    """Hash a model's directory, files side by side: 14 GB take seconds to a minute.

    weights: the files that are read, where they are not the usual ones.
    known: `files` of an earlier identity. A file with the same path, device, inode, size and times of change is taken
        to have the same bytes. Any program that writes to a file or replaces it changes one of those (the inode's own
        time, ctime, cannot be set as mtime can), so every exchange of models is noticed; a disk that returns other
        bytes without having been written to is not.
    """
    known = known or {}
    paths = _paths(directory, weights)

    def one(name: str, path: Path) -> dict[str, Any]:
        stat = _stat(path)
        before = known.get(name, {})
        if before.get("stat") == stat and isinstance(before.get("sha256"), str):
            return before
        return {"stat": stat, "sha256": sha256(path)}

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        files = dict(zip(paths, pool.map(one, *zip(*paths.items(), strict=True)), strict=True)) if paths else {}
    listing = "".join(f"{name} {file['sha256']}\n" for name, file in files.items())
    return Identity(hashlib.sha256(listing.encode()).hexdigest(), files)


def _paths(directory: Path, weights: WeightFiles | None) -> dict[str, Path]:
    """Return config.json and the weight files that are read, by their names in the directory."""
    config, weights = directory / "config.json", weights or weight_files(directory)
    paths = [*([config] if config.is_file() else []), *sorted(weights.read)]
    return {path.relative_to(directory).as_posix(): path for path in paths}


def sha256(path: Path) -> str:
    """Return SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stat(path: Path) -> list[Any]:
    stat = path.stat()
    return [str(path.resolve()), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def fingerprint(directory: Path) -> str:
    """Guess the same quickly: from name, size, first and last megabyte of every weight file."""
    paths = _paths(directory, None)
    config = paths.pop("config.json", None)
    digest = hashlib.sha256(config.read_bytes() if config else b"")
    for name, path in paths.items():
        size = path.stat().st_size
        digest.update(f"{name}:{size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(EDGE))
            file.seek(max(0, size - EDGE))
            digest.update(file.read(EDGE))
    return digest.hexdigest()
