"""What a run would train, from config.json alone."""

from dataclasses import replace
from typing import Any

from starling_train.config.sections import FreezeConfig
from starling_train.models.causal_lm import build_empty
from starling_train.models.reward.net import Network
from starling_train.models.source import ModelSource
from starling_train.planning.memory import MemoryPlan
from starling_train.selection.freeze import FreezeTable, apply
from starling_train.selection.listing import list_matrices, matrices_of, names_of
from starling_train.selection.records import Record
from starling_train.selection.scan_file import slug_of_path
from starling_train.selection.scans import match_scan, scan_or_list
from starling_train.selection.select import SCORED, needs_scan, select

COUNTS_ONLY = "  (counts; which ones, the SNR scan decides when the run starts)"


def what_trains(freeze: FreezeConfig, source: ModelSource, seed: int) -> FreezeTable:
    """Make the table of a policy, without weights and without a scan. Raises UserError."""
    records = scan_or_list(freeze, source, "cpu") if freeze.scan else list_matrices(source)
    return _table(freeze, build_empty(source.policy_config), records, seed)


def what_trains_of(freeze: FreezeConfig, model_config: Any, seed: int, path: str | None = None) -> FreezeTable:
    """Make the table of a policy from its configuration alone. path: `model.path`. Raises UserError."""
    return what_trains_in(freeze, build_empty(model_config), seed, path)


def what_trains_in(freeze: FreezeConfig, model: Network, seed: int, path: str | None = None) -> FreezeTable:
    """Make the table of an empty model. path: `model.path`, by whose name a scan is looked for. Raises UserError."""
    records = matrices_of(model)
    if freeze.method in SCORED and freeze.scan:
        records = match_scan(freeze, records, slug_of_path(path or ""), lambda: names_of(model))
    return _table(freeze, model, records, seed)


def select_as_many(freeze: FreezeConfig, records: dict[str, Record], seed: int) -> list[str]:
    """Select as many matrices of each type as a scan would, where there is none.

    A type's matrices have one size, so the counts are exact.
    """
    return select(replace(freeze, method="random") if needs_scan(freeze) else freeze, records, seed)


def _table(freeze: FreezeConfig, model: Network, records: dict[str, Record], seed: int) -> FreezeTable:
    table = apply(freeze, model, select_as_many(freeze, records, seed))
    # which layers the scan will pick is unknown: assume the lowest that it may
    return replace(table, lowest_layer=min(table.lowest_layer, freeze.lowest_layer)) if needs_scan(freeze) else table


def rendered(table: FreezeTable, memory: MemoryPlan) -> list[str]:
    """Render lines for people: what trains, and the memory that it takes."""
    return ["", table.render(), "", "memory, one process", memory.render()]


def selection(freeze: FreezeConfig) -> str:
    """Describe what trains."""
    return _method(freeze) + (COUNTS_ONLY if needs_scan(freeze) else "")


def _method(freeze: FreezeConfig) -> str:
    return {
        "snr": f"the top {freeze.top_percent:g} % of each module type by SNR ({freeze.dialect}), by {freeze.unit}",
        "lowest": f"the lowest {freeze.top_percent:g} % of each module type by SNR ({freeze.dialect}), a control",
        "random": f"a random {freeze.top_percent:g} % of each module type",
        "layers": f"layers {freeze.layers}",
        "last_layers": f"the last {freeze.last_layers} layers",
        "none": "everything",
    }[freeze.method]
