"""SNR of every matrix of a checkpoint, streamed from its files: peak memory is a few matrices."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from starling_train.config import UserError
from starling_train.core import spectrum
from starling_train.models import checkpoint_files as files
from starling_train.models.module_types import LAYER, Matrix, classify
from starling_train.models.scan_journal import Journal, content_hash
from starling_train.models.scan_records import Record, match, read_scan, write_scan

__all__ = [
    "Record",
    "list_matrices",
    "match",
    "other_weights",
    "read_matrix",
    "read_scan",
    "scan",
    "unscanned",
    "write_scan",
]

# Matrices whose eigenvalues are computed together on a GPU: eight fp64 Gram matrices of 4096 are 1.1 GB.
GPU_BATCH = 8
# Matrices read ahead: memory decides on a CPU; on a GPU reading and hashing would be slower than the
# arithmetic.
READ_AHEAD = {"cpu": 1, "cuda": 6}
Progress = Callable[[int, int, Record], None]
In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Job:
    """A matrix to scan: its record without a score, and where it lies."""

    record: Record
    entry: files.Entry
    index: tuple[int | slice, ...]


def list_matrices(path: Path) -> dict[str, Record]:
    """The matrices of a model directory, names, types and shapes only; from config.json alone if need be."""
    return {job.record.module: job.record for job in _jobs(Path(path))}


def unscanned(path: Path) -> dict[str, int]:
    """Weights of two or more dimensions that are no known matrix, embedding or head -> how many of them.

    Layer and expert numbers are replaced by `*`. What stands here has no score and cannot be selected.
    """
    config = files.read_config(Path(path))
    counts: dict[str, int] = {}
    for entry in _entries(Path(path)):
        if classify(_module(entry), entry.shape, config).kind == "unknown":
            name = ".".join("*" if part.isdigit() else part for part in entry.name.split("."))
            counts[name] = counts.get(name, 0) + 1
    return counts


def other_weights(path: Path) -> dict[str, str]:
    """Names of weights besides the matrices -> embeddings, head, norms or other."""
    config, groups = (
        files.read_config(Path(path)),
        {"norm": "norms", "embeddings": "embeddings", "head": "head"},
    )
    kinds = {e.name: classify(_module(e), e.shape, config).kind for e in _entries(Path(path))}
    return {name: groups.get(kind, "other") for name, kind in kinds.items() if kind != "matrices"}


def _module(entry: files.Entry) -> str:
    return entry.name.removesuffix(".weight")


def _jobs(path: Path) -> list[Job]:
    """All matrices, by layer and then in the order of the forward pass."""
    config = files.read_config(path)
    found: list[tuple[Matrix, files.Entry]] = []
    for entry in _entries(path):
        found += [(matrix, entry) for matrix in classify(_module(entry), entry.shape, config).matrices]
    if not found:
        raise UserError(
            f"model.path: no matrix of a known type in {path} (model_type {config.get('model_type')}); "
            "give a decoder such as Mistral, Llama or Mixtral"
        )
    found.sort(key=lambda pair: pair[0].order)
    return [Job(Record(matrix.module, matrix.type, matrix.shape), entry, matrix.index) for matrix, entry in found]


def read_matrix(path: Path, module: str) -> Tensor:
    """The weight of `module`, a name of `list_matrices`, in its own dtype on the CPU."""
    job = next(job for job in _jobs(Path(path)) if job.record.module == module)
    return files.read(job.entry, job.index)


def _entries(path: Path) -> list[files.Entry]:
    return files.entries(path) or _entries_of_config(path)


def _entries_of_config(path: Path) -> list[files.Entry]:
    """The parameters of the model that config.json describes, built on the meta device."""
    if not (path / "config.json").is_file():
        raise UserError(f"model.path: {path} has neither weights nor config.json; give a Hugging Face model directory")
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (ValueError, OSError) as error:
        raise UserError(f"{path / 'config.json'}: {str(error).strip().splitlines()[0]}") from None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return [files.Entry(name, path, tuple(p.shape), "meta") for name, p in model.named_parameters()]


def check_weights(path: Path) -> None:
    """Raises UserError if a scan of `path` cannot even start: no weights, or quantised or meta tensors."""
    entries = files.entries(path)
    if not entries:
        raise UserError(f"model.path: {path} has no weights (*.safetensors or *.bin); a scan needs them")
    for entry in entries:
        if LAYER.match(entry.name):
            files.check_readable(entry)


def scan(
    path: Path,
    *,
    dialect: str = "spectrum",
    device: str = "cpu",
    on_progress: Progress | None = None,
    journal: Journal | None = None,
) -> dict[str, Record]:
    """SNR of every matrix of the model directory `path`, keyed by module name, in the order of the
    forward pass.

    `journal` keeps what is done, and gives back what an interrupted scan of the same weights has done. A
    thread reads ahead of the computation. Raises UserError that names tensor and file for weights that
    are nan, infinite, quantised or on the meta device.
    """
    path = Path(path)
    check_weights(path)
    jobs, done = _jobs(path), {}
    for record in _results(jobs, dialect, torch.device(device), journal):
        done[record.module] = record
        if on_progress:
            on_progress(len(done), len(jobs), record)
    return {job.record.module: done[job.record.module] for job in jobs}


def _results(jobs: list[Job], dialect: str, device: torch.device, journal: Journal | None) -> Iterator[Record]:
    """Finished records, on a GPU in batches of one short side."""
    batches: dict[int, list[_Loaded]] = {}
    for loaded in read_ahead(jobs, lambda job: _load(job, device), READ_AHEAD.get(device.type, 1)):
        known = journal.find(loaded.record, loaded.content, dialect) if journal else None
        if known:
            yield known
            continue
        batch = batches.setdefault(min(loaded.record.shape), [])
        batch.append(loaded)
        if len(batch) == (GPU_BATCH if device.type == "cuda" else 1):
            yield from _finish(batches.pop(min(loaded.record.shape)), dialect, device, journal)
    for batch in batches.values():
        yield from _finish(batch, dialect, device, journal)


@dataclass(frozen=True)
class _Loaded:
    record: Record
    entry: files.Entry
    matrix: Tensor
    content: str


def _load(job: Job, device: torch.device) -> _Loaded:
    matrix = files.read(job.entry, job.index)
    return _Loaded(job.record, job.entry, matrix.to(device), content_hash(matrix))


def read_ahead(items: list[In], load: Callable[[In], Out], ahead: int = 1) -> Iterator[Out]:
    """`load(item)` of each item in order, `ahead` items being loaded by a thread while the caller works."""
    with ThreadPoolExecutor(max_workers=ahead) as pool:
        waiting = deque(pool.submit(load, item) for item in items[:ahead])
        for item in [*items[ahead:], *[None] * min(ahead, len(items))]:
            ready = waiting.popleft().result()
            if item is not None:
                waiting.append(pool.submit(load, item))
            yield ready
            del ready


def _finish(batch: list[_Loaded], dialect: str, device: torch.device, journal: Journal | None) -> Iterator[Record]:
    grams = []
    for loaded in batch:
        try:
            grams.append(spectrum.gram(loaded.matrix))
        except ValueError as error:
            raise UserError(
                f"{loaded.entry.file}: tensor {loaded.entry.name} has {error}; download or repair it"
            ) from None
    for loaded, values in zip(batch, spectrum.values_of_grams(grams, [one.matrix for one in batch]), strict=True):
        n, m = loaded.matrix.shape
        score = spectrum.score(values, n, m, dialect)
        record = replace(loaded.record, **vars(score), dialect=dialect, content=loaded.content)
        if journal:
            journal.add(record)
        yield record
