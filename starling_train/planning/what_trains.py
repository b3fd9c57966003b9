"""What a run would do, from config.json and tokenizer alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from starling_train.config.ppo import PpoConfig
from starling_train.config.sections import FreezeConfig
from starling_train.engine import setup
from starling_train.models import causal_lm
from starling_train.planning.memory import Plan
from starling_train.planning.planner import Planner, reward_shape
from starling_train.planning.shapes import Shape
from starling_train.selection import freeze as selection_freeze
from starling_train.selection import scans
from starling_train.selection.freeze import FreezeTable
from starling_train.selection.scan import list_matrices

COUNTS_ONLY = "  (counts; which ones, the SNR scan decides when the run starts)"


def describe(config: PpoConfig) -> str:
    """What would be trained, on what, and the memory by part. Raises UserError as the run itself would."""
    directory = causal_lm.resolve(config.model.path, "model.path", config.model.revision, weights=False)
    model_config = causal_lm.load_config(directory, "model.path")
    tokenizer = setup.load_tokenizer(config, directory)
    setup.check_lengths(config, model_config, tokenizer)
    table, memory = planned(config, directory, model_config)
    return "\n".join(
        [
            f"run        {config.name}: {config.algorithm.name}, {config.algorithm.steps} steps of "
            f"{config.algorithm.prompts_per_step} prompts, up to {config.rollout.max_new_tokens} new tokens",
            f"policy     {config.model.path} ({model_config.model_type}, {model_config.num_hidden_layers} layers, "
            f"{len(tokenizer)} tokens), {config.model.dtype}",
            f"prompts    {config.data.path}{_prompt_report(config, tokenizer)}",
            f"reward     {config.reward.place()} ({config.reward.kind})",
            f"trains     {selection(config.freeze)}",
            "",
            table.render(),
            "",
            "memory, one process",
            memory.render(),
        ]
    )


def planned(config: PpoConfig, directory: Path, model_config: Any) -> tuple[FreezeTable, Plan]:
    """What would train and the memory by part, without weights and without a scan. Raises UserError."""
    table = what_trains(config.freeze, directory, model_config, config.seed)
    return table, _memory(config, model_config, table)


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


def _prompt_report(config: PpoConfig, tokenizer: Any) -> str:
    if not Path(config.data.path).expanduser().exists():
        return "  (not a local path: read when the run starts)"
    return f": {setup.load_data(config, tokenizer).report}"


def _memory(config: PpoConfig, model_config: Any, table: FreezeTable) -> Plan:
    return Planner(config, Shape.of(model_config), reward_shape(config), table).memory()
