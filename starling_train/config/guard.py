"""The section `guard`: the skills that a run keeps, by how much each may fall, and what happens where one does."""

import math
from dataclasses import dataclass
from typing import Any

from starling_train.config.fields import UserError, choice, did_you_mean, number, setting
from starling_train.config.sections import EvaluationConfig

# How the cases of a metric make its value, which says how a difference from noise is told.
SHARE, MEAN, PERPLEXITY = "share", "mean", "perplexity"


@dataclass(frozen=True)
class Measure:
    """What is known of a metric that a guard can watch.

    kind: `SHARE` (percent of right cases), `MEAN` (of a value of each case) or `PERPLEXITY` (exp of a mean).
    unit: of its points, behind a number.
    is_lower_better: whether a fall of the skill is a rise of the metric.
    """

    kind: str
    unit: str = ""
    is_lower_better: bool = False


# by the suite that measures `eval/SUITE`
SUITE_MEASURES = {
    "function_calling": Measure(SHARE, " points"),
    "instructions": Measure(SHARE, " points"),
    "perplexity": Measure(PERPLEXITY, is_lower_better=True),
}
FUNCTION_MEASURE = Measure(MEAN)  # eval/NAME_mean of evaluation.functions: more is better


@dataclass
class GuardConfig:
    """The skills that the run keeps, and what happens at an evaluation where one is lost."""

    skills: list[str] = setting(
        [],
        "METRIC:POINTS, e.g. eval/function_calling:3; lost: further below step 0 than POINTS, and than chance can be",
    )
    then: str = choice(
        "stop",
        ("stop", "anchor", "warn"),
        doc="stop: back to the best checkpoint that kept all, which is the result; anchor: back to it, and on with a "
        "larger KL coefficient; warn: a line says so",
    )
    least: float = number(0.05, 1e-9, doc="KL coefficient that anchor raises a smaller one to; it doubles each time")
    most: float = number(1.0, 1e-9, doc="KL coefficient that anchor never exceeds")


def allowed(guard: GuardConfig) -> dict[str, float]:
    """Return the points that each metric may lose. Raises UserError for what is not METRIC:POINTS."""
    points: dict[str, float] = {}
    for entry in guard.skills:
        metric, colon, text = entry.rpartition(":")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not colon or not 0 <= value < math.inf:
            raise UserError(
                f"guard.skills: '{entry}' is not METRIC:POINTS, with the points that it may fall; give for example "
                f"{(metric if colon else entry) or 'eval/function_calling'}:3"
            )
        if metric in points:
            raise UserError(f"guard.skills: {metric} is there twice; leave one of the two out")
        points[metric] = value
    return points


def measures(evaluation: EvaluationConfig) -> dict[str, Measure]:
    """Return what a run with this evaluation measures and a guard can watch, by metric."""
    suites = {f"eval/{name}": known for name, known in SUITE_MEASURES.items() if name in evaluation.suites}
    if "perplexity" in evaluation.suites:
        suites |= {f"eval/perplexity_{name}": suites["eval/perplexity"] for name in evaluation.perplexity.texts}
    return suites | {f"eval/{name}_mean": FUNCTION_MEASURE for name in evaluation.functions}


def check_guard(guard: GuardConfig, evaluation: EvaluationConfig, coefficient: float, answers: int = 1) -> None:
    """Check that everything guarded will be measured, and that an anchor can be raised. Raises UserError.

    guard, evaluation: the sections.
    coefficient: the KL coefficient that the run starts with.
    answers: held-out prompts that are answered, for the user's own functions.
    """
    points = allowed(guard)
    if not points:
        return
    known = measures(evaluation)
    for metric in points:
        if metric not in known:
            options = ", ".join(known) or "nothing yet"
            raise UserError(
                f"guard.skills: {metric} is not measured; {did_you_mean(metric, known)}add to evaluation.suites "
                f"({', '.join(SUITE_MEASURES)}) or evaluation.functions, or use some of: {options}"
            )
        if known[metric] is FUNCTION_MEASURE and not answers:
            raise UserError(f"guard.skills: {metric} is of answers, and evaluation.responses=0 draws none; raise it")
    if not evaluation.every:
        raise UserError("guard.skills: evaluation.every=0 measures no skill; give evaluation.every a number of steps")
    if guard.then == "anchor" and guard.most < guard.least:
        raise UserError(f"guard.most: {guard.most:g} is below guard.least={guard.least:g}; raise it")
    if guard.then == "anchor" and guard.most <= coefficient:
        raise UserError(
            f"guard.most: {guard.most:g} is not above algorithm.kl.coefficient={coefficient:g}, so that nothing can be "
            "raised; give more"
        )


def described(config: Any) -> list[str]:
    """Return a line on what the guard of a run's configuration does; none where it guards nothing."""
    guard, known = config.guard, measures(config.evaluation)
    skills = [f"{metric} {points:g}{known[metric].unit}" for metric, points in allowed(guard).items()]
    what = {
        "stop": "the run stops with the best checkpoint that kept them",
        "anchor": f"it goes back to the best checkpoint that kept them, with a KL coefficient up to {guard.most:g}",
        "warn": "a line says so",
    }[guard.then]
    every = config.evaluation.every
    return [f"guard      {', '.join(skills)} may be lost, measured every {every} steps; else {what}"] if skills else []
