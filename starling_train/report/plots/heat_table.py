"""A scan as a table, layer by module type, coloured in the page's own colours, with the selection framed."""

from collections.abc import Iterable
from typing import Any

from starling_train.report.markup import escape
from starling_train.report.plots.heatmap import mean, ranks, short_names


def heat_table(records: dict[str, Any], selected: Iterable[str]) -> str:
    """Return a table, HTML: a row per layer (0 at the bottom), a column per module type.

    Values of different types do not compare, so the colour is the rank within the column and the score is printed.
    Experts of one layer share a cell: mean rank, mean score, and how many of them are selected.

    records: module names -> objects with `.type`, `.layer`, `.snr` (None without a score).
    selected: the modules that trained.
    """
    chosen, rank = set(selected), ranks(records)
    types = list(dict.fromkeys(record.type for record in records.values()))
    cells: dict[tuple[int, str], list[str]] = {}
    for module, record in records.items():
        cells.setdefault((record.layer, record.type), []).append(module)
    rows = []
    for layer in sorted({record.layer for record in records.values()}, reverse=True):
        row = "".join(_cell(records, rank, chosen, cells.get((layer, kind), [])) for kind in types)
        rows.append(f"<tr><th>{layer}</th>{row}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in short_names(types))
    return (
        f'<div class="scroll"><table class="heat" data-plot="snr"><thead><tr><th>layer</th>{head}</tr></thead>\n'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(records: dict[str, Any], rank: dict[str, float], chosen: set[str], modules: list[str]) -> str:
    if not modules:
        return "<td></td>"
    scores = [records[module].snr for module in modules if records[module].snr is not None]
    trained = sum(module in chosen for module in modules)
    level = mean([rank[module] for module in modules])
    text = f"{mean(scores):.3g}" if scores else "–"
    if len(modules) > 1:
        text += f" ({trained}/{len(modules)})"
    names = " ".join(word for word, holds in (("deep", level > 0.6), ("framed", trained)) if holds)
    # nan, without a score, is no colour
    style = f' style="--rank:{level:.2f}"' if level == level else ""
    kind = f' class="{names}"' if names else ""
    return f"<td{kind}{style}>{text}</td>"
