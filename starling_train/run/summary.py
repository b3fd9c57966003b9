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
from starling_train.run.console import duration
from starling_train.run.directory import RunDirectory
from starling_train.run.runtime import Runtime
from starling_train.run.state import TrainState

# what a person compares before and after, in this order: metric, name, factor, decimals
SHOWN = (
    ("eval/score_mean", "score, held out", 1, 2),
    ("eval/kwise_loss", "loss, held out", 1, 3),
    ("eval/preference_accuracy", "pairs in order, held out, %", 100, 1),
    ("eval/reward_margin", "reward margin, held out", 1, 2),
    ("eval/function_calling", "function calling, %", 1, 1),
    ("eval/instructions", "instructions followed, %", 1, 1),
    ("eval/perplexity", "perplexity of text", 1, 2),
    ("eval/length_mean", "length of an answer, tokens", 1, 1),
    ("eval/eos_fraction", "answers that end, %", 100, 1),
    ("eval/kl_reference", "KL to the start, nats", 1, 2),
)
# parts and spreads of others
NOT_SHOWN = ("step", "eval/unscored", "eval/score_std", "eval/loss", "eval/chosen_reward", "eval/rejected_reward")


def to_json(
    config: RunConfig,
    run: RunDirectory,
    trainable: dict[str, Any],
    state: TrainState,
    runtime: Runtime,
    command: str = "ppo",
    planned_gb: float | None = None,
    guard: dict[str, Any] | None = None,
) -> str:
    """Render summary.json for a run that has done all its steps, or that its guard has stopped.

    config: the run's configuration.
    run: its directory.
    trainable: `FreezeTable.counts()`.
    state: after the last step.
    runtime: the processes.
    command: that ran.
    planned_gb: the planned peak of a process, if there was a plan.
    guard: `Guard.summary()`, of a run with one.
    """
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
    if guard:
        lost_at = [row["step"] for row in rows if row.get("guard/kept") == 0]
        policy_eval = next((row for row in evaluations if row["step"] == guard["policy_step"]), None)
        summary["guard"] = guard | {"lost_at": lost_at, "policy_eval": policy_eval}
    return json.dumps(summary, indent=1, allow_nan=False)


def peak_in_words(planned_gb: float | None, measured_gb: float) -> str:
    """Compare the planned peak memory of a process with the measured one, in a line. Decimal GB."""
    planned = "not planned" if planned_gb is None else f"planned {planned_gb:.3g} GB at the longest texts"
    return f"peak memory of a process: {planned}, measured {measured_gb:.3g} GB above what it held at the start"


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


def in_words(summary: dict[str, Any], run: RunDirectory) -> str:
    """Return what a finished run did, for the end of its output: before and after, time and memory, where things are.

    summary: the content of summary.json.
    run: the run's directory.
    """
    lines = []
    first, last = summary.get("first_eval"), summary.get("last_eval")
    guard = summary.get("guard") or {}
    if guard and guard["policy_step"] != summary["steps"]:  # it went back
        last = guard["policy_eval"]
    if first and last and first["step"] != last["step"]:
        head = ("", f"step {first['step']}", f"step {last['step']}", "change")
        rows = [head, *(_before_after(*row, first, last) for row in _compared(first, last))]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [
            f"{row[0]:<{widths[0]}}" + "".join(f"{row[column]:>{widths[column] + 3}}" for column in (1, 2, 3))
            for row in rows
        ]
    trained, speed = summary["trainable"], summary["throughput"]["samples_per_s"]
    steps = f"{summary['steps']} step{'s' * (summary['steps'] != 1)}"
    took = f"{duration(summary['wall_time_s'])} for {steps}, {speed:.3g} samples a second"
    facts = [("time", took), ("memory", f"{summary['peak_memory_gb']:.3g} GB at most, {summary['device']}")]
    if guard:
        facts += [("guard", _guarded(guard, summary["steps"]))]
    facts += [("trained", f"{trained['parameters']:,} of {trained['of']:,} parameters")]
    facts += [("model", str(path)) for path in (run.policy, run.reward) if path.is_dir()]
    facts += [(path.stem, str(path)) for path in (run.checkpoints, run.metrics, run.samples) if path.exists()]
    return "\n".join([*lines, *(f"{name:<13}{what}" for name, what in facts)])


def _guarded(guard: dict[str, Any], steps: int) -> str:
    """Return what the guard has seen and done. guard: the entry of summary.json. steps: that the run has made."""
    lost_at, step = guard["lost_at"], guard["policy_step"]
    if not lost_at:
        return "no skill was lost at any evaluation"
    at = f"step{'s' * (len(lost_at) > 1)} {', '.join(map(str, lost_at))}"
    model = f"that of step {step}" if step else "the one that the run started from"
    return f"a skill was lost at {at} (guard.then={guard['then']})" + (
        f"; the model is {model}" if step < steps else ""
    )


def _compared(first: dict[str, Any], last: dict[str, Any]) -> list[tuple[str, str, float, int]]:
    """Return the rows of the table: those of `SHOWN`, then the means of a user's functions."""
    named = {key for key, *_ in SHOWN}
    own = [key for key in last if key not in named and key not in NOT_SHOWN and key.endswith("_mean")]
    rows = [*SHOWN, *((key, key.removeprefix("eval/").removesuffix("_mean"), 1, 2) for key in own)]
    return [row for row in rows if first.get(row[0]) is not None and last.get(row[0]) is not None]


def _before_after(
    key: str, name: str, factor: float, decimals: int, first: dict[str, Any], last: dict[str, Any]
) -> tuple[str, str, str, str]:
    """Return name, first and last value, and their difference, as text.

    key: the metric.
    name: what it is called here.
    factor: of both values.
    decimals: of all numbers.
    first, last: the first and the last evaluation.
    """
    before, after = factor * first[key], factor * last[key]
    return name, f"{before:.{decimals}f}", f"{after:.{decimals}f}", f"{after - before:+.{decimals}f}"
