"""An adapter's files in a model directory: transformers would hang it onto whatever the directory holds.

Where weights lie beside it, they have usually been merged, and the adapter would count twice.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from starling_train.config.fields import UserError
from starling_train.files.json_object import read_json
from starling_train.files.weight_files import choose, names_in

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # as PEFT writes them
MLX = "adapters.safetensors"
ALL = (CONFIG, WEIGHTS, "adapter_model.bin", MLX)  # an older PEFT's, and MLX's
BASES = ("base_model_name_or_path", "model", "model_name")  # PEFT's key, MLX's, AdapterHub's
OF_OUR_RUNS = "trainable.safetensors"  # in a checkpoint of ours, beside its adapter
UNMERGEABLE = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT")
CLASSES = {"SEQ_CLS": ("SequenceClassification", ", num_labels=1")}


def check(directory: Path, key: str) -> None:
    """Raise UserError, naming `key`, for a directory that holds an adapter, with a model's weights or alone."""
    names = names_in(directory)
    if is_adapter(names):
        raise refusal(str(directory), key, names, directory / CONFIG)


def is_adapter(names: Collection[str]) -> bool:
    """Return whether a directory with these files is taken for an adapter, or is nothing else.

    An adapter's weights without its configuration are read by nobody: beside a model they are only in the way.
    """
    return CONFIG in names or (choose(names) is None and bool(set(ALL) & set(names)))


def refusal(where: str, key: str, names: Collection[str], config: Path) -> UserError:
    """Return the error of one line. where: directory or hub id. names: its files. config: its adapter_config.json."""
    try:
        values = read_json(config)
    except UserError:
        values = {}
    base = next((values[name] for name in BASES if isinstance(values.get(name), str) and values[name]), None)
    of = f"an adapter of {base}" if base else "an adapter of a model that it does not name"
    held = " and ".join(name for name in ALL if name in names)
    merge = _way(where, names, values)
    if OF_OUR_RUNS in names:
        run = config.parent.parent.parent  # RUN/checkpoints/step_000123/adapter_config.json
        run_dir = run if (run / "config.yaml").is_file() else "RUN"
        return UserError(
            f"{key}: {where} is a checkpoint of a run, {of}, not a whole model; merge it first: python -m "
            f"starling_train.export run_dir={run_dir} checkpoint={config.parent.name} output=NEW, and give NEW"
        )
    if choose(names) is None:
        return UserError(f"{key}: {where} holds {of} ({held}), not a model; merge it first: {merge}")
    clean = f"remove {held}" if where == str(config.parent) else f"give a copy without {held}"
    return UserError(
        f"{key}: {where} holds {of} ({held}) beside a model's weights, and transformers would add it to them; if it is "
        f"merged into them already, {clean}; if not, merge it: {merge}"
    )


def _way(where: str, names: Collection[str], values: dict[str, Any]) -> str:
    """Say how an adapter is merged into its base. values: of its adapter_config.json."""
    if MLX in names:
        return "`mlx_lm.fuse` of the package mlx-lm, and give what it writes"
    if values.get("peft_type") in UNMERGEABLE:
        return f"but one of type {values['peft_type']} is no change of weights and cannot be, so give another model"
    kind, labels = CLASSES.get(str(values.get("task_type")), ("CausalLM", ""))
    return (
        f"`AutoPeftModelFor{kind}.from_pretrained('{where}'{labels}).merge_and_unload().save_pretrained(NEW)` of the "
        "package peft, with the tokenizer's files copied into NEW, and give NEW"
    )
