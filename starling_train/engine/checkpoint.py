"""Checkpoints of the trainable tensors: complete or absent, verified when read, safetensors and JSON only."""

import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from starling_train.config import UserError
from starling_train.engine.state import TrainState

FILES = ("trainable.safetensors", "optimizer.safetensors", "state.json")


@dataclass
class Checkpoint:
    trainable: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: TrainState


class Checkpoints:
    """The folder `checkpoints/` of a run: one folder `step_000123` each, the newest `keep` of them.

    base: identity of the model that the trainable tensors belong to; a checkpoint of another base is refused.
    """

    def __init__(self, directory: Path, keep: int, base: str):
        self._directory, self._keep, self._base = directory, keep, base

    def save(self, trainable: dict[str, Tensor], optimizer: dict[str, Tensor], state: TrainState) -> Path:
        """Write to a temporary folder, flush, rename; then drop what is older than the newest `keep`."""
        final = self._directory / f"step_{state.step:06d}"
        partial = self._directory / f".{final.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file({n: t.detach().contiguous() for n, t in trainable.items()}, partial / "trainable.safetensors")
        save_file({n: t.detach().contiguous() for n, t in optimizer.items()}, partial / "optimizer.safetensors")
        (partial / "state.json").write_text(json.dumps(state.to_json(), allow_nan=False))
        manifest = {"base": self._base, "sha256": {name: _sha256(partial / name) for name in FILES}}
        (partial / "manifest.json").write_text(json.dumps(manifest))
        for path in [*partial.iterdir(), partial]:
            _flush(path)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _flush(self._directory)
        for old in self._complete()[: -self._keep]:
            shutil.rmtree(old)
        return final

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint whose files are what was written; a damaged one is reported and passed over.

        Raises UserError if it belongs to another base model.
        """
        for directory in reversed(self._complete()):
            if not _is_intact(directory):
                print(f"warning: {directory} is damaged; using the one before it", file=sys.stderr)
                continue
            if json.loads((directory / "manifest.json").read_text())["base"] != self._base:
                raise UserError(
                    f"{directory}: made from another base model than model.path; give that model, or another run_dir"
                )
            return Checkpoint(
                load_file(directory / "trainable.safetensors"),
                load_file(directory / "optimizer.safetensors"),
                TrainState.from_json(json.loads((directory / "state.json").read_text())),
            )
        return None

    def _complete(self) -> list[Path]:
        return sorted(self._directory.glob("step_*"))


def _is_intact(directory: Path) -> bool:
    try:
        expected = json.loads((directory / "manifest.json").read_text())["sha256"]
        return set(expected) == set(FILES) and all(_sha256(directory / n) == digest for n, digest in expected.items())
    except (OSError, ValueError, KeyError, TypeError):  # a damaged manifest can fail in each of these ways
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Ask the disk to keep a file or folder, so that a rename never names something that is not there."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
