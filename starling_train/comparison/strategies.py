"""The freeze strategies side by side: at their last step, at an equal reward, and at an equal KL to the start."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean, median
from typing import Any

from starling_train.comparison.curves import Curve, Point
from starling_train.comparison.search import Search
from starling_train.config.sections import KL
from starling_train.core.intervals import (
    Estimate,
    Interval,
    estimate,
    estimate_of_cases,
    first_reaching,
    holm,
    value_at,
)

REWARD = "reward"
PointOf = Callable[[Curve], Point | None]  # where a run is compared; None: nowhere


@dataclass(frozen=True)
class Side:
    """One strategy over its seeds.

    reward, skills: at the last step.
    at_level: the skills where the reward first reached the level. Runs that never did are left out, here and in
        steps_to_level, and show in the counts.
    steps_to_level: when it did.
    reward_at_kl, at_kl, steps_to_kl: likewise, where the KL to the start first reached its level.
    rates: the learning rates of its runs.
    """

    strategy: str
    trained: int
    reward: Interval
    skills: dict[str, Interval]
    at_level: dict[str, Interval]
    steps_to_level: Interval
    reward_at_kl: Interval
    at_kl: dict[str, Interval]
    steps_to_kl: Interval
    rates: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Difference:
    """A strategy's value minus the reference's, over the seeds that both have, seed by seed and case by case.

    spread: standard deviation of the differences over seeds.
    p_value: of no difference.
    p_holm: the same, corrected for all strategies that are compared with the reference in this value.
    """

    strategy: str
    of: str
    value: Interval
    spread: float = math.nan
    p_value: float = math.nan
    p_holm: float = math.nan


@dataclass(frozen=True)
class RunResult:
    """One run, as in `Side`; None where it never reached a level."""

    strategy: str
    seed: int
    rate: float | None
    steps: int
    reward: float
    skills: dict[str, float]
    at_level: dict[str, float | None]
    reward_at_kl: float | None
    at_kl: dict[str, float | None]


@dataclass(frozen=True)
class StrategyComparison:
    """The strategies side by side.

    reference: the strategy that the others are compared with.
    level: the gain of reward at which skills are compared; None if a run gained nothing, and then `equal_reward` is
        empty.
    kl_level: the KL at which reward and skills are compared; None likewise.
    sides: one for each strategy.
    equal_steps, equal_reward, equal_kl: the differences to `reference`.
    cases: how many cases the intervals of each skill count besides the seeds; 0: the seeds alone.
    runs: every run that was compared.
    search: for learning rates, if there was one.
    notes: what a reader must know of the runs, in sentences.
    """

    reference: str
    level: float | None
    sides: list[Side]
    equal_steps: list[Difference]
    equal_reward: list[Difference]
    notes: list[str]
    kl_level: float | None = None
    equal_kl: list[Difference] = field(default_factory=list)
    cases: dict[str, int] = field(default_factory=dict)
    runs: list[RunResult] = field(default_factory=list)
    search: Search | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as strict JSON values: null for nan."""
        return strict(asdict(self))


