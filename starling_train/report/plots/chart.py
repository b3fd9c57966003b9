"""Line charts as inline SVG in the page's own colours, without any library: quick enough for every evaluation.

A chart can be read without a script. `page.js` adds the values under the pointer and zoom; it finds the numbers in
`data-x` and `data-y` of each curve.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from starling_train.report.markup import escape, plain

WIDTH, HEIGHT = 390.0, 128.0  # of a chart, in its own units
LEFT, RIGHT, TOP, BOTTOM = 44.0, 6.0, 6.0, 18.0
INNER_WIDTH, INNER_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
FEW_POINTS = 25  # a curve this short also gets marks, or a run of one step would be an empty chart
MOST_POINTS = 400  # of a curve: beyond, only the extremes of each stretch are drawn


@dataclass(frozen=True)
class Curve:
    """One curve.

    label: for the legend.
    colour: a name of the page's palette.
    xs, ys: its points.
    low, high: of a band around it.
    points: marks on a thin line.
    dashed: a broken line.
    joined: there is a line between the points.
    """

    label: str
    colour: str
    xs: Sequence[float]
    ys: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    points: bool = False
    dashed: bool = False
    joined: bool = True


@dataclass(frozen=True)
class Chart:
    """One axis with its curves.

    ylabel: with the unit.
    curves: drawn in this order.
    last: the last value of the common axis of steps.
    level: of a dashed line, with its label.
    floor, ceiling: fix an end of the axis.
    lowest, highest: the axis never reaches beyond them, so that one outlier does not flatten the rest.
    span: the least height of the axis, in its unit.
    stacked: curves lie on top of one another.
    xlabel: of the common axis.
    marks: steps with an upright line, with their label.
    """

    ylabel: str
    curves: Sequence[Curve]
    last: float
    level: float | None = None
    level_label: str = ""
    floor: float | None = None
    ceiling: float | None = None
    lowest: float = -math.inf
    highest: float = math.inf
    span: float = 0.0
    stacked: bool = False
    xlabel: str = "step"
    marks: Sequence[float] = ()
    marks_label: str = ""
    limits: tuple[float, float] = field(init=False, default=(0.0, 1.0))

    def __post_init__(self) -> None:
        object.__setattr__(self, "limits", _limits(self))

    def x(self, value: float) -> float:
        """Return a step's place inside the axes."""
        return round((value + self.margin) / (self.last + 2 * self.margin) * INNER_WIDTH, 1)

    def y(self, value: float) -> float:
        """Return a value's place inside the axes; those beyond the ends are far outside, but finite."""
        low, high = self.limits
        place = (high - value) / (high - low) * INNER_HEIGHT
        return round(min(max(place, -10 * INNER_HEIGHT), 10 * INNER_HEIGHT), 1)

    @property
    def margin(self) -> float:
        """Steps to the left of 0 and to the right of the last."""
        return 0.5 if self.last <= FEW_POINTS else 0.02 * self.last


def _limits(chart: Chart) -> tuple[float, float]:
    """Return the ends of the axis of values."""
    values = [value for curve in chart.curves for part in (curve.ys, curve.low, curve.high) for value in part]
    if chart.stacked:
        values = [sum(heights) for heights in zip(*(curve.ys for curve in chart.curves), strict=True)]
    values += [chart.level] if chart.level is not None else []
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high - low < chart.span:
        middle = (low + high) / 2
        low, high = middle - chart.span / 2, middle + chart.span / 2
    if high == low:
        low, high = low - (abs(low) * 0.1 or 1.0), high + (abs(high) * 0.1 or 1.0)
    room = 0.05 * (high - low)
    low, high = max(low - room, chart.lowest), min(high + room, chart.highest)
    if chart.floor is not None:
        low = chart.floor
    if chart.ceiling is not None:
        high = chart.ceiling
    return (low, high) if high > low else (low, low + 1.0)


def ticks(low: float, high: float, count: int, integer: bool = False) -> list[float]:
    """Return round numbers between two values, at most `count` of them, about evenly many."""
    size = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(size)) if size > 0 else 1.0
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= size * (1 - 1e-9))
    if integer:
        step = max(1.0, round(step))
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_text(value: float, step: float) -> str:
    """Return a tick's value with as many digits as its step has."""
    if value and (abs(value) >= 1e6 or step < 1e-4):
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e").replace("-", "−")
    digits = next((digits for digits in range(6) if abs(step - round(step, digits)) < step * 1e-6), 6)
    return f"{value + 0.0:,.{digits}f}".replace("-", "−")


def render(chart: Chart, title: str) -> str:
    """Return the chart with its legend, HTML; `title` is for readers who cannot see it."""
    name = escape(f"{title}: {chart.ylabel}")
    size = f'data-last="{chart.last:g}" data-margin="{chart.margin:g}"'
    body = "".join(_stack(chart) if chart.stacked else [_curve(chart, curve) for curve in chart.curves])
    if chart.level is not None:
        y = chart.y(chart.level)
        body += f'<path class="level" d="M0 {y}H{INNER_WIDTH:g}"/>'
    if chart.marks:
        lines = "".join(f"M{chart.x(step)} 0V{INNER_HEIGHT:g}" for step in chart.marks)
        body += f'<path class="level mark" d="{lines}"/>'
    area = (
        f'<svg class="area" x="{LEFT:g}" y="{TOP:g}" width="{INNER_WIDTH:g}" height="{INNER_HEIGHT:g}" '
        f'viewBox="0 0 {INNER_WIDTH:g} {INNER_HEIGHT:g}" preserveAspectRatio="none">{body}</svg>'
    )
    return (
        f'{legend(chart)}<svg class="chart" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{name}" {size}>'
        f"{_axes(chart)}{area}</svg>"
    )


