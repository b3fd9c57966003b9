"""Measurements of a machine: matrix products and copies a second; and the peak memory of a process.

python benchmarks/machine.py --device cuda        JSON out: the card, and what it can do
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import torch


def wait(device: str) -> None:
    """Wait until all work on the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Measure the operations a second of large matrix products, the best of several."""
    n = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / _best(lambda: a @ b, device)


def copy_bandwidth(device: str) -> float:
    """Measure the bytes a second, read and written together, of copies far larger than any cache."""
    source = torch.ones(2**28 if device == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * source.element_size() / _best(lambda: target.copy_(source), device)


def _best(work: Callable[[], Any], device: str, repeats: int = 6) -> float:
    seconds = []
    for _ in range(repeats):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def peak_memory(device: str) -> Callable[[], float]:
    """Return a function that returns the peak since now, decimal GB: of the GPU, or of the process above its present use."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return lambda: torch.cuda.max_memory_allocated() / 1e9
    memory = models.PeakMemory()
    return lambda: memory.mb() / 1e3


def plot_sweep(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Plot seconds a step by phase, and peak memory, against each size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(found), figsize=(4 * len(found), 6), layout="constrained", squeeze=False)
    for column, (title, rows) in enumerate(found.items()):
        values, bottom = [str(row["value"]) for row in rows], [0.0] * len(rows)
        for phase in models.PHASES:
            heights = [row["phases_s"][phase] for row in rows]
            axes[0, column].bar(values, heights, bottom=bottom, label=phase)
            bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
        axes[1, column].bar(values, [row["peak_gb"] for row in rows], color="gray")
        axes[1, column].set_xlabel(title)
    axes[0, 0].set_ylabel("seconds a step")
    axes[1, 0].set_ylabel("peak memory, GB")
    axes[0, 0].legend()
    figure.savefig(path, dpi=100)


def described(device: str) -> dict[str, Any]:
    """Return what the device is, and its measured rates by dtype."""
    found: dict[str, Any] = {"torch": torch.__version__, "device": device, "threads": torch.get_num_threads()}
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        found |= {
            "card": card.name,
            "memory_gb": card.total_memory / 1e9,
            "capability": f"{card.major}.{card.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    dtypes = (torch.bfloat16, torch.float32, torch.float64)
    found["matrix_tflops"] = {str(dtype).removeprefix("torch."): matrix_rate(device, dtype) / 1e12 for dtype in dtypes}
    return found | {"copy_gb_per_s": copy_bandwidth(device) / 1e9}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    print(json.dumps(described(parser.parse_args().device)))
