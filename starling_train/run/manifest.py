"""The manifest of a checkpoint: what its files must be, to the byte, and which model they belong to."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starling_train.files.identity import Identity, sha256

NAME = "manifest.json"


class Damaged(ValueError):
    """A checkpoint differs from what was written: the file, and what is wrong with it."""


@dataclass(frozen=True)
class Manifest:
    """A checkpoint's step, the model that its tensors belong to, and `size` and `sha256` of its files by name."""

    step: int
    base: Identity
    files: dict[str, dict[str, Any]]


def write(directory: Path, step: int, base: Identity, names: tuple[str, ...]) -> None:
    """Write the manifest of the files that are in `directory`."""
    files = {name: {"size": (directory / name).stat().st_size, "sha256": sha256(directory / name)} for name in names}
    values = {"step": step, "base": {"sha256": base.sha256, "files": base.files}, "files": files}
    (directory / NAME).write_text(_text(values))


def _text(values: dict[str, Any]) -> str:
    """Serialise the values with their hash, so that a damaged manifest is detected too."""
    content = json.dumps(values, sort_keys=True)
    return json.dumps({"content": values, "sha256": hashlib.sha256(content.encode()).hexdigest()}, sort_keys=True)


def read(directory: Path) -> Manifest:
    """Read the manifest. Raises Damaged if it is missing, or not byte for byte what `write` wrote."""
    path = directory / NAME
    if not path.is_file():
        raise Damaged(f"{NAME} is missing")
    try:
        text = path.read_text()
        values = json.loads(text)["content"]
        if _text(values) != text:
            raise Damaged(f"{NAME} is damaged: its content and its checksum differ")
        base, files = values["base"], values["files"]
        sizes = [type(entry["size"]) is int and isinstance(entry["sha256"], str) for entry in files.values()]
        if type(values["step"]) is not int or not all(sizes):
            raise TypeError
        return Manifest(values["step"], Identity(base["sha256"], dict(base["files"])), files)
    except OSError as error:
        raise Damaged(f"{NAME} cannot be read ({error.strerror})") from error
    except Damaged:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{NAME} is damaged, truncated, or of an earlier version") from error


def verify(directory: Path, names: tuple[str, ...], *, compared: tuple[str, ...] | None = None) -> Manifest:
    """Read the manifest and compare the checkpoint with it. Raises Damaged if they differ.

    names: of files that must exist. compared: files whose bytes are compared too, not only names and sizes; None: all.
    """
    manifest = read(directory)
    if not manifest.files.keys() >= set(names):
        raise Damaged(f"{NAME} does not list all of {', '.join(names)}")
    names = tuple(manifest.files)
    compared = names if compared is None else compared
    if directory.name != folder_name(manifest.step):
        raise Damaged(f"{NAME} is that of step {manifest.step}: the folder was renamed, or the file copied")
    # hidden files that the system or an editor adds are ignored
    extra = {p.name for p in directory.iterdir() if not p.name.startswith(".")} - {NAME, *names}
    if extra:
        raise Damaged(f"{min(extra)} does not belong there")
    for name, expected in manifest.files.items():
        _check_size(directory / name, expected["size"])
    with ThreadPoolExecutor(len(names)) as pool:
        problems = pool.map(lambda name: _compare(directory / name, manifest), compared)
        for name, problem in zip(compared, problems, strict=True):
            if problem:
                raise Damaged(f"{name} {problem}")
    return manifest


def folder_name(step: int) -> str:
    return f"step_{step:06d}"


def _check_size(path: Path, expected: int) -> None:
    if not path.is_file():
        raise Damaged(f"{path.name} is missing")
    size = path.stat().st_size
    if size < expected:
        raise Damaged(f"{path.name} is truncated: {size} of {expected} bytes")
    if size > expected:
        raise Damaged(f"{path.name} is damaged: {size} bytes instead of {expected}")


def _compare(path: Path, manifest: Manifest) -> str | None:
    try:
        same = sha256(path) == manifest.files[path.name]["sha256"]
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if same else "is damaged: its bytes are not those that were written"
