"""What the `snr` command needs around a scan: the model and the settings checked, the scan made or read, the selection.

In this order: what is wrong with the settings alone is told before anything is touched; then an earlier scan's results
give way to its journal; then the checkpoint is read.
"""

import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from starling_train.config.fields import UserError
from starling_train.config.sections import FreezeConfig
from starling_train.config.snr import SnrConfig
from starling_train.files.disk import check_directory
from starling_train.models import causal_lm
from starling_train.selection import freeze as freezing
from starling_train.selection import records as scan_records
from starling_train.selection import scan as snr_scan
from starling_train.selection import select as selection
from starling_train.selection.records import Record
from starling_train.selection.scan_journal import JOURNAL, Journal

SCORED = ("snr", "lowest")  # methods that cannot select without a score


def run_directory(config: SnrConfig) -> Path:
    """Where the results go. Raises UserError where that is no directory, and for that of a training run, whose scan
    must stay what it is.
    """
    run = config.directory()
    if (run / "metrics.jsonl").exists():
        raise UserError(f"run_dir: {run} holds a training run; give the scan another run_dir= or name=")
    check_directory(run, "run_dir")
    return run


def model_directory(config: SnrConfig) -> Path:
    """`model.path` itself, or the snapshot of a hub id. A scan alone needs no config.json."""
    weights = not config.dry_run and (not config.freeze.scan or bool(config.spectra))
    model = config.model
    return causal_lm.resolve(model.path, "model.path", model.revision, weights=weights, needs_config=False)


def device_of(config: SnrConfig) -> str:
    """The device that `cluster.device` means. Raises UserError where it is not there."""
    if config.cluster.device == "cuda" and not torch.cuda.is_available():
        raise UserError("cluster.device: no CUDA device is visible; use cluster.device=cpu, or check the driver")
    if config.cluster.device != "auto":
        return config.cluster.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def list_matrices(config: SnrConfig, directory: Path) -> dict[str, Record]:
    """The model's matrices, from headers alone. Raises UserError for weights that could not be scanned, and for a
    module of `spectra` that the model does not have.
    """
    needed_by = "spectra" if config.freeze.scan else "a scan"
    if config.dry_run or (config.freeze.scan and not config.spectra):
        needed_by = None
    snr_scan.check_weights(directory, needed_by)
    listing = snr_scan.list_matrices(directory)
    for module in config.spectra:
        if module not in listing:
            raise UserError(f"spectra: the model has no matrix {module}; its first is {next(iter(listing))}")
    return listing


def read_other(config: SnrConfig) -> dict[str, Record]:
    """The scan that `compare` names; empty without one."""
    return scan_records.read_scan(Path(config.compare).expanduser(), "compare") if config.compare else {}


def select(freeze: FreezeConfig, records: dict[str, Record], seed: int, method: str | None = None) -> list[str]:
    """What the freeze section selects of `records`; `method` in place of its own."""
    return selection.select(
        records,
        method=method or freeze.method,
        unit=freeze.unit,
        scope=freeze.scope,
        top_percent=freeze.top_percent,
        max_trainable=freeze.max_trainable,
        max_memory_gb=freeze.max_memory_gb,
        last_layers=freeze.last_layers,
        layers=freeze.layers,
        lowest_layer=freeze.lowest_layer,
        seed=seed,
    )


def plan(config: SnrConfig, listing: dict[str, Record]) -> list[str]:
    """What would be selected, the smallest matrices where the scores are to decide. Raises UserError where that is
    nothing.
    """
    unscored = selection.SMALLEST if config.freeze.method in SCORED else None
    return select(config.freeze, listing, config.seed, unscored)


def depends_on_scores(freeze: FreezeConfig) -> bool:
    """Whether the number of matrices, too, depends on the scores: a budget, and matrices of several sizes."""
    return freeze.method in SCORED and (freeze.max_trainable is not None or freeze.max_memory_gb is not None)


def select_other(config: SnrConfig, other: dict[str, Record]) -> list[str]:
    """What the same settings select of the scan `compare` names. Raises UserError in the name of that key."""
    try:
        return names_of(select(config.freeze, other, config.seed), other)
    except UserError as error:
        raise UserError(f"compare: {config.compare}: {str(error).removeprefix('freeze.scan: ')}") from None


def names_of(selected: list[str], records: dict[str, Record]) -> list[str]:
    """`selected`, or all names where it stands for everything."""
    return list(records) if selected == [selection.EVERYTHING] else selected


def besides(freeze: FreezeConfig, directory: Path, names: list[str]) -> list[str]:
    """Parameters that train besides the matrices `names`."""
    others = snr_scan.other_weights(directory)
    return freezing.besides(others, names, embeddings=freeze.embeddings, head=freeze.head, norms=freeze.norms)


def read_scan(freeze: FreezeConfig, directory: Path) -> dict[str, Record]:
    """The scan that `freeze.scan` names, checked to be of this model. Warns where it is not of these weights."""
    source = Path(freeze.scan).expanduser()
    records = scan_records.match(scan_records.read_scan(source), snr_scan.list_matrices(directory), str(source))
    if warning := snr_scan.check_scan(directory, records, freeze.dialect, str(source)):
        print(f"warning: {warning}", file=sys.stderr)
    return records


def scan(config: SnrConfig, directory: Path, run: Path) -> dict[str, Record]:
    """Scan the model, with a progress bar, or a plain line per matrix where there is no terminal."""
    journal = Journal.of(run)
    console = Console()
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("scanning", total=None)

        def on_progress(done: int, total: int, record: Record) -> None:
            progress.update(task, completed=done, total=total)
            if not console.is_terminal:
                print(f"{done}/{total}  {record.module}  {record.snr:.4g}", flush=True)

        records = snr_scan.scan(
            directory,
            dialect=config.freeze.dialect,
            device=device_of(config),
            on_progress=on_progress,
            journal=journal,
        )
    if journal.changed:
        print(f"{len(journal.changed)} matrices changed since the last scan, {journal.changed[0]} first")
    return records


def scan_or_list(config: FreezeConfig, directory: Path, device: str, run: Path | None = None) -> dict[str, Record]:
    """SNR of the model's matrices: from `freeze.scan` or computed; names and shapes if the method needs none.

    run: the run's directory. Where it exists already, what its own scan has of the same weights is not computed
    again, and an interrupted scan goes on.
    """
    if config.method not in SCORED:
        return snr_scan.list_matrices(directory)
    if config.scan:
        return read_scan(config, directory)
    # a new run's directory is not made before all of its inputs are known to be right
    journal = Journal.of(run) if run and run.is_dir() else None
    return snr_scan.scan(directory, dialect=config.dialect, device=device, journal=journal)


def write_scan(records: dict[str, Record], run: Path) -> None:
    """`snr.json` in the run's directory, in place of the scan's journal."""
    snr_scan.write_scan(records, run / "snr.json")
    (run / JOURNAL).unlink(missing_ok=True)
