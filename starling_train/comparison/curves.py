"""What runs under several freeze strategies gained and lost: at their last step, and at an equal reward."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from starling_train.config.fields import UserError
from starling_train.core.intervals import Interval, first_reaching, interval, value_at
from starling_train.files import json_lines


@dataclass(frozen=True)
class Curve:
    """One run: the evaluated steps, and at each the reward and every skill, as change since step 0.

    left_out: steps whose evaluation lacks a value or has one that is not finite.
    """

    strategy: str
    seed: int
    trained: int  # parameters
    steps: list[int]
    reward: list[float]
    skills: dict[str, list[float]]
    start: dict[str, float]  # reward and skills at step 0
    left_out: list[int]


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
        # rows after the summary's last step belong to a run that was extended and is not finished
        rows = [row for row in rows if row["step"] <= steps and any(key in row for key in keys)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"run_dir: {run} cannot be read, it holds no finished run; remove it, or repair it") from error
    for key in keys:
        if all(row.get(key) is None for row in rows):
            raise UserError(
                f"compare: {run}/metrics.jsonl has no {key}; see evaluation.suites and evaluation.functions, and run "
                "it in another run_dir"
            )
    whole = [row for row in rows if all(row.get(key) is not None for key in keys)]
    if not whole or whole[0]["step"] != 0:
        raise UserError(
            f"compare: {run}/metrics.jsonl lacks a finite {' or '.join(keys)} at step 0, from which changes count; "
            "give other metrics, or remove the run"
        )

    def change(key: str) -> list[float]:
        return [row[key] - whole[0][key] for row in whole]

    return Curve(
        strategy,
        seed,
        trained,
        [row["step"] for row in whole],
        change(reward),
        {skill: change(skill) for skill in skills},
        {key: whole[0][key] for key in keys},
        [row["step"] for row in rows if row not in whole],
    )


@dataclass(frozen=True)
class Side:
    """One strategy over its seeds.

    reward, skills: at the last step.
    at_level: the skills where the reward first reached the level. Runs that never did are left out, here and in
        steps_to_level, and show in the counts.
    steps_to_level: when it did.
    """

    strategy: str
    trained: int
    reward: Interval
    skills: dict[str, Interval]
    at_level: dict[str, Interval]
    steps_to_level: Interval


@dataclass(frozen=True)
class Difference:
    """A strategy's value minus the reference's, over the seeds that both have, seed by seed."""

    strategy: str
    of: str
    value: Interval


@dataclass(frozen=True)
class StrategyComparison:
    """The strategies side by side.

    reference: the strategy that the others are compared with.
    level: the gain of reward at which skills are compared; None if a run gained nothing, and then `equal_reward` is
        empty.
    sides: one for each strategy.
    equal_steps, equal_reward: the differences to `reference`.
    notes: what a reader must know of the runs, in sentences.
    """

    reference: str
    level: float | None
    sides: list[Side]
    equal_steps: list[Difference]
    equal_reward: list[Difference]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as strict JSON values: null for nan."""
        return _strict(asdict(self))


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(entry) for entry in value]
    return None if isinstance(value, float) and value != value else value


def compare(curves: Sequence[Curve], reference: str, level: float | None = None) -> StrategyComparison:
    """Compare strategies, the reference first. level: of reward gained; None = the most that every run reached.

    Where a run gained nothing, such a level would be at step 0, where all are equal: then a note says so instead. The
    runs must not be empty, and one of them must have the reference strategy.
    """
    remarks = notes(curves, level)
    if level is None:
        level = min(max(curve.reward) for curve in curves)
        level = level if level > 0 else None
    names = [reference, *sorted({curve.strategy for curve in curves} - {reference})]
    by_name = {name: [curve for curve in curves if curve.strategy == name] for name in names}
    skills = list(curves[0].skills)

    def reached(curve: Curve, values: Sequence[float]) -> float | None:
        point = None if level is None else first_reaching(curve.reward, level)
        return None if point is None else value_at(values, point)

    def differences(of: str, value: Any) -> list[Difference]:
        plain = {curve.seed: value(curve) for curve in by_name[reference]}
        rows = []
        for name in names[1:]:
            pairs = [(value(curve), plain.get(curve.seed)) for curve in by_name[name]]
            rows.append(Difference(name, of, interval([a - b for a, b in pairs if a is not None and b is not None])))
        return rows

    sides = [
        Side(
            name,
            runs[0].trained,
            interval([run.reward[-1] for run in runs]),
            {skill: interval([run.skills[skill][-1] for run in runs]) for skill in skills},
            {skill: interval(_known(reached(run, run.skills[skill]) for run in runs)) for skill in skills},
            interval(_known(reached(run, run.steps) for run in runs)),
        )
        for name, runs in by_name.items()
    ]
    last = differences("reward", lambda curve: curve.reward[-1])
    for skill in skills:
        last += differences(skill, lambda curve, skill=skill: curve.skills[skill][-1])
    compared = skills if level is not None else []
    equal = [d for skill in compared for d in differences(skill, lambda c, s=skill: reached(c, c.skills[s]))]
    return StrategyComparison(reference, level, sides, last, equal, remarks)


def notes(curves: Sequence[Curve], level: float | None) -> list[str]:
    """Return what a reader must know: runs without a gain, values left out, runs of unequal length."""
    remarks = []
    stuck = [f"{curve.strategy} seed {curve.seed}" for curve in curves if max(curve.reward) <= 0]
    if stuck and level is None:
        remarks.append(
            f"No comparison at equal reward: {', '.join(stuck)} never gained any. Give compare.level to compare those "
            "that reach it."
        )
    for curve in curves:
        if curve.left_out:
            steps = ", ".join(map(str, curve.left_out))
            remarks.append(f"{curve.strategy} seed {curve.seed}: a value at step {steps} is not finite; left out.")
    last = {max([*curve.steps, *curve.left_out]) for curve in curves}
    if len(last) > 1:
        steps = ", ".join(map(str, sorted(last)))
        remarks.append(f"The runs end at different steps ({steps}): each counts at its own last.")
    return remarks


def _known(values: Any) -> list[float]:
    return [value for value in values if value is not None]
