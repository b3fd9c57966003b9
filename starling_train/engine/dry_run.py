"""What a run would do, from config.json and tokenizer alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from starling_train.config import Config
from starling_train.engine import setup
from starling_train.engine.planner import Planner, reward_shape
from starling_train.models import load
from starling_train.models.freeze import FreezeTable
from starling_train.models.memory_plan import Plan
from starling_train.models.shapes import Shape
from starling_train.models.snr_scan import list_matrices


def describe(config: Config) -> str:
    """What would be trained, on what, and the memory by part. Raises UserError as the run itself would."""
    directory = load.resolve(config.model.path, "model.path", config.model.revision, weights=False)
    model_config = load.load_config(directory, "model.path")
    tokenizer = setup.load_tokenizer(config, directory)
    setup.check_lengths(config, model_config, tokenizer)
    table, memory = planned(config, directory, model_config)
    which = (
        ""
        if config.freeze.method not in setup.SCORED or config.freeze.scan
        else "  (counts; which ones, the SNR scan decides when the run starts)"
    )
    return "\n".join(
        [
            f"run        {config.name}: {config.algorithm.name}, {config.algorithm.steps} steps of "
            f"{config.algorithm.prompts_per_step} prompts, up to {config.rollout.max_new_tokens} new tokens",
            f"policy     {config.model.path} ({model_config.model_type}, {model_config.num_hidden_layers} layers, "
            f"{len(tokenizer)} tokens), {config.model.dtype}",
            f"prompts    {config.data.path}{_prompt_report(config, tokenizer)}",
            f"reward     {config.reward.place()} ({config.reward.kind})",
            f"trains     {_what_trains(config)}{which}",
            "",
            table.render(),
            "",
            "memory, one process",
            memory.render(),
        ]
    )


def planned(config: Config, directory: Path, model_config: Any) -> tuple[FreezeTable, Plan]:
    """What would train and the memory by part, without weights and without a scan. Raises UserError."""
    model = load.build_empty(model_config)
    freeze = config.freeze
    if freeze.method in setup.SCORED and not freeze.scan:
        # as many of each type as the scan would select: types hold matrices of one size, so the counts are exact
        freeze = replace(freeze, method="random")
    records = setup.scan(freeze, directory, "cpu") if freeze.scan else list_matrices(directory)
    table = setup.apply(freeze, model, setup.select(freeze, records, config.seed))
    return table, _memory(config, model_config, table)


def _what_trains(config: Config) -> str:
    freeze = config.freeze
    return {
        "snr": f"the top {freeze.top_percent:g} % of each module type by SNR ({freeze.dialect}), by {freeze.unit}",
        "lowest": f"the lowest {freeze.top_percent:g} % of each module type by SNR ({freeze.dialect}), a control",
        "random": f"a random {freeze.top_percent:g} % of each module type",
        "layers": f"layers {freeze.layers}",
        "last_layers": f"the last {freeze.last_layers} layers",
        "none": "everything",
    }[freeze.method]


def _prompt_report(config: Config, tokenizer: Any) -> str:
    if not Path(config.data.path).expanduser().exists():
        return "  (not a local path: read when the run starts)"
    return f": {setup.load_data(config, tokenizer).report}"


def _memory(config: Config, model_config: Any, table: FreezeTable) -> Plan:
    if config.freeze.method in setup.SCORED and not config.freeze.scan:
        # which layers the scan picks is not known yet: the lowest that it may pick
        table = replace(table, lowest_layer=config.freeze.lowest_layer)
    return Planner(config, Shape.of(model_config), reward_shape(config), table).memory()
