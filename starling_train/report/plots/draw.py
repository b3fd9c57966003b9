"""Plots of a run, drawn by matplotlib without its global state: SVG for the page, PNG for a README."""

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starling_train.config.fields import UserError
from starling_train.report.markup import escape
from starling_train.report.plots import panels
from starling_train.report.plots.panel import BLUE, GREEN, GRID, INK, ORANGE, PURPLE, RED, Panel, PlotLine, PlotRow
from starling_train.report.read_run import RunFiles, is_number, read, series, setting, steps_done

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW_POINTS = 25  # a line this short also gets markers, or a run of one step would be an empty axis
LEGEND_CHARACTERS = 58  # that fit side by side above an axis; each label takes six more for its line
THEME = {
    INK: "ink",
    GRID: "grid",
    BLUE: "blue",
    ORANGE: "orange",
    GREEN: "green",
    RED: "red",
    PURPLE: "purple",
}


def style(slug: str) -> Any:
    """Return settings that make a figure deterministic and plain; `slug` keeps the ids of a page's figures apart."""
    return {
        "svg.hashsalt": slug,
        "svg.fonttype": "none",  # text stays text: selectable, readable aloud, in the page's own font
        "text.parse_math": False,  # a `$` in a name is a dollar sign
        "font.family": "DejaVu Sans",
        "font.size": 9.0,
        "axes.labelsize": 9.0,
        "axes.labelcolor": INK,
        "axes.edgecolor": GRID,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.formatter.useoffset": False,
        "axes.formatter.limits": (-3, 6),
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "text.color": INK,
        "xtick.color": GRID,
        "ytick.color": GRID,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "legend.frameon": False,
        "legend.fontsize": 8.0,
        "lines.linewidth": 1.6,
        "lines.markersize": 4.5,
    }


def panel_svg(run: RunFiles, panel: Panel) -> str:
    """Draw one panel as inline SVG in the page's colours; empty where the run has none of its numbers."""
    import matplotlib

    rows = [row for row in panel.rows if any(series(run, line.key)[1] for line in row.lines)]
    if not rows:
        return ""
    with matplotlib.rc_context(style(panel.slug)):
        return inline_svg(draw(run, rows), panel.slug, panel.title, themed=True)


