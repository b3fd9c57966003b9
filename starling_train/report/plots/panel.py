"""A plot of a report as data: keys, labels with units, colours, and how to read it."""

import math
from dataclasses import dataclass
from typing import Any

# Names of the page's palette, which is Okabe and Ito's, safe for colour-blind readers, in light and in dark.
INK, BLUE, ORANGE, GREEN, RED, PURPLE = "ink", "blue", "orange", "green", "red", "purple"


@dataclass(frozen=True)
class PlotLine:
    """One curve: a key of `metrics.jsonl`; `spread` names the key of its standard deviation."""

    key: str
    label: str
    colour: str = BLUE
    spread: str = ""
    points: bool = False
    scale: float = 1.0


@dataclass(frozen=True)
class PlotRow:
    """One axis: its curves, and optionally a dashed line, limits, stacking.

    `floor` and `ceiling` fix an end of the axis; it never reaches beyond `lowest` and `highest`, so that one outlier
    does not flatten the rest, and is at least `span` high. The dashed line is at the config's setting `target`; with a
    `tolerance`, at that distance from the first value of the metric `target`. Upright lines mark the steps at which the
    metric `mark` is 0.
    """

    ylabel: str
    lines: tuple[PlotLine, ...]
    target: str = ""
    target_label: str = ""
    tolerance: float | None = None
    mark: str = ""
    mark_label: str = ""
    floor: float | None = None
    ceiling: float | None = None
    lowest: float = -math.inf
    highest: float = math.inf
    span: float = 0.0
    stacked: bool = False


@dataclass(frozen=True)
class Panel:
    """One figure of the page; `reading` says what good and bad look like."""

    slug: str
    title: str
    reading: str
    rows: tuple[PlotRow, ...]


def row(ylabel: str, *lines: PlotLine, **options: Any) -> PlotRow:
    """Make an axis from its curves; options: its other fields."""
    return PlotRow(ylabel, lines, **options)


def panel(slug: str, title: str, reading: str, *rows: PlotRow) -> Panel:
    """Make a figure from its axes."""
    return Panel(slug, title, reading, rows)
