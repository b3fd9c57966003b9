"""The greedy search of `laser`: each matrix in turn at lower rank, kept if the measure does not get worse.

After laserRMT (see `core/rank_reduction.py`). Every try is a line of `tries.jsonl`, written when it is decided and, if
it was accepted, after its matrix: the search goes on after any kill, and no try is made twice.
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

Row = dict[str, Any]


@dataclass(frozen=True)
class Judge:
    """measure: of the model as it is now. is_not_worse(after, before): whether a change may stay."""

    name: str
    measure: Callable[[], float]
    is_not_worse: Callable[[float, float], bool]


@dataclass
class Search:
    """A search over `candidates` in this order. model: loaded from `source`, changed in place.

    begun: the measure of the model as it was loaded. factors: keep the factors of accepted matrices as well.
    """

    model: CausalLM
    source: ModelSource
    candidates: Sequence[Record]
    judge: Judge
    begun: float
    run: Path
    factors: bool = False

    def rows(self) -> list[Row]:
        """The tries so far. Raises UserError if they are not of these candidates."""
        path = self.run / LOG
        rows = [row or {} for row in json_lines.read(path)]
        if [row.get("module") for row in rows] != [record.module for record in self.candidates[: len(rows)]]:
            raise UserError(f"run_dir: {path} has tries of other matrices; put the file back, or give another run_dir")
        return rows

    def current(self) -> float:
        """The measure of the model with what was accepted so far."""
        return next((row["after"] for row in reversed(self.rows()) if row["accepted"]), self.begun)

    def go_on(self, log: JsonLines | NoLines, stop: StopRequest) -> Iterator[Row]:
        """Put in what earlier starts accepted, then make the tries that are left, yielding the row of each."""
        done = self.rows()
        with stop.abandonable():
            for row, record in zip(done, self.candidates, strict=False):
                if row["accepted"]:
                    reduction.exchange(reduction.parameter_of(self.model, record), self.matrix(row, record)["matrix"])
        current = self.current()
        for step, record in enumerate(self.candidates[len(done) :], len(done) + 1):
            with stop.abandonable():  # what is in memory is given up with the process
                row, reduced = self._attempt(step, record, current)
            if row["accepted"]:
                current = row["after"]
                reduction.write(reduced, self._file(record.module))
            log.write([row])
            yield row

    def _attempt(self, step: int, record: Record, current: float) -> tuple[Row, reduction.Reduced]:
        began = time.perf_counter()
        parameter = reduction.parameter_of(self.model, record)
        reduced = reduction.reduce(self.source, record, parameter.device, self.factors)
        before = reduction.exchange(parameter, reduced.matrix)
        after = self.judge.measure()
        accepted = self.judge.is_not_worse(after, current)
        if not accepted:
            reduction.exchange(parameter, before)
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

    def matrix(self, row: Row, record: Record) -> dict[str, Tensor]:
        """An accepted matrix, and its factors where they are kept: from its file, or made again where that is gone.

        Raises UserError if it does not come out the same.
        """
        if kept := reduction.read(self._file(record.module), row["content"]):
            return kept
        device = reduction.parameter_of(self.model, record).device
        reduced = reduction.reduce(self.source, record, device, self.factors)
        if reduced.content != row["content"]:
            raise UserError(
                f"run_dir: {self._file(record.module)} is gone or damaged, and its matrix does not come out the same "
                "on this machine; put the file back, or give another run_dir"
            )
        reduction.write(reduced, self._file(record.module))
        return reduction.read(self._file(record.module), row["content"]) or {"matrix": reduced.matrix}

    def accepted(self) -> dict[str, tuple[Row, Record]]:
        """The tries that were accepted, by the model's parameter."""
        rows = zip(self.rows(), self.candidates, strict=False)
        return {record.parameter: (row, record) for row, record in rows if row["accepted"]}

    def clear(self) -> None:
        """The accepted matrices are in the finished model: their files go."""
        shutil.rmtree(self.run / ACCEPTED, ignore_errors=True)

    def _file(self, module: str) -> Path:
        return self.run / ACCEPTED / f"{module}.safetensors"


def order(
    records: dict[str, Record], modules: list[str], layers: list[int], types: list[str], percent: float
) -> tuple[list[Record], int]:
    """(candidates, lowest raw SNR first; how many of those in question are left out as having nothing to cut).

    modules, layers, types: narrow down what is in question; empty ones do not. percent: of what is in question, rounded
    down, those of the lowest raw SNR. A matrix is left out whose rank would stay or would be 0. Raises UserError if
    nothing is left.
    """
    asked = [record for record in records.values() if _is_asked(record, modules, layers, types)]
    asked.sort(key=lambda record: math.inf if record.raw is None else record.raw)
    chosen = asked[: int(len(asked) * percent / 100)]
    found = [record for record in chosen if 0 < given(record.rank) < min(record.shape)]
    if not found:
        raise UserError(
            f"laser.modules: none of the {len(chosen)} matrices has singular values on both sides of the threshold; "
            "name others, or use another freeze.dialect"
        )
    return found, len(chosen) - len(found)


def check_asked(
    records: dict[str, Record], modules: list[str], layers: list[int], types: list[str], percent: float
) -> int:
    """How many matrices `order` will look at. Raises UserError for a name that no matrix has, and if they are none."""
    known: dict[str, tuple[Sequence[Any], Sequence[Any]]] = {
        "modules": (modules, [record.module for record in records.values()]),
        "layers": (layers, [record.layer for record in records.values()]),
        "types": (types, [record.type for record in records.values()]),
    }
    for key, (wanted, there) in known.items():
        for name in wanted:
            if name not in there:
                options = ", ".join(map(str, list(dict.fromkeys(there))[:8]))
                raise UserError(f"laser.{key}: the model has no matrix with {name}; there are: {options}, ...")
    count = sum(_is_asked(record, modules, layers, types) for record in records.values())
    if not count:
        raise UserError("laser.modules: no matrix is in laser.modules, laser.layers and laser.types at once; widen one")
    if not int(count * percent / 100):
        raise UserError(f"laser.percent: {percent:g} % of {count} matrices is none; raise it")
    return int(count * percent / 100)


def _is_asked(record: Record, modules: list[str], layers: list[int], types: list[str]) -> bool:
    return (
        (not modules or record.module in modules)
        and (not layers or record.layer in layers)
        and (not types or record.type in types)
    )
