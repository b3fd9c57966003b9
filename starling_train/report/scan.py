"""The output of `snr`: the files in a scan's directory, which the next scan removes, and its tables."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from glob import escape
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from starling_train.core import spectrum
from starling_train.models.source import ModelSource
from starling_train.report.plots import heatmap
from starling_train.report.plots.spectrum import draw
from starling_train.selection import scan, unfrozen_yaml
from starling_train.selection.module_types import layer_of
from starling_train.selection.overlap import Overlap
from starling_train.selection.records import (
    Record,
    write_json,
    write_records,
    write_spectrum_scan,
    write_target_modules,
)
from starling_train.selection.scan_file import PUBLISHED
from starling_train.selection.scan_journal import JOURNAL, ScanJournal
from starling_train.selection.select import names_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Every file that a scan writes, except for spectra, and no other: the directory may hold more than ours. `snr.json` is
# removed first and written last: if it exists, so do the others.
RESULTS = (
    "snr.json",
    PUBLISHED,
    "unfrozen.yaml",
    "target_modules.json",
    "comparison.json",
    "heatmap.png",
)


@dataclass(frozen=True)
class ScanOutcome:
    """Everything a scan writes.

    records: the scan, by module.
    selected: the modules that it selects (`["*"]`: everything).
    besides: other parameters that train.
    other: the scan that it was compared with.
    overlaps: the comparison.
    spectra: plots by module.
    """

    records: dict[str, Record]
    selected: list[str]
    besides: list[str]
    other: str | None
    overlaps: list[Overlap]
    spectra: "dict[str, Figure]"


def retire(run: Path, slug: str) -> None:
    """Move an earlier scan's records into the journal and delete its files.

    If this scan fails, no file in the directory looks like its result, and nothing has to be computed again.
    """
    if (run / "snr.json").is_file():
        ScanJournal.of(run)
    remove(run, slug)


def remove(run: Path, slug: str) -> None:
    """Delete an earlier scan's files, and no others."""
    for name in RESULTS:
        for path in run.glob(name.format(slug=escape(slug))):
            path.unlink()
    for path in run.glob("spectrum_*.png"):
        if layer_of(path.stem.removeprefix("spectrum_")) is not None:  # named after a module, so a scan has drawn it
            path.unlink()


def write(outcome: ScanOutcome, run: Path, slug: str) -> None:
    """Write the files in place of an earlier scan's; `snr.json` last."""
    retire(run, slug)  # into the journal: the scan that was read may be the one being replaced
    run.mkdir(parents=True, exist_ok=True)
    names = names_of(outcome.selected, outcome.records)
    write_spectrum_scan(outcome.records, run / PUBLISHED.format(slug=slug))
    unfrozen_yaml.write_unfrozen_yaml(outcome.selected, outcome.records, run / "unfrozen.yaml", outcome.besides)
    write_target_modules(names, outcome.records, run / "target_modules.json")
    heatmap.save(heatmap.draw(outcome.records, names, f"SNR of {slug}"), run / "heatmap.png")
    for module, figure in outcome.spectra.items():
        heatmap.save(figure, run / f"spectrum_{module}.png")
    if outcome.other:
        table = {"other": outcome.other, "types": [asdict(row) for row in outcome.overlaps]}
        write_json(table, run / "comparison.json")
    write_records(outcome.records, run / "snr.json")
    (run / JOURNAL).unlink(missing_ok=True)


def draw_spectrum(source: ModelSource, module: str, dialect: str, device: str) -> "Figure":
    """Plot the singular values of one matrix with the threshold. Raises UserError for nan or infinite values.

    source: the checkpoint.
    module: the matrix.
    dialect: how the threshold is computed.
    device: where.
    """
    values, (n, m) = scan.read_values(source, module, device)
    return draw(values.tolist(), spectrum.score(values, n, m, dialect), module)


HEADER = "matrices  selected  fragile  lowest SNR    median   highest"


def table(records: dict[str, Any], selected: Iterable[str]) -> str:
    """Return a line per module type, then how much is selected (`["*"]`: all).

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
    """Return what would be scanned, a line per module type, and how many matrices would be selected.

    records: the matrices.
    method: `freeze.method`.
    count: how many matrices it would select.
    at_most: whether the scores may lower that number.
    """
    lines = [f"{sum(record.type == kind for record in records.values()):>6} x {kind}" for kind in types_of(records)]
    total = sum(record.size for record in records.values())
    what = "everything" if method == "none" else f"{'at most ' * at_most}{count} of {len(records)} matrices"
    return "\n".join([*lines, f"{total:,} parameters; freeze.method={method} would select {what}"])


def types_of(records: dict[str, Any]) -> list[str]:
    """Return the module types in the order of their first matrix."""
    return list(dict.fromkeys(record.type for record in records.values()))


def passed_over(unscanned: dict[str, int], left_out: dict[str, int]) -> str:
    """Return a line, after a line break, per weight of an unknown module type and per other reason for not scanning.

    '' without any. unscanned, left_out: how many weights, by name or reason.
    """
    lines = [f"\nnot scanned, of no known module type: {name} ({n})" for name, n in unscanned.items()]
    return "".join([*lines, *(f"\nleft out: {what} ({n})" for what, n in left_out.items())])