def draw(run: RunFiles, rows: list[PlotRow]) -> "Figure":
    """Draw rows below one another over a common axis of steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.9, 0.9 + 1.2 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
    for axis, row in zip(axes, rows, strict=True):
        draw_row(axis, run, row)
    axes[-1].set_xlabel("step")
    figure.align_ylabels(list(axes))
    return figure


def draw_row(axis: "Axes", run: RunFiles, row: PlotRow) -> None:
    """Draw curves, the dashed target, limits and the legend of one axis."""
    from matplotlib.ticker import MaxNLocator

    if row.stacked:
        draw_stack(axis, run, row)
    else:
        for line in row.lines:
            draw_line(axis, run, line)
    level = target_level(run, row)
    if level is not None:
        axis.axhline(level, color=INK, linestyle="--", linewidth=0.9, label=row.target_label)
    low, high = axis.get_ylim()
    if row.floor is not None:
        low, high = row.floor, high + 0.04 * (high - row.floor)
    axis.set_ylim(max(low, row.lowest), high if row.ceiling is None else row.ceiling)
    last = max(1, steps_done(run))
    margin = 0.5 if last <= FEW_POINTS else 0.02 * last
    axis.set_xlim(-margin, last + margin)  # the same in every plot, whatever was measured when
    axis.set_ylabel(row.ylabel)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axis.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    labels = axis.get_legend_handles_labels()[1]
    if len(labels) > 1:
        # Above the axis: a legend inside would hide a curve sooner or later.
        columns = max(1, LEGEND_CHARACTERS // (max(map(len, labels)) + 6))
        position: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.1}
        axis.legend(**position, ncols=columns, handlelength=1.2, columnspacing=1.2)


def target_level(run: RunFiles, row: PlotRow) -> float | None:
    """Return the height of the dashed line: a setting, or a fixed distance from the first value of a curve."""
    if row.tolerance is not None:
        values = series(run, row.target)[1]
        return values[0] + row.tolerance if values else None
    level = setting(run.config, row.target) if row.target else None
    return level if is_number(level) else None


def draw_line(axis: "Axes", run: RunFiles, line: PlotLine) -> None:
    """Draw one curve with its band; points are joined by a thin line."""
    steps, values = series(run, line.key)
    if not values:
        return
    scaled = [value * line.scale for value in values]
    shape = "o" if line.points or len(values) <= FEW_POINTS else ""
    width = 1.0 if line.points else 1.6
    size = 4.5 if line.points else 2.5
    axis.plot(steps, scaled, color=line.colour, marker=shape, markersize=size, linewidth=width, label=line.label)
    if line.spread:
        spread = dict(zip(*series(run, line.spread), strict=True))
        inside = [(s, v, spread[s]) for s, v in zip(steps, values, strict=True) if s in spread]
        low, high = [v - d for _, v, d in inside], [v + d for _, v, d in inside]
        axis.fill_between([s for s, _, _ in inside], low, high, color=line.colour, alpha=0.18, linewidth=0)


def draw_stack(axis: "Axes", run: RunFiles, row: PlotRow) -> None:
    """Draw phases on top of one another, and the rest of `time/step_s` as `other`."""
    lines = [line for line in row.lines if series(run, line.key)[1]]
    phases = [dict(zip(*series(run, line.key), strict=True)) for line in lines]
    steps = sorted(set().union(*phases))
    heights = [[phase.get(step, 0.0) for step in steps] for phase in phases]
    whole = dict(zip(*series(run, "time/step_s"), strict=True))
    parts = [sum(column) for column in zip(*heights, strict=True)]
    other = [max(0.0, whole.get(step, part) - part) for step, part in zip(steps, parts, strict=True)]
    labels, colours = [line.label for line in lines], [line.colour for line in lines]
    if any(other):
        heights, labels, colours = [*heights, other], [*labels, "other"], [*colours, PURPLE]
    if len(steps) > FEW_POINTS:
        axis.stackplot(steps, heights, labels=labels, colors=colours, linewidth=0)
        return
    bottom = [0.0] * len(steps)
    for height, label, colour in zip(heights, labels, colours, strict=True):
        axis.bar(steps, height, 0.8, bottom=bottom, label=label, color=colour)
        bottom = [low + high for low, high in zip(bottom, height, strict=True)]


def inline_svg(figure: "Figure", slug: str, title: str, themed: bool) -> str:
    """Return a figure as an `<svg>` element for HTML.

    figure: the figure.
    slug: names it in the page.
    title: for readers who cannot see it.
    themed: whether the palette is replaced by the page's variables.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    engine = figure.get_layout_engine()
    if engine is not None:  # lay out once, here: with an engine, "none" too, `savefig` draws an extra time
        figure.set_dpi(72)
        engine.execute(figure)
        figure.set_layout_engine(None)
    figure.savefig(buffer, format="svg", transparent=themed, metadata=nothing)
    svg = buffer.getvalue()
    box = re.search(r'viewBox="0 0 ([0-9.]+) [0-9.]+"', svg)
    assert box is not None
    body = svg[svg.index(">", box.end()) + 1 :]
    body = re.sub(r"<style type=\"text/css\">.*?</style>", "", body, count=1, flags=re.S)
    body = re.sub(r'<g id="[A-Za-z0-9_.]+_\d+">', "<g>", body)  # the same in every figure; nothing refers to them
    body = re.sub(r"xlink:href=", "href=", body)
    body = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", body)
    if themed:
        body = re.sub(r"(fill|stroke): (#[0-9a-f]{6})", _themed, body)
    # A themed plot fills its card; any other keeps the size it was drawn at, in CSS points.
    size = "" if themed else f' style="width: {box[1]}pt"'
    return f'<svg {box[0]}{size} role="img" aria-label="{escape(title)}" data-plot="{escape(slug)}">{body}'


def _themed(match: re.Match[str]) -> str:
    name = THEME.get(match[2])
    return f"{match[1]}: var(--{name})" if name else match[0]


def reward_png(run_dir: Path, path: Path) -> Path:
    """Draw one picture for a README: score on training and held-out prompts, gold, function calling, over steps.

    Parts that the run did not measure are left out. Returns `path`; raises `UserError` where nothing is left.
    """
    import matplotlib
    from matplotlib.figure import Figure

    run = read(run_dir)
    skill = (PlotLine("eval/function_calling", "held-out tasks", GREEN, points=True),)
    candidates = (
        ("Reward-model score", panels.REWARD.rows[0]),
        ("True quality (gold)", panels.REWARD.rows[1]),
        ("Function calling kept", panels.skill_row(skill)),
    )
    rows = [(title, row) for title, row in candidates if any(series(run, line.key)[1] for line in row.lines)]
    if not rows:
        raise UserError(f"{Path(run_dir) / 'metrics.jsonl'}: holds nothing to plot; give a run that has trained")
    with matplotlib.rc_context(style("readme") | {"axes.titlelocation": "left", "axes.titlesize": 10.5}):
        figure = Figure(figsize=(3.4 * len(rows), 2.9), layout="constrained", facecolor="white")
        for position, (title, row) in enumerate(rows, start=1):
            axis = figure.add_subplot(1, len(rows), position)
            draw_row(axis, run, row)
            axis.set_title(title, color=INK, pad=20, fontweight="bold")
            axis.set_xlabel("step")
        path = Path(path)
        figure.savefig(path, format="png", dpi=160, metadata={"Software": None})
    return path
