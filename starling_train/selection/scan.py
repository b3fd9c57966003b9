"""SNR of every matrix of a checkpoint, streamed from its files: peak memory is a few matrices."""

import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from starling_train.config.fields import UserError
from starling_train.core import spectrum
from starling_train.core.float64 import scan_note
from starling_train.files import tensors as files
from starling_train.models.source import ModelSource
from starling_train.selection.listing import Listed, check_weights, matrices
from starling_train.selection.records import Record
from starling_train.selection.scan_journal import ScanJournal, content_hash

# Matrices whose eigenvalues are computed together on a GPU: eight fp64 Gram matrices of 4096 are 1.1 GB.
GPU_BATCH = 8
# Matrices read ahead: memory limits them on a CPU; on a GPU reading and hashing would be slower than the arithmetic.
READ_AHEAD = {"cpu": 1, "cuda": 6}
OnProgress = Callable[[int, int, Record], None]
In = TypeVar("In")
Out = TypeVar("Out")


def read_matrix(source: ModelSource, module: str) -> Tensor:
    """Read the weight of `module`, a name of `list_matrices`, in its own dtype on the CPU."""
    return _listed(source, module).read()


def read_values(source: ModelSource, module: str, device: str = "cpu") -> tuple[Tensor, tuple[int, ...]]:
    """Return the singular values of `module`, descending, and its shape. Raises UserError as `scan_model` does."""
    listed = _listed(source, module)
    matrix = listed.read().to(device)
    return spectrum.values_of_grams([_gram(matrix, listed.entry)], [matrix])[0], listed.record.shape


def _listed(source: ModelSource, module: str) -> Listed:
    return next(listed for listed in matrices(source) if listed.record.module == module)


def check_scan(source: ModelSource, records: dict[str, Record], dialect: str, file: str) -> str:
    """Return a warning if the scan `records` from `file` is of other weights than `source`; '' if not, or if unknown.

    Compares the content of the first and the last matrix only. Raises UserError where it was made in another dialect
    than `dialect`.
    """
    for other in {record.dialect for record in records.values()} - {None, dialect}:
        raise UserError(
            f"freeze.dialect: {dialect}, but {file} was scanned as {other}; set freeze.dialect={other}, or scan again"
        )
    everything = matrices(source)
    for listed in (everything[0], everything[-1]):
        content = records[listed.record.module].content
        if content and listed.entry.dtype in files.FLOATS and content_hash(listed.read()) != content:
            return (
                f"freeze.scan: {file} is of other weights than {source.directory} ({listed.record.module} differs), or "
                "of an older version of the scan; scan again unless you mean it"
            )
    return ""


def scan_model(
    source: ModelSource,
    *,
    dialect: str = "spectrum",
    device: str = "cpu",
    on_progress: OnProgress | None = None,
    journal: ScanJournal | None = None,
) -> dict[str, Record]:
    """Compute the SNR of every matrix of a model, keyed by module name, in the order of the forward pass.

    `journal` keeps what is done, and gives back what an interrupted scan of the same weights has done. A thread reads
    ahead of the computation. Raises UserError that names tensor and file for weights that are nan, infinite, quantised
    or on the meta device.
    """
    check_weights(source)
    todo, done = matrices(source), {}
    for record in _results(todo, dialect, torch.device(device), journal):
        done[record.module] = record
        if on_progress:
            on_progress(len(done), len(todo), record)
    files.forget()
    return {listed.record.module: done[listed.record.module] for listed in todo}


def _results(todo: list[Listed], dialect: str, device: torch.device, journal: ScanJournal | None) -> Iterator[Record]:
    """Yield finished records, on a GPU in batches of one short side."""
    batches: dict[int, list[_Loaded]] = {}
    for loaded in read_ahead(todo, lambda listed: _load(listed, device), READ_AHEAD.get(device.type, 1)):
        record = loaded.listed.record
        known = journal.find(record, loaded.content, dialect) if journal else None
        if known:
            yield known
            continue
        batch = batches.setdefault(min(record.shape), [])
        batch.append(loaded)
        if len(batch) == (GPU_BATCH if device.type == "cuda" else 1):
            yield from _finish(batches.pop(min(record.shape)), dialect, device, journal)
    for batch in batches.values():
        yield from _finish(batch, dialect, device, journal)


@dataclass(frozen=True)
class _Loaded:
    listed: Listed
    matrix: Tensor
    content: str


def _load(listed: Listed, device: torch.device) -> _Loaded:
    matrix = listed.read()
    return _Loaded(listed, matrix.to(device), content_hash(matrix))


def read_ahead(items: list[In], load: Callable[[In], Out], ahead: int = 1) -> Iterator[Out]:
    """Yield `load(item)` of each item in order, `ahead` items being loaded by a thread while the caller works."""
    with ThreadPoolExecutor(max_workers=ahead) as pool:
        waiting = deque(pool.submit(load, item) for item in items[:ahead])
        for item in [*items[ahead:], *[None] * min(ahead, len(items))]:
            ready = waiting.popleft().result()
            if item is not None:
                waiting.append(pool.submit(load, item))
            yield ready
            del ready


def _finish(batch: list[_Loaded], dialect: str, device: torch.device, journal: ScanJournal | None) -> Iterator[Record]:
    grams = [_gram(loaded.matrix, loaded.listed.entry) for loaded in batch]
    everyones = spectrum.values_of_grams(grams, [loaded.matrix for loaded in batch], _warn)
    for loaded, values in zip(batch, everyones, strict=True):
        n, m = loaded.matrix.shape
        score = spectrum.score(values, n, m, dialect)
        record = replace(loaded.listed.record, **vars(score), dialect=dialect, content=loaded.content)
        if journal:
            journal.add(record)
        yield record


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr)


def rate_note(device: str) -> str:
    """Return what a scan costs on this device, where that is a GPU that is slow at it; '' for any other."""
    if torch.device(device).type != "cuda":
        return ""
    return scan_note(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))


def _gram(matrix: Tensor, entry: files.Entry) -> Tensor:
    try:
        return spectrum.gram(matrix)
    except ValueError as error:
        raise UserError(f"{entry.file}: tensor {entry.name} has {error}; download or repair it") from None