def legend(chart: Chart) -> str:
    """Return what the axis shows, and a key for each curve where there is more than one."""
    keys = [(curve.label, curve.colour, curve.dashed) for curve in chart.curves]
    named = [key for key in keys if key[0]] if len(keys) > 1 or (keys and keys[0][0]) else []
    items = [
        f'<span class="key {colour}{" dashed" if dashed else ""}">{escape(label)}</span>'
        for label, colour, dashed in named
    ]
    if chart.level is not None and chart.level_label:
        items.append(f'<span class="key ink dashed">{escape(chart.level_label)}</span>')
    if chart.marks and chart.marks_label:
        items.append(f'<span class="key ink dashed">{escape(chart.marks_label)}</span>')
    return f'<p class="legend"><strong>{escape(chart.ylabel)}</strong> {" ".join(items)}</p>'


def _axes(chart: Chart) -> str:
    """Return the grid with its numbers."""
    low, high = chart.limits
    parts = []
    levels = ticks(low, high, 4)
    step = levels[1] - levels[0] if len(levels) > 1 else max(abs(high - low), 1e-9)
    for value in levels:
        y = TOP + chart.y(value)
        parts.append(f'<path class="grid" d="M{LEFT:g} {y:.1f}h{INNER_WIDTH:g}"/>')
        parts.append(f'<text class="ytick" x="{LEFT - 5:g}" y="{y + 3:.1f}">{tick_text(value, step)}</text>')
    steps = ticks(0, chart.last, 6, integer=True)
    marks = "".join(
        f'<text x="{LEFT + chart.x(value):.1f}" y="{HEIGHT - 5:g}">{plain(round(value))}</text>' for value in steps
    )
    unit = f'<text class="xlabel" x="{LEFT - 12:g}" y="{HEIGHT - 5:g}">{escape(chart.xlabel)}</text>'
    return f'{"".join(parts)}<g class="xticks">{marks}</g>{unit}'


def _numbers(values: Sequence[float]) -> str:
    """Return numbers for an attribute; whole numbers in a row as `first:last`."""
    if len(values) > 2 and all(b - a == 1 for a, b in itertools.pairwise(values)):
        return f"{values[0]:g}:{values[-1]:g}"
    return " ".join(f"{value:.5g}" for value in values)


def _data(curve: Curve, keep: Sequence[int]) -> str:
    """Return what the page's script reads: the label, and the points of these positions."""
    ys = " ".join(f"{curve.ys[i]:.5g}" for i in keep)
    return f'data-label="{escape(curve.label)}" data-x="{_numbers([curve.xs[i] for i in keep])}" data-y="{ys}"'


def _curve(chart: Chart, curve: Curve) -> str:
    """Return one curve with its band."""
    if not curve.xs:
        return ""
    keep = thinned(curve.ys)
    xs, ys = [curve.xs[i] for i in keep], [curve.ys[i] for i in keep]
    places = [(chart.x(x), chart.y(y)) for x, y in zip(xs, ys, strict=True)]
    line = "M" + "L".join(f"{x:g} {y:g}" for x, y in places)
    parts = []
    if curve.low:
        upper = [(chart.x(curve.xs[i]), chart.y(curve.high[i])) for i in keep]
        lower = [(chart.x(curve.xs[i]), chart.y(curve.low[i])) for i in reversed(keep)]
        outline = "L".join(f"{x:g} {y:g}" for x, y in (*upper, *lower))
        parts.append(f'<path class="band {curve.colour}" d="M{outline}Z"/>')
    kind = "".join(word for word, holds in (("thin ", curve.points), ("dashed ", curve.dashed)) if holds) + curve.colour
    kind += "" if curve.joined else " apart"
    data = _data(curve, keep)
    parts.append(f'<path class="curve {kind}" {data} d="{line}"/>')
    if curve.points or len(xs) <= FEW_POINTS:
        # a line of no length with a round end is a dot that zooming does not stretch
        dots = "".join(f"M{x:g} {y:g}h0" for x, y in places)
        parts.append(f'<path class="dots {"large " if curve.points else ""}{curve.colour}" d="{dots}"/>')
    return "".join(parts)


def _stack(chart: Chart) -> list[str]:
    """Return filled curves on top of one another; all have the same steps."""
    below = [0.0] * max((len(curve.xs) for curve in chart.curves), default=0)
    parts = []
    for curve in chart.curves:
        above = [low + high for low, high in zip(below, curve.ys, strict=True)]
        xs = list(curve.xs)
        if len(xs) == 1:  # a surface needs a width
            xs, low, high = [xs[0] - 0.4, xs[0] + 0.4], [below[0]] * 2, [above[0]] * 2
        else:
            low, high = below, above
        keep = thinned(high)
        upper = [(chart.x(xs[i]), chart.y(high[i])) for i in keep]
        lower = [(chart.x(xs[i]), chart.y(low[i])) for i in reversed(keep)]
        outline = "L".join(f"{x:g} {y:g}" for x, y in (*upper, *lower))
        data = _data(curve, thinned(curve.ys))
        parts.append(f'<path class="surface {curve.colour}" {data} d="M{outline}Z"/>')
        below = above
    return parts


def thinned(values: Sequence[float], most: int = MOST_POINTS) -> list[int]:
    """Return the positions to draw: all of a short curve; of a long one the lowest and highest of each stretch."""
    count = len(values)
    if count <= most:
        return list(range(count))
    stretches = most // 2
    keep = {0, count - 1}
    for stretch in range(stretches):
        inside = range(stretch * count // stretches, (stretch + 1) * count // stretches)
        keep |= {min(inside, key=lambda i: values[i]), max(inside, key=lambda i: values[i])}
    return sorted(keep)