def strict(value: Any) -> Any:
    """Return a value of dicts and lists with None for nan."""
    if isinstance(value, dict):
        return {key: strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [strict(entry) for entry in value]
    return None if isinstance(value, float) and value != value else value


@dataclass(frozen=True)
class Reading:
    """A value of one run, with the change of each case where all runs have them. scale: of a share, in the value."""

    value: float
    cases: list[float] | None = None
    scale: float = 1.0

    def minus(self, other: "Reading") -> "Reading":
        cases = None
        if self.cases is not None and other.cases is not None:
            cases = [mine - its for mine, its in zip(self.cases, other.cases, strict=True)]
        return replace(self, value=self.value - other.value, cases=cases)


def pooled(readings: Sequence[Reading]) -> Estimate:
    """Return the mean over seeds."""
    values = [reading.value for reading in readings]
    rows = [reading.cases for reading in readings if reading.cases is not None]
    if len(rows) < max(len(readings), 1):
        return estimate(values)
    return replace(estimate_of_cases(rows).times(readings[0].scale), mean=fmean(values))


class Comparing:
    """The runs to compare, by strategy: what each measured at a point, and means over seeds.

    level, kl_level: as given; None takes the most that every run reached.
    """

    def __init__(self, curves: Sequence[Curve], reference: str, level: float | None, kl_level: float | None):
        names = [reference, *sorted({curve.strategy for curve in curves} - {reference})]
        self.reference, self.curves = reference, list(curves)
        self.by_name = {name: [curve for curve in curves if curve.strategy == name] for name in names}
        self.skills = [skill for skill in curves[0].skills if all(skill in curve.skills for curve in curves)]
        self.cases = {skill: self._case_count(skill) for skill in self.skills}
        self.level = level or reached_by_all([curve.reward for curve in curves])
        kl = [curve.skills[KL] for curve in curves] if KL in self.skills else []
        self.kl_level = (kl_level or reached_by_all(kl)) if kl else None

    def _case_count(self, skill: str) -> int:
        """Return how many cases a skill has, 0 where not all runs have kept the same number, of two or more."""
        known = [curve.cases[skill] for curve in self.curves if skill in curve.cases]
        same = {(cases.count, cases.scale) for cases in known}
        return known[0].count if len(known) == len(self.curves) and len(same) == 1 and known[0].count > 1 else 0

    def at_level(self, curve: Curve) -> Point | None:
        return None if self.level is None else first_reaching(curve.reward, self.level)

    def at_kl(self, curve: Curve) -> Point | None:
        return None if self.kl_level is None else first_reaching(curve.skills[KL], self.kl_level)

    def reading(self, curve: Curve, of: str, where: PointOf) -> Reading | None:
        """Return the change of the reward, the change of a skill, or the step of a run at a point."""
        point = where(curve)
        if point is None:
            return None
        known: dict[str, Sequence[float]] = {REWARD: curve.reward, "steps": curve.steps}
        values = known[of] if of in known else curve.skills[of]
        if not self.cases.get(of):
            return Reading(value_at(values, point))
        return Reading(value_at(values, point), curve.cases[of].change(point), curve.cases[of].scale)

    def mean(self, name: str, of: str, where: PointOf) -> Interval:
        """Return a strategy's mean, over the runs that reach the point."""
        readings = [self.reading(curve, of, where) for curve in self.by_name[name]]
        return pooled([reading for reading in readings if reading is not None]).interval()

    def side(self, name: str) -> Side:
        """Return one strategy."""
        runs = self.by_name[name]
        others = [skill for skill in self.skills if skill != KL]
        return Side(
            name,
            runs[0].trained,
            self.mean(name, REWARD, last),
            {skill: self.mean(name, skill, last) for skill in self.skills},
            {skill: self.mean(name, skill, self.at_level) for skill in self.skills},
            self.mean(name, "steps", self.at_level),
            self.mean(name, REWARD, self.at_kl),
            {skill: self.mean(name, skill, self.at_kl) for skill in others},
            self.mean(name, "steps", self.at_kl),
            sorted({curve.rate for curve in runs if curve.rate is not None}),
        )

    def value(self, curve: Curve, of: str, where: PointOf) -> float | None:
        """Return what a run measured at a point; None if it never reached it."""
        reading = self.reading(curve, of, where)
        return None if reading is None else reading.value

    def result(self, curve: Curve) -> RunResult:
        """Return one run."""
        others = [skill for skill in self.skills if skill != KL]
        return RunResult(
            curve.strategy,
            curve.seed,
            curve.rate,
            curve.steps[-1],
            curve.reward[-1],
            {skill: curve.skills[skill][-1] for skill in self.skills},
            {skill: self.value(curve, skill, self.at_level) for skill in self.skills},
            self.value(curve, REWARD, self.at_kl),
            {skill: self.value(curve, skill, self.at_kl) for skill in others},
        )

    def differences(self, of: str, where: PointOf) -> list[Difference]:
        """Return every other strategy's difference to the reference."""
        base = {curve.seed: self.reading(curve, of, where) for curve in self.by_name[self.reference]}
        found = []
        for name in list(self.by_name)[1:]:
            pairs = [(self.reading(curve, of, where), base.get(curve.seed)) for curve in self.by_name[name]]
            both = [mine.minus(its) for mine, its in pairs if mine is not None and its is not None]
            known, seeds = pooled(both), estimate([reading.value for reading in both])
            spread = math.sqrt(seeds.by_seeds * seeds.seeds)
            found.append(Difference(name, of, known.interval(), spread, known.p_value()))
        corrected = holm([difference.p_value for difference in found])
        return [replace(difference, p_holm=p) for difference, p in zip(found, corrected, strict=True)]


def last(curve: Curve) -> Point:
    """Return the point of a run's last evaluation."""
    return curve.last


def reached_by_all(values: Sequence[Sequence[float]]) -> float | None:
    """Return the most that every run reached; None where one did not rise at all."""
    most = min(map(max, values))
    return most if most > 0 else None


def compare(
    curves: Sequence[Curve], reference: str, level: float | None = None, kl_level: float | None = None
) -> StrategyComparison:
    """Compare strategies, the reference first.

    Where a run gained nothing, the level that all reach would be at step 0, where all are equal: then a note says so
    instead. The same holds for the KL.

    curves: of one run or more, one of them of the reference strategy.
    reference: the strategy that the others are compared with.
    level: of reward gained; None: the most that every run reached.
    kl_level: of the KL to the start, likewise.
    """
    runs = Comparing(curves, reference, level, kl_level)
    others = [skill for skill in runs.skills if skill != KL]
    steps = [d for of in (REWARD, *runs.skills) for d in runs.differences(of, last)]
    rewards = [d for of in runs.skills for d in runs.differences(of, runs.at_level)] if runs.level else []
    kls = [d for of in (REWARD, *others) for d in runs.differences(of, runs.at_kl)] if runs.kl_level else []
    return StrategyComparison(
        reference,
        runs.level,
        list(map(runs.side, runs.by_name)),
        steps,
        rewards,
        notes(runs, level, kl_level),
        runs.kl_level,
        kls,
        runs.cases,
        [runs.result(curve) for of_name in runs.by_name.values() for curve in of_name],
    )


def notes(runs: Comparing, level: float | None, kl_level: float | None) -> list[str]:
    """Return what a reader must know: runs without a gain, values left out, runs and seeds that differ.

    runs: the runs.
    level, kl_level: as the user gave them.
    """
    curves = runs.curves
    remarks = [*_stuck(runs, level, kl_level), *_levels(runs, level, kl_level)]
    for curve in curves:
        if curve.went_back is not None:
            remarks.append(f"{curve.name}: its guard went back to step {curve.went_back}, where its curve ends.")
        if curve.left_out:
            steps = ", ".join(map(str, curve.left_out))
            at = "" if max(curve.left_out) < curve.steps[-1] else f", and its last step is {curve.steps[-1]}"
            remarks.append(f"{curve.name}: a value at step {steps} is not finite; left out{at}.")
    if any(curve.evaluation != curves[0].evaluation for curve in curves):
        keys = _differing([curve.evaluation for curve in curves])
        remarks.append(f"Not all runs were evaluated by the same settings ({', '.join(keys)}).")
    ends = {max([*curve.steps, *curve.left_out]) for curve in curves}
    if len(ends) > 1:
        steps = ", ".join(map(str, sorted(ends)))
        remarks.append(f"The runs end at different steps ({steps}): each counts at its own last.")
    seeds = defaultdict(list)
    for name, of_name in runs.by_name.items():
        seeds[", ".join(map(str, sorted(curve.seed for curve in of_name)))].append(name)
    if len(seeds) > 1:
        listed = "; ".join(f"{', '.join(strategies)} {of_those}" for of_those, strategies in seeds.items())
        remarks.append(f"Not all have the same seeds: {listed}.")
    for skill, count in runs.cases.items():
        without = [curve.name for curve in curves if skill not in curve.cases]
        if not count and any(skill in curve.shares or skill in curve.cases for curve in curves):
            who = "the runs" if len(without) == len(curves) else ", ".join(without)
            why = f"{who} did not keep which were right (cases.jsonl)" if without else "not all had the same ones"
            remarks.append(
                f"The intervals of {skill} are of the seeds alone and leave out that its cases are a sample too: {why}."
            )
    return remarks


def _stuck(runs: Comparing, level: float | None, kl_level: float | None) -> list[str]:
    stuck = ", ".join(curve.name for curve in runs.curves if max(curve.reward) <= 0)
    still = ", ".join(curve.name for curve in runs.curves if KL in runs.skills and max(curve.skills[KL]) <= 0)
    remarks = []
    if stuck and level is None:
        remarks.append(
            f"No comparison at equal reward: {stuck} never gained any. Give compare.level to compare those that reach "
            "it."
        )
    if still and kl_level is None:
        remarks.append(
            f"No comparison at equal KL: {still} never rose above 0. Give compare.kl_level to compare those that "
            "reach it."
        )
    return remarks


def _levels(runs: Comparing, level: float | None, kl_level: float | None) -> list[str]:
    """Return which run sets a level, and how many reach it where nothing was measured but the start before it."""
    kl = [curve.skills.get(KL, [0.0]) for curve in runs.curves]
    of = (
        ("reward", runs.level, level, [curve.reward for curve in runs.curves], "{:+.2f}"),
        ("KL", runs.kl_level, kl_level, kl, "{:.2f} nats"),
    )
    remarks = []
    for what, found, asked, values, form in of:
        if found is None:
            continue
        most = list(map(max, values))
        if asked is None and len(most) > 1:
            least = most.index(min(most))
            middle = form.format(median(most))
            remarks.append(
                f"Equal {what} is the most that {runs.curves[least].name} reached ({form.format(found)}); the median "
                f"run reached {middle}."
            )
        points = [first_reaching(of_run, found) for of_run in values]
        early = sum(point is not None and point[0] == 1 and point[1] < 1 for point in points)
        if early:
            first = min(curve.steps[1] for curve in runs.curves if len(curve.steps) > 1)
            remarks.append(
                f"{early} of {len(points)} runs reach equal {what} before their first evaluation (step {first}): they "
                "are read on a straight line from the start; evaluate more often to see more."
            )
    return remarks


def _differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Return the keys of `evaluation` in which some differ."""
    keys = dict.fromkeys(key for one in settings for key in one)
    return [f"evaluation.{key}" for key in keys if any(one.get(key) != settings[0].get(key) for one in settings)]
