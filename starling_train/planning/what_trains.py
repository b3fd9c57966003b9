"""What a run would do, from config.json and tokenizer alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from starling_train.config.sections import FreezeConfig
from starling_train.models import causal_lm
from starling_train.selection import freeze as selection_freeze
from starling_train.selection import scans
from starling_train.selection.freeze import FreezeTable
from starling_train.selection.scan import list_matrices

COUNTS_ONLY = "  (counts; which ones, the SNR scan decides when the run starts)"


def what_trains(freeze: FreezeConfig, directory: Path, model_config: Any, seed: int) -> FreezeTable:
    """The table of a policy, without weights and without a scan. Raises UserError."""
    model = causal_lm.build_empty(model_config)
    unscanned = freeze.method in scans.SCORED and not freeze.scan
    if unscanned:
        # as many of each type as the scan would select: types hold matrices of one size, so the counts are exact
        freeze = replace(freeze, method="random")
    records = scans.scan_or_list(freeze, directory, "cpu") if freeze.scan else list_matrices(directory)
    table = selection_freeze.apply_to(freeze, model, scans.select(freeze, records, seed))
    # which layers the scan picks is not known yet: the lowest that it may pick
    return replace(table, lowest_layer=freeze.lowest_layer) if unscanned else table


def selection(freeze: FreezeConfig) -> str:
    """What trains, in words."""
    which = "" if freeze.method not in scans.SCORED or freeze.scan else COUNTS_ONLY
    return _method(freeze) + which


def _method(freeze: FreezeConfig) -> str:
    return {
        "snr": f"the top {freeze.top_percent:g} % of each module type by SNR ({freeze.dialect}), by {freeze.unit}",
        "lowest": f"the lowest {freeze.top_percent:g} % of each module type by SNR ({freeze.dialect}), a control",
        "random": f"a random {freeze.top_percent:g} % of each module type",
        "layers": f"layers {freeze.layers}",
        "last_layers": f"the last {freeze.last_layers} layers",
        "none": "everything",
    }[freeze.method]
