"""What runs under several freeze strategies gained and lost: at their last step, and at an equal reward."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from starling_train.config import UserError
from starling_train.core.comparison import Interval, first_reached, interval


@dataclass(frozen=True)
class Curve:
    """One run: steps that were evaluated, and there the reward and each skill, as change since step 0."""

    strategy: str
    seed: int
    trained: int  # parameters
    steps: list[int]
    reward: list[float]
    skills: dict[str, list[float]]
    start: dict[str, float]  # reward and skills at step 0


def read(run: Path, strategy: str, seed: int, reward: str, skills: Sequence[str]) -> Curve | None:
    """The curve of a finished run; None for one that is not. Raises UserError for metrics that it did not log."""
    if not (run / "summary.json").is_file():
        return None
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row.get(reward) is not None]
    for key in (reward, *skills):
        if not rows or any(row.get(key) is None for row in rows):
            raise UserError(
                f"compare: {run}/metrics.jsonl has no {key}; see evaluation.suites and evaluation.functions"
            )

    def change(key: str) -> list[float]:
        return [row[key] - rows[0][key] for row in rows]

    summary = json.loads((run / "summary.json").read_text())
    return Curve(
        strategy,
        seed,
        summary["trainable"]["parameters"],
        [row["step"] for row in rows],
        change(reward),
        {skill: change(skill) for skill in skills},
        {key: rows[0][key] for key in (reward, *skills)},
    )


@dataclass(frozen=True)
class Side:
    """One strategy over its seeds. reward, skills: at the last step. at_level: skills where the reward first reached
    the level, steps_to_level when; runs that never did are left out of these and show in their counts."""

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
class Comparison:
    """level: the gain of reward at which strategies are compared. equal_steps, equal_reward: against `reference`."""

    reference: str
    level: float
    sides: list[Side]
    equal_steps: list[Difference]
    equal_reward: list[Difference]

    def to_json(self) -> dict[str, Any]:
        return _strict(asdict(self))


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(entry) for entry in value]
    return None if isinstance(value, float) and value != value else value


def compare(curves: Sequence[Curve], reference: str, level: float | None = None) -> Comparison:
    """Compare strategies, the reference first. level: of reward gained; None = the most that every run reached.

    The runs must not be empty, and one of them must be the reference's.
    """
    if level is None:
        level = min(max(curve.reward) for curve in curves)
    names = [reference, *sorted({curve.strategy for curve in curves} - {reference})]
    by_name = {name: [curve for curve in curves if curve.strategy == name] for name in names}
    skills = list(curves[0].skills)

    def reached(curve: Curve, values: Sequence[float]) -> float | None:
        return first_reached(curve.reward, values, level)

    def differences(of: str, value: Any) -> list[Difference]:
        plain = {curve.seed: value(curve) for curve in by_name[reference]}
        found = []
        for name in names[1:]:
            pairs = [(value(curve), plain.get(curve.seed)) for curve in by_name[name]]
            found.append(Difference(name, of, interval([a - b for a, b in pairs if a is not None and b is not None])))
        return found

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
    equal = [d for skill in skills for d in differences(skill, lambda c, s=skill: reached(c, c.skills[s]))]
    return Comparison(reference, level, sides, last, equal)


def _known(values: Any) -> list[float]:
    return [value for value in values if value is not None]
