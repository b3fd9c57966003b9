"""The greedy search of `laser`: each matrix in turn at lower rank, kept if the measure does not get worse.

After laserRMT (see `core/rank_reduction.py`). Every try is a line of `tries.jsonl`, written when it is decided and, if
it was accepted, after its matrix: the search can continue after any kill, and never repeats a try.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from starling_train.config.fields import UserError, given
from starling_train.core.rank_reduction import factored_size
from starling_train.files import json_lines
from starling_train.files.json_lines import JsonLines, NoLines
from starling_train.models.causal_lm import CausalLM
from starling_train.models.source import ModelSource
from starling_train.rank_search import reduction
from starling_train.run.signals import StopRequest
from starling_train.selection.records import Record

LOG = "tries.jsonl"
ACCEPTED = "accepted"  # folder of the accepted matrices, until they are in the finished model

TryRow = dict[str, Any]


@dataclass(frozen=True)
class SearchJudge:
    """A measure of the model as it is now, and the rule (is_not_worse(after, before)) by which a change may stay."""

    name: str
    measure: Callable[[], float]
    is_not_worse: Callable[[float, float], bool]


@dataclass
class Search:
    """A search over the candidates.

    model: loaded from `source`, changed in place.
    source: the checkpoint.
    candidates: in the order in which they are tried.
    judge: decides what is kept.
    begun: the measure of the model as it was loaded.
    run: the run's directory.
    factors: whether the factors of accepted matrices are kept as well.
    """

    model: CausalLM
    source: ModelSource
    candidates: Sequence[Record]
    judge: SearchJudge
    begun: float
    run: Path
    factors: bool = False

    def rows(self) -> list[TryRow]:
        """Read the tries so far. Raises UserError if they are not of these candidates."""
        path = self.run / LOG
        rows = [row or {} for row in json_lines.read(path)]
        if [row.get("module") for row in rows] != [record.module for record in self.candidates[: len(rows)]]:
            raise UserError(f"run_dir: {path} has tries of other matrices; put the file back, or give another run_dir")
        return rows

    def current(self) -> float:
        """Return the measure of the model with the matrices accepted so far."""
        return next((row["after"] for row in reversed(self.rows()) if row["accepted"]), self.begun)

    def go_on(self, log: JsonLines | NoLines, stop: StopRequest) -> Iterator[TryRow]:
        """Put in the matrices that earlier starts accepted, then make the remaining tries, yielding the row of each."""
        done = self.rows()
        with stop.abandonable():
            for row, record in zip(done, self.candidates, strict=False):
                if row["accepted"]:
                    reduction.exchange(reduction.place_of(self.model, record), self.matrix(row, record)["matrix"])
        current = self.current()
        for step, record in enumerate(self.candidates[len(done) :], len(done) + 1):
            with stop.abandonable():  # the try is given up with the process
                row, reduced = self._attempt(step, record, current)
            if row["accepted"]:
                current = row["after"]
                reduction.write(reduced, self._file(record.module))
            log.write([row])
            yield row

    def _attempt(self, step: int, record: Record, current: float) -> tuple[TryRow, reduction.Reduced]:
        began = time.perf_counter()
        place = reduction.place_of(self.model, record)
        reduced = reduction.reduce(self.source, record, place.device, self.factors)
        before = reduction.exchange(place, reduced.matrix)
        after = self.judge.measure()
        accepted = self.judge.is_not_worse(after, current)
        if not accepted:
            reduction.exchange(place, before)
        row = {
            "step": step,
            "module": record.module,
            "type": record.type,
            "shape": list(record.shape),
            "parameters": record.size,
            "rank_before": reduced.rank_before,
            "rank": record.rank,
            "factored_parameters": factored_size(record.shape, given(record.rank)),
            "raw_snr": record.raw,
            "measure": self.judge.name,
            "before": current,
            "after": after,
            "accepted": accepted,
            "seconds": round(time.perf_counter() - began, 3),
            "content": reduced.content,
        }
        return row, reduced

    def matrix(self, row: TryRow, record: Record) -> dict[str, Tensor]:
        """Return an accepted matrix, and its factors where they are kept: from its file, or computed again without one.

        Raises UserError if the result is not the same.
        """
        if tensors := reduction.read(self._file(record.module), row["content"]):
            return tensors
        device = reduction.place_of(self.model, record).device
        reduced = reduction.reduce(self.source, record, device, self.factors)
        if reduced.content != row["content"]:
            raise UserError(
                f"run_dir: {self._file(record.module)} is gone or damaged, and this machine does not compute the same "
                "matrix again; put the file back, or give another run_dir"
            )
        reduction.write(reduced, self._file(record.module))
        return reduction.read(self._file(record.module), row["content"]) or {"matrix": reduced.matrix}

    def accepted(self) -> dict[str, tuple[TryRow, Record]]:
        """Return the accepted tries, by the matrix's name."""
        rows = zip(self.rows(), self.candidates, strict=False)
        return {record.module: (row, record) for row, record in rows if row["accepted"]}

    def clear(self) -> None:
        """Delete the files of the accepted matrices, which the finished model has."""
        shutil.rmtree(self.run / ACCEPTED, ignore_errors=True)

    def _file(self, module: str) -> Path:
        return self.run / ACCEPTED / f"{module}.safetensors"


