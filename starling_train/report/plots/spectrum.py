"""The singular values of one matrix with the threshold that separates signal from noise."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(values: Sequence[float], score: Any, title: str) -> "Figure":
    """Draw a matplotlib figure of singular values (descending) against their number, log scale.

    `score` has `.threshold`, `.rank`, `.snr`, `.fragile`. Values that are exactly zero are not drawn.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.add_subplot()
    numbers = range(1, len(values) + 1)
    signal, noise = slice(None, score.rank), slice(score.rank, None)
    axes.plot(numbers[signal], values[signal], ".", markersize=3, label=f"signal: {score.rank} values")
    axes.plot(numbers[noise], values[noise], ".", markersize=3, label=f"noise: {len(values) - score.rank} values")
    if score.threshold > 0:
        axes.axhline(score.threshold, color="black", linewidth=1, label=f"threshold {score.threshold:.4g}")
    if any(value > 0 for value in values):  # a matrix of zeros has nothing to show on a log scale
        axes.set_yscale("log")
    axes.set_xlabel("number of the singular value")
    axes.set_ylabel("singular value")
    axes.set_title(f"{title}: SNR {score.snr:.4g}" + (" (fragile)" if score.fragile else ""), fontsize=11)
    axes.legend(fontsize=9)
    return figure
