"""The content of a run directory, read without trusting that any part of it exists or is whole."""

import json
import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from starling_train.config.fields import UserError
from starling_train.files.json_lines import parse, whole_lines


@dataclass(frozen=True)
class RunFiles:
    """The files of one run directory; absent files are empty values, and `missing` names them."""

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    snr: dict[str, dict[str, Any]] = field(default_factory=dict)
    patterns: list[str] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    evaluation: list[dict[str, Any]] = field(default_factory=list)
    starts: list[dict[str, Any]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def read(run_dir: Path) -> RunFiles:
    """Read the existing files. Raises `UserError` when `run_dir` is not a directory, and for nothing else."""
    path = Path(run_dir)
    if not path.is_dir():
        raise UserError(f"run_dir: {path} is not a directory; give the directory that a training command wrote")
    missing: list[str] = []
    metrics = json_lines(path / "metrics.jsonl", missing)
    samples = json_lines(path / "samples.jsonl", missing)
    snr = _parse(path / "snr.json", json.loads, missing)
    unfrozen = _parse(path / "unfrozen.yaml", yaml.safe_load, missing).get("unfrozen_parameters")
    return RunFiles(
        path=path,
        config=_parse(path / "config.yaml", yaml.safe_load, missing),
        config_text=_text(path / "config.yaml"),
        metrics=[line for line in metrics if isinstance(line.get("step"), int)],
        samples=[line for line in samples if isinstance(line.get("step"), int)],
        snr={name: record for name, record in snr.items() if isinstance(record, dict) and "snr" in record},
        patterns=[str(pattern) for pattern in unfrozen] if isinstance(unfrozen, list) else [],
        summary=_parse(path / "summary.json", json.loads, missing),
        evaluation=_evaluation(path / "evaluation.json", missing),
        starts=json_lines(path / "starts.jsonl", []),
        missing=missing,
    )


def _evaluation(path: Path, missing: list[str]) -> list[dict[str, Any]]:
    """Read the results of `evaluate`; nothing is missing where it was not used."""
    entries = _parse(path, json.loads, missing).get("results") if path.is_file() else None
    known = entries if isinstance(entries, list) else []
    return [entry for entry in known if isinstance(entry, dict) and _is_result(entry)]


def _is_result(entry: dict[str, Any]) -> bool:
    return isinstance(entry.get("identity"), dict) and isinstance(entry.get("result"), dict)


def is_number(value: object) -> bool:
    """Whether a value is a finite int or float; False for None, bool, NaN, infinities and text."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def series(run: RunFiles, key: str) -> tuple[list[int], list[float]]:
    """Return steps and values of one key of `metrics.jsonl`; lines without it, or with null, are left out."""
    points = [(line["step"], line[key]) for line in run.metrics if is_number(line.get(key))]
    return [step for step, _ in points], [value for _, value in points]


def first_last(run: RunFiles, key: str) -> tuple[float | None, float | None]:
    """Return first and last value of a key: from the metrics, else (`eval/*`) from the summary.

    The last is None where the key was measured once: one value shows no change.
    """
    values = series(run, key)[1]
    if values:
        return values[0], values[-1] if len(values) > 1 else None
    ends = [run.summary.get(name) for name in ("first_eval", "last_eval")]
    recorded = [end.get(key) if isinstance(end, dict) else None for end in ends]
    first, last = (value if is_number(value) else None for value in recorded)
    return first, last


def late_mean(run: RunFiles, key: str) -> float | None:
    """Return the mean of the last quarter of a key's values; None where it was never measured."""
    values = series(run, key)[1]
    late = values[-max(1, len(values) // 4) :]
    return sum(late) / len(late) if late else None


def early_mean(run: RunFiles, key: str) -> float | None:
    """Return the mean of the first tenth of a key's values, at most five; None where there are less than two."""
    values = series(run, key)[1]
    early = values[: min(5, max(1, len(values) // 10))]
    return sum(early) / len(early) if len(values) > 1 else None


def latest(run: RunFiles, key: str) -> float | None:
    """Return the last value of a key, None where it was never measured."""
    first, last = first_last(run, key)
    return first if last is None else last


def change(run: RunFiles, key: str) -> float | None:
    """Return last minus first value of a key, None where it was measured less than twice."""
    first, last = first_last(run, key)
    return None if first is None or last is None else last - first


def setting(tree: dict[str, Any], dotted: str) -> Any:
    """Return the value at `a.b.c` of nested dictionaries, None where any part is absent."""
    value: Any = tree
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def terms_of(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings of each term that the reward is a sum of, by name; none for another reward."""
    named = setting(settings, "reward.terms") if setting(settings, "reward.kind") == "terms" else None
    if not isinstance(named, dict):
        return {}
    return {str(name): term for name, term in named.items() if isinstance(term, dict)}


def judge_of(reward: dict[str, Any]) -> str:
    """Return where a reward, or a term of it, has its scores from: a path, an address or a function; "" if unknown."""
    where = {"server": "url", "function": "function"}.get(str(reward.get("kind")), "path")
    return str(reward.get(where) or "")


def selected_modules(run: RunFiles) -> set[str]:
    """Return the scanned modules whose weight one of the patterns of `unfrozen.yaml` matches."""
    if not run.patterns:
        return set()
    pattern = re.compile("|".join(f"(?:{pattern})" for pattern in run.patterns))
    # Fused experts are parameters whose name does not end in `.weight`, so both spellings count.
    return {name for name in run.snr if pattern.fullmatch(name + ".weight") or pattern.fullmatch(name)}


def layer_in(module: str) -> int | None:
    """Return the layer number in a module's name, whatever the model calls its parts."""
    match = re.search(r"\.(\d+)\.", module)
    return int(match[1]) if match else None


def policy_step(run: RunFiles) -> int | None:
    """Return the step that the guard of a finished run went back to, 0 for the start; None where it gives its last."""
    guard = run.summary.get("guard")
    step = guard.get("policy_step") if isinstance(guard, dict) else None
    return step if isinstance(step, int) and step < steps_done(run) else None


def of_policy(run: RunFiles) -> RunFiles:
    """Return the run as far as its model goes: without the steps after the one that its guard went back to.

    Steps between two returns stay in it, although the model has not made them: there is one curve.
    """
    last = policy_step(run)
    if last is None:
        return run
    metrics, samples = ([line for line in lines if line["step"] <= last] for lines in (run.metrics, run.samples))
    return replace(run, metrics=metrics, samples=samples)


def steps_done(run: RunFiles) -> int:
    """Return the last step that the run reports, 0 before the first."""
    last = run.metrics[-1]["step"] if run.metrics else 0
    recorded = run.summary.get("steps")
    return max(last, recorded) if isinstance(recorded, int) else last


def is_finished(run: RunFiles) -> bool:
    """Return whether the run says that it is finished, and has not been extended since."""
    steps = run.summary.get("steps")
    return bool(run.summary.get("finished")) and not (isinstance(steps, int) and steps < steps_done(run))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _parse(path: Path, parse: Any, missing: list[str]) -> dict[str, Any]:
    """Read a file that holds one mapping; a missing or broken one gives an empty mapping and a remark."""
    if not path.is_file():
        missing.append(f"{path.name} is not there")
        return {}
    try:  # A run that was killed may leave half a file, and the page is how one looks into such a run.
        content = parse(_text(path))
    except (ValueError, yaml.YAMLError):
        content = None
    if not isinstance(content, dict):
        missing.append(f"{path.name} cannot be read as a mapping")
        return {}
    return content


def json_lines(path: Path, missing: list[str]) -> list[dict[str, Any]]:
    """Read the objects of a JSON-lines file; broken lines are counted in a remark."""
    if not path.is_file():
        missing.append(f"{path.name} is not there")
        return []
    rows = [parse(line) for line in whole_lines(path, with_cut=True) if line.strip()]
    broken = rows.count(None)
    if broken:
        missing.append(f"{path.name}: {broken} of {len(rows)} lines are not JSON objects and were left out")
    return [row for row in rows if row is not None]
