"""The results of a search for lower ranks: how good the model was before it, the model after it, and the numbers."""

import json
from dataclasses import asdict
from typing import Any

from starling_train.config.fields import UserError, given
from starling_train.config.laser import LaserConfig
from starling_train.core.rank_reduction import saving
from starling_train.data.chat import Chat
from starling_train.files import disk
from starling_train.files.json_object import read_json
from starling_train.models import causal_lm, factored
from starling_train.models.source import ModelSource
from starling_train.rank_search import reduction
from starling_train.rank_search.inputs import Inputs
from starling_train.rank_search.search import Search
from starling_train.run.directory import RunDirectory
from starling_train.run.runtime import Runtime
from starling_train.run.summary import git_commit, versions

START = "start.json"  # which model and data these are, and how good the model was before the first try


def read_start(run: RunDirectory, source: ModelSource, data: str) -> dict[str, Any] | None:
    """Read what an earlier start measured before its first try; None without an earlier start.

    data: hash of the data that the measure reads. Raises UserError for another model, and for other data.
    """
    path = run.path / START
    if not path.is_file():
        return None
    try:
        known = read_json(path)
    except UserError as error:
        raise UserError(f"run_dir: {path} is damaged; put it back, or give another run_dir=") from error
    if known.get("model") != source.fingerprint or not isinstance(known.get("judging"), float):
        raise UserError(
            f"run_dir: {run.path} was begun with other weights than those in {source.directory} now; give "
            "another run_dir="
        )
    if known.get("data") != data:
        raise UserError(
            f"run_dir: {run.path} was begun with other text or pairs than the present ones; put them back, or give "
            "another run_dir="
        )
    return known


def check_room(run: RunDirectory, source: ModelSource, in_factors: bool) -> None:
    """Raise UserError if the model, the accepted matrices and the factored model may not fit on the run's disk."""
    size = source.files.size
    copies = 3 if in_factors else 2
    what = f"the model and accepted matrices, {copies} times the {size / 1e9:.2f} of {source.directory}"
    disk.check_fits(run.path, copies * size, what, "free some, or give another run_dir")


def write(search: Search, chat: Chat, run: RunDirectory, in_factors: bool) -> dict[str, int]:
    """Write `model/` and, if requested, `factored/`. Returns the counts of their numbers.

    `model/` is dense: it has as many numbers as before. The saving by factors counts the matrices whose factors are
    smaller; those in a tensor with others stay dense in `factored/`.

    search: has the accepted matrices.
    chat: the tokenizer to save.
    run: the run's directory.
    in_factors: whether to write `factored/`.
    """
    accepted = search.accepted()
    tensors = {name: search.matrix(row, record) for name, (row, record) in accepted.items()}
    matrices = {record: tensors[name]["matrix"] for name, (_, record) in accepted.items()}
    model = reduction.in_stored_dtype(search.model, search.source, matrices)
    causal_lm.save_model(model, run.path / "model", chat)
    counts = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "parameters_of_accepted": sum(row["parameters"] for row, _ in accepted.values()),
        "parameters_saved_by_factors": sum(saving(record.shape, given(record.rank)) for _, record in accepted.values()),
    }
    if in_factors:
        factors = {
            record.module: (tensors[name]["left"], tensors[name]["right"])
            for name, (_, record) in accepted.items()
            if "left" in tensors[name] and record.holder is None and factored.fits(model, record.parameter)
        }
        written = factored.write(model, factors, run.path / "factored", chat)
        counts |= {"parameters_factored": written["parameters"]}
    return counts


def finish(
    config: LaserConfig,
    inputs: Inputs,
    search: Search,
    known: dict[str, Any],
    measured: dict[str, Any],
    run: RunDirectory,
    runtime: Runtime,
) -> dict[str, Any]:
    """Write the model and summary.json. Returns the results in numbers.

    config: the command's configuration.
    inputs: the criterion and the tokenizer.
    search: all tries.
    known: the measure before, by `judging` and `held_out`.
    measured: the measure after, likewise.
    run: the run's directory.
    runtime: the device, for summary.json.
    """
    weights = write(search, inputs.chat, run, config.laser.factored)
    criterion = inputs.criterion
    counts = {"judging": len(criterion.judging), "held_out": len(criterion.held_out)}
    numbers = summarise(search, known, measured, counts, criterion.unit) | weights
    run.write("summary.json", to_json(config, numbers, runtime))
    return numbers


def summarise(
    search: Search, known: dict[str, Any], measured: dict[str, Any], counts: dict[str, int], unit: str
) -> dict[str, Any]:
    """Return the measure before and after, on the part that judges and on the held-out one, and what was tried.

    search: all tries.
    known: the measure before, by `judging` and `held_out`.
    measured: the measure after, likewise.
    counts: how many items each of the two parts has.
    unit: what an item is called.
    """
    rows = search.rows()
    return {
        "measure": search.judge.name,
        "unit": unit,
        **{
            part: {"count": counts[part], "before": known[part], "after": measured[part]}
            for part in ("judging", "held_out")
        },
        "tries": len(rows),
        "accepted": sum(row["accepted"] for row in rows),
        "wall_time_s": sum(row["seconds"] for row in rows),
    }


def to_json(config: LaserConfig, numbers: dict[str, Any], runtime: Runtime) -> str:
    """Return the content of summary.json."""
    origin = {
        "peak_memory_gb": runtime.peak_memory_gb(),
        "device": runtime.describe(),
        "versions": versions(),
        "git_commit": git_commit(),
    }
    first = {"name": config.name, "command": "laser", "finished": True, "model": asdict(config.model)}
    return json.dumps(first | numbers | origin, indent=1, allow_nan=False)


def in_words(numbers: dict[str, Any]) -> str:
    """Return the results in a few lines."""
    lines = [f"{numbers['accepted']} of {numbers['tries']} matrices are kept at lower rank"]
    for part, what in (("judging", "that judged"), ("held_out", "held out")):
        measured = numbers[part]
        if measured["after"] is not None:
            lines.append(
                f"{numbers['measure']} on {measured['count']} {numbers['unit']} {what}: {measured['before']:.6g} "
                f"before, {measured['after']:.6g} after"
            )
    lines.append(
        f"parameters {numbers['parameters']:,}; kept as factors the accepted matrices would be "
        f"{numbers['parameters_saved_by_factors']:,} fewer"
    )
    return "\n".join(lines)
