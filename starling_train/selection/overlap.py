"""How far two scans agree: the overlap of what they select, and the rank correlation of their scores."""

from collections.abc import Iterable
from dataclasses import dataclass

from starling_train.selection.records import Record


@dataclass(frozen=True)
class Overlap:
    """One module type: matrices that both scans hold, selected by the first, the second, both; Spearman correlation.

    `correlation` is None with fewer than two matrices or equal scores throughout.
    """

    type: str
    matrices: int
    first: int
    second: int
    both: int
    correlation: float | None


def compare(
    first: dict[str, Record], second: dict[str, Record], chosen: Iterable[str], others: Iterable[str]
) -> list[Overlap]:
    """Return an `Overlap` per module type of `first`, then one named `total`.

    `chosen` and `others` are the selections.
    """
    chosen, others = set(chosen), set(others)
    rows = []
    for kind in dict.fromkeys(record.type for record in first.values()):
        of_first = {module for module, record in first.items() if record.type == kind}
        of_second = {module for module, record in second.items() if record.type == kind}
        common = [module for module in first if module in of_first & of_second]
        a, b = [first[m].snr for m in common], [second[m].snr for m in common]
        selected, other = chosen & of_first, others & of_second
        rows.append(Overlap(kind, len(common), len(selected), len(other), len(selected & other), spearman(a, b)))
    total = {name: sum(getattr(row, name) for row in rows) for name in ("matrices", "first", "second", "both")}
    return [*rows, Overlap("total", **total, correlation=None)]


def spearman(first: list[float | None], second: list[float | None]) -> float | None:
    """Return Spearman's rank correlation; equal values share their mean rank. None where it is not defined."""
    known = [value for value in first if value is not None], [value for value in second if value is not None]
    if len(first) < 2 or len(known[0]) < len(first) or len(known[1]) < len(second):
        return None
    a, b = map(_mean_ranks, known)
    middle = (len(a) - 1) / 2
    product = sum((x - middle) * (y - middle) for x, y in zip(a, b, strict=True))
    spread = sum((x - middle) ** 2 for x in a) * sum((y - middle) ** 2 for y in b)
    return product / spread**0.5 if spread else None


def _mean_ranks(values: list[float]) -> list[float]:
    ordered = sorted(values)
    ranks = {value: ordered.index(value) + (ordered.count(value) - 1) / 2 for value in set(values)}
    return [ranks[value] for value in values]


def render(rows: list[Overlap]) -> str:
    """Render a plain text table."""
    width = max(len(row.type) for row in rows)
    lines = [f"{'module type':<{width}}  matrices  selected here  there  by both  rank correlation"]
    for row in rows:
        correlation = "-" if row.correlation is None else f"{row.correlation:.3f}"
        lines.append(
            f"{row.type:<{width}}  {row.matrices:>8}  {row.first:>13}  {row.second:>5}  {row.both:>7}"
            f"  {correlation:>16}"
        )
    return "\n".join(lines)