def order(
    records: dict[str, Record], modules: list[str], layers: list[int], types: list[str], percent: float
) -> tuple[list[Record], int]:
    """Return (candidates, lowest raw SNR first; how many requested matrices are left out because nothing can be cut).

    A matrix whose rank would stay the same or become 0 is left out. Raises UserError if none is left.

    records: the scan.
    modules: restrict the candidates to these; an empty list does not.
    layers: likewise.
    types: likewise.
    percent: of the matrices so requested, rounded down, those with the lowest raw SNR.
    """
    requested = [record for record in records.values() if _is_requested(record, modules, layers, types)]
    requested.sort(key=lambda record: math.inf if record.raw is None else record.raw)
    chosen = requested[: int(len(requested) * percent / 100)]
    candidates = [record for record in chosen if 0 < given(record.rank) < min(record.shape)]
    if not candidates:
        raise UserError(
            f"laser.modules: none of the {len(chosen)} matrices has singular values on both sides of the threshold; "
            "name others, or use another freeze.dialect"
        )
    return candidates, len(chosen) - len(candidates)


def count_requested(
    records: dict[str, Record], modules: list[str], layers: list[int], types: list[str], percent: float
) -> int:
    """Return how many matrices `order` will consider. Raises UserError for a name that no matrix has, and for none.

    records: the matrices.
    modules, layers, types, percent: as in `order`.
    """
    known: dict[str, tuple[Sequence[Any], Sequence[Any]]] = {
        "modules": (modules, [record.module for record in records.values()]),
        "layers": (layers, [record.layer for record in records.values()]),
        "types": (types, [record.type for record in records.values()]),
    }
    for key, (requested, existing) in known.items():
        for name in requested:
            if name not in existing:
                options = ", ".join(map(str, list(dict.fromkeys(existing))[:8]))
                raise UserError(f"laser.{key}: the model has no matrix with {name}; there are: {options}, ...")
    count = sum(_is_requested(record, modules, layers, types) for record in records.values())
    if not count:
        raise UserError("laser.modules: no matrix is in laser.modules, laser.layers and laser.types at once; widen one")
    if not int(count * percent / 100):
        raise UserError(f"laser.percent: {percent:g} % of {count} matrices is none; raise it")
    return int(count * percent / 100)


def _is_requested(record: Record, modules: list[str], layers: list[int], types: list[str]) -> bool:
    return (
        (not modules or record.module in modules)
        and (not layers or record.layer in layers)
        and (not types or record.type in types)
    )
