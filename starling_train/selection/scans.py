"""The scan of a run: read from a file and checked to be of its model, made, or continued; and what it leaves."""

import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from starling_train.config.fields import given
from starling_train.config.sections import FreezeConfig
from starling_train.models.source import ModelSource
from starling_train.selection.listing import list_matrices
from starling_train.selection.records import Record, match_records, read_records, write_records
from starling_train.selection.scan import check_scan, scan_model
from starling_train.selection.scan_journal import JOURNAL, ScanJournal
from starling_train.selection.select import SCORED


def match_scan(freeze: FreezeConfig, listing: dict[str, Record]) -> dict[str, Record]:
    """Read the scan that `freeze.scan` names, in the order of a model's matrices. Raises UserError if of another."""
    file = Path(given(freeze.scan)).expanduser()
    return match_records(read_records(file), listing, str(file))


def read_scan(freeze: FreezeConfig, source: ModelSource, *, warns: bool = True) -> dict[str, Record]:
    """Read the scan that `freeze.scan` names, checked to be of this model and dialect.

    warns: on stderr, where it is not of these weights.
    """
    records = match_scan(freeze, list_matrices(source))
    warning = check_scan(source, records, freeze.dialect, str(Path(given(freeze.scan)).expanduser()))
    if warning and warns:
        print(f"warning: {warning}", file=sys.stderr)
    return records


def scan(source: ModelSource, dialect: str, device: str, run: Path) -> dict[str, Record]:
    """Scan the model, with a progress bar, or a plain line per matrix where there is no terminal."""
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
    # a new run's directory is not created before all of its inputs are checked
    journal = ScanJournal.of(run) if run and run.is_dir() else None
    return scan_model(source, dialect=config.dialect, device=device, journal=journal)


def write_scan(records: dict[str, Record], run: Path) -> None:
    """Write `snr.json` into the run's directory and remove the scan's journal."""
    write_records(records, run / "snr.json")
    (run / JOURNAL).unlink(missing_ok=True)
