"""Layer x module type heatmap of a scan, the selection marked."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(records: dict, selected: Iterable[str], title: str = "SNR by layer and module type") -> "Figure":
    """A matplotlib figure: rows are layers (0 at the bottom), columns module types, colour the rank within the type.

    `records` maps module names to objects with `.type`, `.layer`, `.snr`. Values of different types do not compare, so
    the colour is each matrix's rank in its column and the number in the cell is the score. A frame marks `selected`.
    """
    from matplotlib.figure import Figure

    selected = set(selected)
    everything = selected == {"*"}
    types = list(dict.fromkeys(record.type for record in records.values()))
    layers = sorted({record.layer for record in records.values()})
    ranks = _ranks(records)
    height = max(2.8, 1.6 + 0.24 * len(layers))
    figure = Figure(figsize=(1.8 + 1.05 * len(types), height), layout="constrained")
    axes = figure.add_subplot()
    grid = [[float("nan")] * len(types) for _ in layers]
    for module, record in records.items():
        grid[layers.index(record.layer)][types.index(record.type)] = ranks[module]
    image = axes.imshow(grid, aspect="auto", origin="lower", cmap="viridis", vmin=0, vmax=1)
    for module, record in records.items():
        place = (types.index(record.type), layers.index(record.layer))
        _cell(axes, place, record.snr, ranks[module], everything or module in selected)
    axes.set_xticks(range(len(types)), [name.split(".")[-1] for name in types], rotation=30, ha="right")
    axes.set_yticks(range(len(layers)), [str(layer) for layer in layers], fontsize=8)
    axes.set_ylabel("layer")
    axes.set_title(f"{title}\n(framed: trains)", fontsize=10)
    figure.colorbar(image, ax=axes, label="rank within type (1 = highest SNR)")
    return figure


def _ranks(records: dict) -> dict[str, float]:
    """Module -> place within its type, 1 for the highest SNR, 0 for the lowest, nan without a score."""
    ranks = {}
    for kind in {record.type for record in records.values()}:
        scored = [(r.snr, m) for m, r in records.items() if r.type == kind and r.snr is not None]
        for place, (_, module) in enumerate(sorted(scored, key=lambda item: item[0])):
            ranks[module] = place / max(len(scored) - 1, 1)
    return {module: ranks.get(module, float("nan")) for module in records}


def _cell(axes, place: tuple[int, int], score: float | None, rank: float, is_selected: bool) -> None:
    from matplotlib.patches import Rectangle

    x, y = place
    text = "" if score is None else f"{score:.3g}"
    axes.text(x, y, text, ha="center", va="center", fontsize=6.5, color="black" if rank > 0.6 else "white")
    if is_selected:
        axes.add_patch(
            Rectangle((x - 0.47, y - 0.44), 0.94, 0.88, fill=False, edgecolor="red", linewidth=1.6)
        )


def save(figure: "Figure", path: Path, dpi: int = 130) -> None:
    """Writes `figure` as PNG."""
    figure.savefig(path, format="png", dpi=dpi)
