"""What a scan found and selected, as plain text."""

from collections.abc import Iterable
from statistics import median
from typing import Any

HEADER = "matrices  selected  fragile  lowest SNR    median   highest"


def table(records: dict[str, Any], selected: Iterable[str]) -> str:
    """A line per module type, then how much is selected (`["*"]`: all).

    `records` maps module names to objects with `.module`, `.type`, `.size`, `.snr` and `.fragile`.
    """
    names = set(records) if set(selected) == {"*"} else set(selected)
    width = max(len(kind) for kind in (*types_of(records), "module type"))
    lines = [f"{'module type':<{width}}  {HEADER}"]
    for kind in types_of(records):
        of_type = [record for record in records.values() if record.type == kind]
        scores = [record.snr for record in of_type if record.snr is not None] or [float("nan")]
        chosen = sum(record.module in names for record in of_type)
        fragile = sum(bool(record.fragile) for record in of_type)
        lines.append(
            f"{kind:<{width}}  {len(of_type):>8}  {chosen:>8}  {fragile:>7}"
            f"  {min(scores):>10.4g}{median(scores):>10.4g}{max(scores):>10.4g}"
        )
    trained, total = sum(records[m].size for m in names), sum(record.size for record in records.values())
    lines.append(f"selected: {len(names)} of {len(records)} matrices, {trained:,} of {total:,} parameters")
    if any(record.fragile for record in records.values()):
        lines.append("fragile: so little noise is left that a value or two decide the score")
    return "\n".join(lines)


def plan(records: dict[str, Any], method: str, count: int, *, at_most: bool = False) -> str:
    """What would be scanned, a line per module type, and how many matrices `method` would select (at most)."""
    lines = [f"{sum(record.type == kind for record in records.values()):>6} x {kind}" for kind in types_of(records)]
    total = sum(record.size for record in records.values())
    what = "everything" if method == "none" else f"{'at most ' * at_most}{count} of {len(records)} matrices"
    return "\n".join([*lines, f"{total:,} parameters; freeze.method={method} would select {what}"])


def types_of(records: dict[str, Any]) -> list[str]:
    """Module types in the order of their first matrix."""
    return list(dict.fromkeys(record.type for record in records.values()))


def passed_over(unscanned: dict[str, int], left_out: dict[str, int]) -> str:
    """A line, after a line break, per kind of weight that no table of module types knows, and per other reason;
    '' without any.
    """
    lines = [f"\nnot scanned, of no known module type: {name} ({n})" for name, n in unscanned.items()]
    return "".join([*lines, *(f"\nleft out: {what} ({n})" for what, n in left_out.items())])
