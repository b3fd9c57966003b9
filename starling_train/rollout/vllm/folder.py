"""The folder through which a server of vLLM gets weights: files on their way, and a note of what it was sent last."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from starling_train.config.fields import UserError
from starling_train.config.sections import RolloutConfig
from starling_train.files.json_object import read_json
from starling_train.files.lock import Lock
from starling_train.files.whole import write_text

MEMORY = Path("/dev/shm")
SHARD = 10**9  # bytes of tensors that are held before they are written
READABLE, OPEN = 0o644, 0o755  # the server may be another user's


class Held(NamedTuple):
    """What a server has been sent: digests of the weights that do not train and of those that do, and its start."""

    frozen: str
    trained: str
    started: str


class Folder:
    """`rollout.weights_dir`, of one server. Raises UserError where nothing can be written into it.

    lock: of whoever sends weights.
    """

    def __init__(self, config: RolloutConfig, url: str):
        self._path = folder_of(config)
        self._name = f"starling-vllm-{hashlib.sha256(f'{url} {os.getuid()}'.encode()).hexdigest()[:16]}"
        self._record = self._path / f"{self._name}.json"
        self.lock = Lock(self._path / f"{self._name}.lock")
        self._is_told = False

    def held(self) -> Held | None:
        """Return what the server was sent last; None if that is not known."""
        if not self._record.is_file():
            return None
        values = read_json(self._record)
        return Held(**values) if values.keys() == set(Held._fields) else None

    def remember(self, held: Held) -> None:
        """Note what the server has."""
        if self.lock.unsupported and not self._is_told:
            self._is_told = True
            print(
                f"warning: {self._path} has no locks ({self.lock.unsupported}): several processes may send the same "
                "weights; give a rollout.weights_dir that has",
                file=sys.stderr,
            )
        write_text(self._record, json.dumps(held._asdict()) + "\n", shared=True)

    def forget(self) -> None:
        """Note that it is not known what the server has."""
        self._record.unlink(missing_ok=True)

    @contextmanager
    def written(self, tensors: Iterable[tuple[str, Tensor]], size: int) -> Iterator[Path]:
        """Write tensors for the server to read, and delete them afterwards. Raises UserError where they do not fit.

        size: of all, bytes.
        """
        for leftover in self._path.glob(f"{self._name}-*"):  # of a sender that was killed: we have the lock
            shutil.rmtree(leftover, ignore_errors=True)
        if size > (free := shutil.disk_usage(self._path).free):
            raise UserError(
                f"rollout.weights_dir: {self._path} has {free / 1e9:.2f} GB free, and the weights take "
                f"{size / 1e9:.2f}; give another, which the server sees too"
            )
        folder = Path(tempfile.mkdtemp(prefix=f"{self._name}-", dir=self._path))
        try:
            folder.chmod(OPEN)
            _write(tensors, folder)
            yield folder
        except (OSError, SafetensorError) as error:
            raise UserError(f"rollout.weights_dir: {folder} cannot be written ({error}); give another") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def folder_of(config: RolloutConfig) -> Path:
    """Return the folder that weights go through. Raises UserError where nothing can be written into it."""
    path = Path(config.weights_dir).expanduser() if config.weights_dir else MEMORY
    if not config.weights_dir and not path.is_dir():
        path = Path(tempfile.gettempdir())
    if not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
        raise UserError(
            f"rollout.weights_dir: {path} is not a folder that this process can write into; give one that the server "
            "sees too"
        )
    return path.resolve()


def _write(tensors: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Write tensors into files of about SHARD bytes each."""
    part: dict[str, Tensor] = {}
    held = count = 0

    def flush() -> None:
        nonlocal held, count
        if part:
            file = folder / f"model-{count:05d}.safetensors"
            save_file(part, file)
            file.chmod(READABLE)
            part.clear()
            held, count = 0, count + 1

    for name, tensor in tensors:
        # experts' matrices are parts of one tensor, which a file cannot share
        part[name] = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        held += tensor.numel() * tensor.element_size()
        if held >= SHARD:
            flush()
    flush()
