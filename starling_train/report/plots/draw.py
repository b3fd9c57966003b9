"""A run's panels as charts."""

from collections.abc import Sequence

from starling_train.report.plots.chart import Chart, Curve, render
from starling_train.report.plots.panel import Panel, PlotLine, PlotRow
from starling_train.report.read_run import RunFiles, is_number, series, setting, steps_done

OVERLAID = ("blue", "orange", "green", "red", "purple", "ink")  # a colour a run; then again, dashed


def panel_charts(run: RunFiles, panel: Panel) -> str:
    """Draw one panel, HTML; empty where the run has none of its numbers."""
    rows = [row for row in panel.rows if any(series(run, line.key)[1] for line in row.lines)]
    return "".join(render(chart(run, row), panel.title) for row in rows)


def chart(run: RunFiles, row: PlotRow) -> Chart:
    """Return one axis of a run."""
    curves = [curve for line in row.lines if (curve := _curve(run, line)) is not None]
    drawn = stacked(run, curves) if row.stacked else curves
    return _chart(row, drawn, max(1, steps_done(run)), target_level(run, row), marks=marked(run, row))


def overlaid(runs: Sequence[RunFiles], labels: Sequence[str], panel: Panel) -> str:
    """Draw one panel of several runs: an axis for each number, a curve for each run that has it."""
    last = max(1, *(steps_done(run) for run in runs))
    drawn = []
    for row in panel.rows:
        for line in row.lines:
            curves = []
            for index, (run, label) in enumerate(zip(runs, labels, strict=True)):
                curve = _curve(run, line)
                if curve is not None:
                    colour, dashed = OVERLAID[index % len(OVERLAID)], index >= len(OVERLAID)
                    curves.append(Curve(label, colour, curve.xs, curve.ys, points=curve.points, dashed=dashed))
            if curves:
                is_named = not line.label or line.label in row.ylabel
                title = row.ylabel if is_named else f"{row.ylabel}: {line.label}"
                drawn.append(render(_chart(row, curves, last, None, title), panel.title))
    return "".join(drawn)


def _chart(
    row: PlotRow, curves: list[Curve], last: int, level: float | None, ylabel: str = "", marks: Sequence[int] = ()
) -> Chart:
    return Chart(
        ylabel or row.ylabel,
        curves,
        last,
        level,
        row.target_label,
        row.floor,
        row.ceiling,
        row.lowest,
        row.highest,
        row.span,
        row.stacked and not ylabel,
        marks=marks,
        marks_label=row.mark_label,
    )


def _curve(run: RunFiles, line: PlotLine) -> Curve | None:
    """Return a curve with its band; None where the run never measured it."""
    steps, values = series(run, line.key)
    if not values:
        return None
    scaled = [value * line.scale for value in values]
    low: list[float] = []
    high: list[float] = []
    if line.spread:
        spread = dict(zip(*series(run, line.spread), strict=True))
        low = [value - spread.get(step, 0.0) for step, value in zip(steps, scaled, strict=True)]
        high = [value + spread.get(step, 0.0) for step, value in zip(steps, scaled, strict=True)]
    return Curve(line.label, line.colour, steps, scaled, low, high, line.points)


def stacked(run: RunFiles, curves: Sequence[Curve]) -> list[Curve]:
    """Return phases with the same steps, and the rest of `time/step_s` as `other`."""
    phases = [dict(zip(curve.xs, curve.ys, strict=True)) for curve in curves]
    steps = sorted(set().union(*phases))
    heights = [[phase.get(step, 0.0) for step in steps] for phase in phases]
    whole = dict(zip(*series(run, "time/step_s"), strict=True))
    parts = [sum(column) for column in zip(*heights, strict=True)]
    rest = [max(0.0, whole.get(int(step), part) - part) for step, part in zip(steps, parts, strict=True)]
    drawn = [Curve(curve.label, curve.colour, steps, ys) for curve, ys in zip(curves, heights, strict=True)]
    return [*drawn, Curve("other", "purple", steps, rest)] if any(rest) else drawn


def marked(run: RunFiles, row: PlotRow) -> list[int]:
    """Return the steps of a row's upright lines."""
    return [step for step, value in zip(*series(run, row.mark), strict=True) if not value] if row.mark else []


def target_level(run: RunFiles, row: PlotRow) -> float | None:
    """Return the height of the dashed line: a setting, or a fixed distance from the first value of a curve."""
    if row.tolerance is not None:
        values = series(run, row.target)[1]
        return values[0] + row.tolerance if values else None
    level = setting(run.config, row.target) if row.target else None
    return level if is_number(level) else None
