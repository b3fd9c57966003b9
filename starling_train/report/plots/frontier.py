"""Reward gained against each skill: the path of every freeze strategy, from its start to its last step."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starling_train.config.sections import KL, is_less_better

COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a", "#bf3989")
GREY = "#8c959f"
ACROSS = 3  # plots side by side
READING = (
    "Reward gained (right is better) against the change of each skill (up is better): a line for each strategy, the "
    "mean of its seeds at each evaluation; faint, its runs; at the end the 95 % intervals"
)


def mean_path(runs: Sequence[Any], skill: str) -> tuple[list[int], list[float], list[float]]:
    """Return steps, mean reward gained and mean change of a skill, at the steps that all runs have.

    runs: curves of one strategy.
    skill: the metric.
    """
    steps = sorted(set.intersection(*(set(run.steps) for run in runs)))
    by_run = [{step: index for index, step in enumerate(run.steps)} for run in runs]

    def means(values: Sequence[Sequence[float]]) -> list[float]:
        return [
            math.fsum(of_run[where[step]] for of_run, where in zip(values, by_run, strict=True)) / len(runs)
            for step in steps
        ]

    return steps, means([run.reward for run in runs]), means([run.skills[skill] for run in runs])


def draw(curves: Sequence[Any], compared: Any, path: Path) -> None:
    """Plot the frontier as PNG.

    curves: of all runs.
    compared: their `StrategyComparison`.
    path: of the file.
    """
    from matplotlib.figure import Figure

    skills = list(compared.sides[0].skills)
    across = min(len(skills), ACROSS)
    down = math.ceil(len(skills) / across)
    figure = Figure(figsize=(6.4 * across, 4.6 * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).flatten()
    for axes in grid[len(skills) :]:
        axes.remove()
    for axes, skill in zip(grid, skills, strict=False):
        for colour, side in zip(COLOURS * len(compared.sides), compared.sides, strict=False):
            _draw_strategy(axes, [curve for curve in curves if curve.strategy == side.strategy], side, skill, colour)
        if compared.level is not None:
            axes.axvline(compared.level, color=GREY, linewidth=0.8, linestyle=":")
        axes.axhline(0.0, color=GREY, linewidth=0.8)
        axes.set_xlim(_around([value for curve in curves for value in curve.reward]))
        axes.set_ylim(_around([value for curve in curves for value in curve.skills[skill]]))
        axes.set_xlabel("held-out reward gained")
        name = "KL to the start, nats" if skill == KL else f"change of {skill.removeprefix('eval/').replace('_', ' ')}"
        if is_less_better(skill):
            axes.invert_yaxis()
            name += " (less is better: axis turned)"
        axes.set_ylabel(name)
    grid[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, format="png", dpi=110, metadata={"Software": None})


def _around(values: Sequence[float]) -> tuple[float, float]:
    """Return an axis's ends: all runs are within them, the interval of a few seeds, which may be huge, is cut off."""
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 1.0
    return low - margin, high + margin


def _draw_strategy(axes: Any, runs: Sequence[Any], side: Any, skill: str, colour: str) -> None:
    """Draw the runs of a strategy, their mean path, and the intervals at its end.

    axes: matplotlib's.
    runs: the strategy's curves.
    side: its `Side`.
    skill: the metric.
    colour: of everything.
    """
    for run in runs:
        axes.plot(run.reward, run.skills[skill], color=colour, alpha=0.25, linewidth=0.8)
    _, rewards, values = mean_path(runs, skill)
    axes.plot(rewards, values, color=colour, linewidth=1.8, marker=".", markersize=5)
    x, y = side.reward, side.skills[skill]
    halves = [0.0 if math.isnan(value.half) else value.half for value in (x, y)]
    axes.errorbar(x.mean, y.mean, xerr=halves[0], yerr=halves[1], fmt="o", color=colour, label=side.strategy)
