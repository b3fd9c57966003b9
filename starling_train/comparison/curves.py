"""What one run gained and lost, evaluation by evaluation."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from starling_train.config.fields import UserError
from starling_train.config.sections import KL
from starling_train.files import json_lines

SEED = re.compile(r"seed_(\d+)")  # the directory of a run
Point = tuple[int, float]  # on a curve, for `core.intervals.value_at`


@dataclass(frozen=True)
class Cases:
    """Which cases of a skill were right at each evaluation.

    digits: for each evaluation a 1 or a 0 for each case.
    scale: the metric's value where all are right: 100 in percent, 1 as a share.
    """

    digits: list[str]
    scale: float

    @property
    def count(self) -> int:
        return len(self.digits[0])

    def change(self, point: Point) -> list[float]:
        """Return the change of each case since step 0, as a share."""
        index, share = point
        sides = zip(self.digits[0], self.digits[max(index - 1, 0)], self.digits[index], strict=True)
        return [(1 - share) * int(before) + share * int(after) - int(first) for first, before, after in sides]


@dataclass(frozen=True)
class Curve:
    """One run: the evaluated steps, and at each the reward and every skill, as change since step 0.

    trained: parameters.
    skills: those asked for, and last the KL to the start where the run has it.
    start: reward and skills at step 0.
    left_out: steps whose evaluation lacks a value or has one that is not finite.
    shares: the skills that say of how many cases they are a share.
    cases: of skills that are shares of cases, where the run kept them.
    rate: the learning rate; None where the run does not say.
    evaluation: the settings that it was evaluated by; empty where the run does not say.
    went_back: the step that its guard went back to, where the curve ends; None where it gives its last step.
    """

    strategy: str
    seed: int
    trained: int
    steps: list[int]
    reward: list[float]
    skills: dict[str, list[float]]
    start: dict[str, float]
    left_out: list[int]
    shares: frozenset[str] = frozenset()
    cases: dict[str, Cases] = field(default_factory=dict)
    rate: float | None = None
    evaluation: dict[str, Any] = field(default_factory=dict)
    went_back: int | None = None

    @property
    def name(self) -> str:
        return f"{self.strategy} seed {self.seed}"

    @property
    def last(self) -> Point:
        return len(self.steps) - 1, 1.0


def by_seed(paths: Iterable[Path]) -> list[tuple[int, Path]]:
    """Return the runs' directories among some paths, by seed; one that was set aside (seed_0_old) is none."""
    named = [(SEED.fullmatch(path.name), path) for path in paths]
    return sorted((int(seed[1]), path) for seed, path in named if seed)


def read(run: Path, strategy: str, seed: int, reward: str, skills: Sequence[str]) -> Curve | None:
    """Read the curve of a finished run; None for a run that is not finished.

    Raises UserError for a metric that the run did not log, or not at step 0, and for files of something else.

    run: the run's directory.
    strategy: its strategy.
    seed: its seed.
    reward: the metric of reward.
    skills: the metrics of skills.
    """
    if not (run / "summary.json").is_file():
        return None
    keys = (reward, *skills)
    try:
        summary = json.loads((run / "summary.json").read_text())
        rows = [row or {} for row in json_lines.read(run / "metrics.jsonl")]
        trained, steps = summary["trainable"]["parameters"], summary["steps"]
        gives = (summary.get("guard") or {}).get("policy_step", steps)  # what a guard undid is not in the model
        # rows after the summary's last step belong to a run that was extended and is not finished
        rows = [row for row in rows if row["step"] <= min(steps, gives) and any(key in row for key in keys)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"run_dir: {run} cannot be read, it holds no finished run; remove it, or repair it") from error
    for key in keys:
        if all(row.get(key) is None for row in rows):
            raise UserError(
                f"compare: {run}/metrics.jsonl has no {key}; leave it out of compare.skills, or evaluate it "
                "(evaluation.suites, evaluation.functions) in another run_dir"
            )
    whole = [row for row in rows if all(row.get(key) is not None for key in keys)]
    if not whole or whole[0]["step"] != 0:
        raise UserError(
            f"compare: {run}/metrics.jsonl lacks a finite {' or '.join(keys)} at step 0, from which changes count; "
            "give other metrics, or remove the run"
        )
    if KL not in keys and all(row.get(KL) is not None for row in whole):
        keys += (KL,)

    def change(key: str) -> list[float]:
        return [row[key] - whole[0][key] for row in whole]

    settings = _settings(run / "config.yaml")
    return Curve(
        strategy,
        seed,
        trained,
        [row["step"] for row in whole],
        change(reward),
        {skill: change(skill) for skill in keys[1:]},
        {key: whole[0][key] for key in keys},
        [row["step"] for row in rows if row not in whole],
        frozenset(skill for skill in skills if f"{skill}_cases" in whole[0]),
        _cases(run / "cases.jsonl", whole, skills),
        _rate(settings),
        settings.get("evaluation") or {},
        gives if gives < steps else None,
    )


def _cases(path: Path, evaluations: Sequence[dict[str, Any]], skills: Sequence[str]) -> dict[str, Cases]:
    """Return the cases of each skill that has them at every evaluation, and in agreement with its value."""
    by_step = {row["step"]: row for row in json_lines.read(path) if row and "step" in row}
    known = {}
    for skill in skills:
        kept = [by_step.get(row["step"], {}).get(skill) for row in evaluations]
        digits = [one for one in kept if isinstance(one, str) and one and set(one) <= {"0", "1"}]
        if len(digits) < len(kept):
            continue
        values = [row[skill] for row in evaluations]
        shares = [one.count("1") / len(one) for one in digits]
        for scale in (100.0, 1.0):
            agree = all(abs(value - scale * share) < 1e-6 * scale for value, share in zip(values, shares, strict=True))
            if agree and len(set(map(len, digits))) == 1 and skill not in known:
                known[skill] = Cases(digits, scale)
    return known


def _settings(path: Path) -> dict[str, Any]:
    """Return a run's configuration; empty where it cannot be read."""
    try:
        settings = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _rate(settings: dict[str, Any]) -> float | None:
    """Return the learning rate of a configuration; None where it has none."""
    try:
        return float(settings["optim"]["learning_rate"])
    except (ValueError, LookupError, TypeError):
        return None
