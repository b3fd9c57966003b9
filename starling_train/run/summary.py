"""summary.json: what a finished run was, did and took, and what it ran on."""

import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import starling_train
from starling_train.config.run import RunConfig
from starling_train.files import json_lines
from starling_train.run.directory import RunDirectory
from starling_train.run.runtime import Runtime
from starling_train.run.state import TrainState


def to_json(
    config: RunConfig,
    run: RunDirectory,
    trainable: dict[str, Any],
    state: TrainState,
    runtime: Runtime,
    command: str = "ppo",
    planned_gb: float | None = None,
) -> str:
    """Render summary.json for a run that has done all its steps. trainable: `FreezeTable.counts()`."""
    rows = [row for row in json_lines.read(run.metrics) if row]  # none is damaged: `JsonLines` has read them
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
        "trainable": trainable,
        "device": runtime.describe(),
        "versions": versions(),
        "git_commit": git_commit(),
    }
    return json.dumps(summary, indent=1, allow_nan=False)


def versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "transformers", "safetensors", "tokenizers")}
    return {"starling_train": starling_train.__version__, "python": platform.python_version()} | packages


def git_commit() -> str | None:
    """Return the commit of the checkout that runs, None for an installed wheel or without git."""
    root = Path(starling_train.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine
        return None
    return done.stdout.strip() or None
