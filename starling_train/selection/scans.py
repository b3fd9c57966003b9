"""The scan of a run: read from a file and checked to be of its model, made, or continued; and what it leaves."""

import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from starling_train.config.fields import given
from starling_train.config.sections import FreezeConfig
from starling_train.models.source import ModelSource
from starling_train.selection.listing import list_matrices, names
from starling_train.selection.matching import Known, match
from starling_train.selection.records import Record, read_records, write_records
from starling_train.selection.scan import check_scan, rate_note, scan_model
from starling_train.selection.scan_file import find_scan, slug_of
from starling_train.selection.scan_journal import JOURNAL, ScanJournal
from starling_train.selection.select import SCORED

_told: set[str] = set()  # lines on scans that this process has told: a run reads its scan for several purposes


def match_scan(
    freeze: FreezeConfig, listing: dict[str, Record], slug: str, known: Known, *, tells: bool = True
) -> dict[str, Record]:
    """Read the scan that `freeze.scan` names, under the names and in the order of a model's matrices.

    slug: the model's name, in names of files.
    known: gives the names of everything that the model has.
    tells: print what of the scan is not used, and what stands for more than itself.
    Raises UserError for the scan of another model.
    """
    file = find_scan(given(freeze.scan), slug)
    matched = match(read_records(file), listing, str(file), known)
    if tells and (notes := matched.notes()) and (line := f"scan {file}: {'; '.join(notes)}") not in _told:
        _told.add(line)
        print(line)
    return matched.records


def read_scan(freeze: FreezeConfig, source: ModelSource, *, warns: bool = True) -> dict[str, Record]:
    """Read the scan that `freeze.scan` names, checked to be of this model and dialect.

    warns: on stderr, where it is not of these weights; on stdout, what of it is not used.
    """
    slug = slug_of(source)
    records = match_scan(freeze, list_matrices(source), slug, lambda: names(source), tells=warns)
    warning = check_scan(source, records, freeze.dialect, str(find_scan(given(freeze.scan), slug)))
    if warning and warns:
        print(f"warning: {warning}", file=sys.stderr)
    return records


def scan(source: ModelSource, dialect: str, device: str, run: Path) -> dict[str, Record]:
    """Scan the model, with a progress bar, or a plain line per matrix where there is no terminal."""
    _say_rate(device)
    journal = ScanJournal.of(run)
    console = Console()
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("scanning", total=None)

        def on_progress(done: int, total: int, record: Record) -> None:
            progress.update(task, completed=done, total=total)
            if not console.is_terminal:
                print(f"{done}/{total}  {record.module}  {record.snr:.4g}", flush=True)

        records = scan_model(source, dialect=dialect, device=device, on_progress=on_progress, journal=journal)
    if journal.changed:
        print(f"{len(journal.changed)} matrices changed since the last scan, {journal.changed[0]} first")
    return records


def _say_rate(device: str) -> None:
    """Say on stderr that a scan on this GPU takes long, if it does."""
    if note := rate_note(device):
        print(f"note: {note}", file=sys.stderr)


def scan_or_list(
    config: FreezeConfig,
    source: ModelSource,
    device: str,
    run: Path | None = None,
) -> dict[str, Record]:
    """Scan the model's matrices, or read `freeze.scan`; names and shapes only if the method needs no scores.

    run: the run's directory. If it exists, what its own scan has of the same weights is not computed again, and an
    interrupted scan goes on.
    """
    if config.method not in SCORED:
        return list_matrices(source)
    if config.scan:
        return read_scan(config, source)
    _say_rate(device)
    # a new run's directory is not created before all of its inputs are checked
    journal = ScanJournal.of(run) if run and run.is_dir() else None
    return scan_model(source, dialect=config.dialect, device=device, journal=journal)


def write_scan(records: dict[str, Record], run: Path) -> None:
    """Write `snr.json` into the run's directory and remove the scan's journal."""
    write_records(records, run / "snr.json")
    (run / JOURNAL).unlink(missing_ok=True)
