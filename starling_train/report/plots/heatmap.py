"""A heatmap of a scan, layer x module type, with the selection marked."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starling_train.files.whole import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRAME = "#d1495b"


def draw(records: dict[str, Any], selected: Iterable[str], title: str = "SNR by layer and module type") -> "Figure":
    """Draw a matplotlib figure: a row per layer (0 at the bottom), a column per module type.

    `records` maps module names to objects with `.type`, `.layer`, `.snr` (None without a score). Values of different
    types do not compare, so the colour is the rank within the column and the score is printed. A frame marks `selected`
    (`["*"]`: all). Experts of one layer share a cell: mean rank, mean score, and how many of them are selected.
    """
    from matplotlib.figure import Figure

    selected = set(records) if set(selected) == {"*"} else set(selected)
    types = list(dict.fromkeys(record.type for record in records.values()))
    layers = sorted({record.layer for record in records.values()})
    rank = ranks(records)
    cells: dict[tuple[int, int], list[str]] = {}
    for module, record in records.items():
        cells.setdefault((types.index(record.type), layers.index(record.layer)), []).append(module)
    figure = Figure(figsize=(2.2 + 1.05 * len(types), max(3.0, 1.7 + 0.26 * len(layers))), layout="constrained")
    axes = figure.add_subplot()
    grid = [[float("nan")] * len(types) for _ in layers]
    for (x, y), modules in cells.items():
        grid[y][x] = mean([rank[module] for module in modules])
    image = axes.imshow(grid, aspect="auto", origin="lower", cmap="Blues", vmin=-0.15, vmax=1.15)
    for (x, y), modules in cells.items():
        dark = grid[y][x] > 0.6
        _cell(axes, (x, y), [records[m].snr for m in modules], sum(m in selected for m in modules), dark)
    axes.set_xticks(range(len(types)), short_names(types), rotation=30, ha="right")
    axes.set_yticks(range(len(layers)), [str(layer) for layer in layers], fontsize=8)
    axes.set_ylabel("layer")
    axes.set_title(f"{title}; framed: trains", fontsize=11)
    bar = figure.colorbar(image, ax=axes, ticks=[0, 1], shrink=min(1.0, 4 / figure.get_figheight()))
    bar.ax.set_yticklabels(["lowest of\nits type", "highest of\nits type"], fontsize=8)
    bar.ax.set_ylim(0, 1)
    return figure


def ranks(records: dict[str, Any]) -> dict[str, float]:
    """Return module -> rank within its type, 1 for the highest SNR, 0 for the lowest, nan without a score."""
    ranks = dict.fromkeys(records, float("nan"))
    for kind in {record.type for record in records.values()}:
        scored = [(r.snr, m) for m, r in records.items() if r.type == kind and r.snr is not None]
        for rank, (_, module) in enumerate(sorted(scored, key=lambda item: item[0])):
            ranks[module] = rank / (len(scored) - 1) if len(scored) > 1 else 0.5
    return ranks


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def short_names(types: list[str]) -> list[str]:
    """Return the last parts of the type names, where those differ."""
    last = [name.split(".")[-1] for name in types]
    return last if len(set(last)) == len(last) else types


def _cell(axes: "Axes", position: tuple[int, int], scores: list[float | None], chosen: int, dark: bool) -> None:
    from matplotlib.patches import Rectangle

    known = [score for score in scores if score is not None]
    text = f"{mean(known):.3g}" if known else ""
    if len(scores) > 1:
        text += f" ({chosen}/{len(scores)})"
    axes.text(*position, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    if chosen:
        corner = (position[0] - 0.46, position[1] - 0.42)
        axes.add_patch(Rectangle(corner, 0.92, 0.84, fill=False, edgecolor=FRAME, linewidth=2))


def save(figure: "Figure", path: Path, dpi: int = 130) -> None:
    """Write `figure` as PNG."""
    write_whole(path, lambda partial: figure.savefig(partial, format="png", dpi=dpi))
