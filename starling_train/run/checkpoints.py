"""Checkpoints of the trainable tensors: complete or absent, verified when read, safetensors and JSON only."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from starling_train.config.fields import UserError
from starling_train.files import tensor_file, whole
from starling_train.files.identity import Identity, identify
from starling_train.files.tensor_file import Tensors
from starling_train.run import manifest
from starling_train.run.manifest import Damaged
from starling_train.run.state import TrainState

ExtraFiles = Callable[[Path, dict[str, Tensor]], Sequence[str]]
FILES = ("trainable.safetensors", "optimizer.safetensors", "state.json")


@dataclass
class Checkpoint:
    trainable: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: TrainState


class Checkpoints:
    """The folder `checkpoints/` of a run: one folder `step_000123` each, the newest `keep` of them.

    base: the model that the trainable tensors belong to; a checkpoint of another base is refused.
    extra_files: writes more files into a checkpoint's folder, for other programs, and returns their names.
    saved: step of the newest checkpoint that is known to be good; None before one.
    pinned: step of a checkpoint that stays, however old it is; None without one.
    """

    def __init__(self, directory: Path, keep: int, base: Identity, extra_files: ExtraFiles | None = None):
        self._directory, self._keep, self._base, self._extra_files = directory, keep, base, extra_files
        self._bad: set[Path] = set()
        self.saved: int | None = None
        self.pinned: int | None = None

    def save(self, trainable: Tensors, optimizer: Tensors, state: TrainState) -> Path:
        """Write to a hidden folder, flush, rename; then drop what is damaged or older than the newest `keep`.

        Nothing is written for a step whose checkpoint is known to be good: replacing it would risk it.
        trainable, optimizer: one tensor of them after the other is copied to the host; the other processes of the run
        take part with `take_part`.
        """
        final = self._directory / manifest.folder_name(state.step)
        if self.saved == state.step:
            self.take_part(trainable, optimizer)
            return final
        self._sweep()
        whole.write_whole(final, lambda partial: self._fill(partial, trainable, optimizer, state))
        self._bad.discard(final)
        self.saved = state.step
        self._prune()
        return final

    @staticmethod
    def take_part(trainable: Tensors, optimizer: Tensors) -> None:
        """Gather, in a process that does not write, what `save` writes in the first one."""
        tensor_file.take_part(trainable)
        tensor_file.take_part(optimizer)

    def _fill(self, partial: Path, trainable: Tensors, optimizer: Tensors, state: TrainState) -> None:
        partial.mkdir(parents=True)
        tensor_file.write(partial / "trainable.safetensors", trainable)
        tensor_file.write(partial / "optimizer.safetensors", optimizer)
        (partial / "state.json").write_text(json.dumps(state.to_json(), allow_nan=False))
        more: Sequence[str] = ()
        if self._extra_files:  # from the file: gathering tensors once more would need all processes
            more = self._extra_files(partial, load_file(partial / "trainable.safetensors"))
        manifest.write(partial, state.step, self._base, (*FILES, *more))

    def newest(self, logged: int | None = None) -> Checkpoint | None:
        """Load the newest intact checkpoint; one that is damaged is reported and passed over.

        logged: last step in metrics.jsonl; a checkpoint of a later step would leave a gap in it, and is passed over
        too. None without any checkpoint. Raises UserError if none of those that exist can be used, or if the newest
        belongs to another base model.
        """
        self._sweep()
        problems = []
        for directory in reversed(folders(self._directory)):
            try:
                checkpoint = self._load(directory, logged)
            except Damaged as problem:
                problems.append(f"{directory}: {problem}")
                self._bad.add(directory)
                continue
            for text in problems:
                print(f"warning: {text}; using the checkpoint before it, {directory.name}", file=sys.stderr)
            self.saved = checkpoint.state.step
            return checkpoint
        if problems:
            raise UserError(
                f"run_dir: none of its checkpoints can be used ({'; '.join(problems)}); put the files back, or give "
                "another run_dir to start again"
            )
        return None

    def at(self, step: int) -> Checkpoint:
        """Load the checkpoint of a step, which another process has found to be good: its bytes are not read twice."""
        return self._load(self._directory / manifest.folder_name(step), None, compared=())

    def verify(self, step: int) -> None:
        """Compare every byte of a step's checkpoint with its manifest. Raises UserError where it is not whole."""
        directory = self._directory / manifest.folder_name(step)
        try:
            manifest.verify(directory, FILES)
        except Damaged as problem:
            raise UserError(f"{directory}: {problem}; put the file back, and run the same command again") from problem

    def _load(self, directory: Path, logged: int | None, compared: tuple[str, ...] | None = None) -> Checkpoint:
        """Load a checkpoint. Raises Damaged, and UserError for another base model.

        compared: see `manifest.verify`.
        """
        written = manifest.verify(directory, FILES, compared=compared)
        if written.base.sha256 != self._base.sha256:
            raise UserError(
                f"{directory}: made from another base model than model.path; give that model, or another run_dir"
            )
        try:
            state = TrainState.from_json(json.loads((directory / "state.json").read_text()))
        except ValueError as error:
            raise Damaged(f"state.json {error}") from error
        if state.step != written.step:
            raise Damaged(f"state.json is of step {state.step}")
        if logged is not None and state.logged > logged:
            raise Damaged(
                f"is newer than metrics.jsonl, which {f'ends with step {logged}' if logged >= 0 else 'is empty'}"
            )
        try:
            tensors = [load_file(directory / name) for name in FILES[:2]]
        except SafetensorError as error:
            raise Damaged(f"is not a pair of safetensors files ({error})") from error
        return Checkpoint(tensors[0], tensors[1], state)

    def _prune(self) -> None:
        """Drop what is known to be damaged, and what is older than the newest `keep` that look whole, but `pinned`."""
        intact = 0
        for directory in reversed(folders(self._directory)):
            is_pinned = self.pinned is not None and directory.name == manifest.folder_name(self.pinned)
            if directory in self._bad or (intact >= self._keep and not is_pinned):
                self._drop(directory)
            elif _looks_whole(directory):
                intact += 1

    def _drop(self, directory: Path) -> None:
        whole.remove(directory)
        self._bad.discard(directory)

    def _sweep(self) -> None:
        """Remove what a kill left half written or half deleted."""
        for pattern in (".step_*.partial", ".step_*.old"):
            for leftover in self._directory.glob(pattern):
                shutil.rmtree(leftover, ignore_errors=True)


def identify_base(directory: Path, base: Path) -> Identity:
    """Identify the model in the directory `base`.

    directory: `checkpoints/` of a run, whose newest manifest may know the hashes of unchanged files.
    """
    return identify(base, known_base(directory))


def known_base(directory: Path) -> dict[str, dict]:
    """Return `Identity.files` of the newest intact manifest; empty if there is none."""
    for folder in reversed(folders(directory)):
        try:
            return manifest.read(folder).base.files
        except Damaged:
            continue
    return {}


def folders(directory: Path) -> list[Path]:
    """List the folders of `checkpoints/` that are named as checkpoints, oldest first."""
    named = [path for path in directory.glob("step_*") if re.fullmatch(r"step_\d{6,}", path.name) and path.is_dir()]
    return sorted(named, key=lambda path: int(path.name.removeprefix("step_")))


def _looks_whole(directory: Path) -> bool:
    try:
        manifest.verify(directory, FILES, compared=())
    except Damaged:
        return False
    return True
