"""TODO docstring."""

import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import starling_train
from starling_train.config.run import RunConfig
from starling_train.run.directory import RunDirectory
from starling_train.run.runtime import Runtime
from starling_train.run.state import TrainState
from starling_train.selection.freeze import FreezeTable


def to_json(
    config: RunConfig,
    run: RunDirectory,
    table: FreezeTable,
    state: TrainState,
    runtime: Runtime,
    command: str = "ppo",
    planned_gb: float | None = None,
) -> str:
    """The content of summary.json for a run that has done all its steps."""
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    evaluations = [{k: v for k, v in row.items() if k.startswith(("eval/", "step"))} for row in rows]
    evaluations = [row for row in evaluations if len(row) > 1]
    steps = [row for row in rows if "throughput/samples_per_s" in row]
    summary = {
        "name": config.name,
        "command": command,
        "finished": True,
        "steps": state.step,
        "episodes": state.episodes,
        "first_eval": evaluations[0] if evaluations else None,
        "last_eval": evaluations[-1] if evaluations else None,
        "best_step": state.best_step,
        "best_score": state.best_score,
        "throughput": {
            key: sum(row[f"throughput/{key}"] for row in steps) / len(steps)
            for key in ("samples_per_s", "tokens_per_s")
        },
        "peak_memory_gb": max(row["memory/peak_gb"] for row in steps),
        "planned_peak_gb": planned_gb,  # without what a process on a CPU holds anyway: interpreter, libraries
        "wall_time_s": state.seconds,
        "trainable": {
            "parameters": table.parameters_trained,
            "of": table.parameters_of,
            "matrices": sum(row.trained for row in table.rows),
            "by_type": [
                {"type": row.type, "matrices": row.trained, "of": row.of, "parameters": row.parameters_trained}
                for row in table.rows
            ],
        },
        "device": runtime.describe(),
        "versions": versions(),
        "git_commit": git_commit(),
    }
    return json.dumps(summary, indent=1, allow_nan=False)


def versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "transformers", "safetensors", "tokenizers")}
    return {"starling_train": starling_train.__version__, "python": platform.python_version()} | packages


def git_commit() -> str | None:
    """The commit of the checkout that runs, None for an installed wheel or without git."""
    root = Path(starling_train.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine
        return None
    return done.stdout.strip() or None
