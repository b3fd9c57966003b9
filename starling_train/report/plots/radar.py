"""A radar plot: an axis for each category, a closed curve for each result."""

import math
from typing import Any

from starling_train.report.markup import clean
from starling_train.report.plots.draw import inline_svg, style
from starling_train.report.plots.panel import BLUE, GREEN, ORANGE, PURPLE, RED

COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE)
LOWEST, HIGHEST = 0.0, 10.0


def radar_svg(curves: dict[str, dict[str, float]]) -> str:
    """Draw curves (label -> category -> rating) as inline SVG; empty with fewer than three categories.

    A curve's line passes over categories that it lacks.
    """
    import matplotlib
    from matplotlib.figure import Figure

    categories = list(dict.fromkeys(name for curve in curves.values() for name in curve))
    if len(categories) < 3:
        return ""
    angles = {name: 2 * math.pi * index / len(categories) for index, name in enumerate(categories)}
    with matplotlib.rc_context(style("radar")):
        figure = Figure(figsize=(3.9, 3.7), layout="constrained")
        axis: Any = figure.add_subplot(projection="polar")  # of a class that the types do not name
        axis.set_theta_offset(math.pi / 2)
        axis.set_theta_direction(-1)
        for index, (label, curve) in enumerate(curves.items()):
            names = [name for name in categories if name in curve]
            around = [*names, names[0]]
            colour = COLOURS[index % len(COLOURS)]
            ratings = [curve[name] for name in around]
            axis.plot([angles[name] for name in around], ratings, color=colour, marker="o", label=clean(label))
            axis.fill([angles[name] for name in around], ratings, color=colour, alpha=0.08, linewidth=0)
        axis.set_xticks(list(angles.values()), [clean(name) for name in categories])
        axis.tick_params(axis="x", pad=10)
        axis.set_ylim(LOWEST, HIGHEST)
        axis.set_yticks([2, 4, 6, 8, 10])
        figure.legend(loc="outside lower center", ncols=1)
        return inline_svg(figure, "radar", "MT-Bench by category", themed=True)
