"""The machine that a run is on: what its CPU computes faster in bfloat16 than in float32, its memory, its packages."""

import os
from importlib.util import find_spec
from pathlib import Path

LARGE = 50_000_000  # parameters: in a smaller model matrix products are not what takes the time
FLAGS = {"avx512_bf16", "amx_bf16"}
CPU_INFO = Path("/proc/cpuinfo")


def has_fast_bfloat16(info: Path = CPU_INFO) -> bool:
    """Return whether this CPU has matrix instructions for bfloat16, as Linux tells."""
    try:
        return bool(FLAGS & set(info.read_text().split()))
    except OSError:
        return False


def dtype_note(dtype: str, parameters: int, device: str, info: Path = CPU_INFO) -> str:
    """Return the line that offers bfloat16 to a run in float32 on such a CPU; '' where there is nothing to offer."""
    if device != "cpu" or dtype != "float32" or parameters < LARGE or not has_fast_bfloat16(info):
        return ""
    return (
        "model.dtype=float32: this CPU multiplies matrices in bfloat16 2 to 2.5 times as fast; model.dtype=bfloat16 "
        "also takes half the memory for weights"
    )


def is_installed(package: str) -> bool:
    """Return whether a package can be imported; a folder of its name in the working directory is not one."""
    found = find_spec(package)
    return found is not None and found.origin is not None


def memory_bytes() -> int:
    """Return the bytes of memory of this machine, or of what a process here may use where its control group says."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(whole, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no such group, or `max`
        return whole
