"""python -m starling_train.snr model.path=DIR: signal-to-noise ratio of every matrix, and what it selects."""

from pathlib import Path
from typing import TYPE_CHECKING

from starling_train.cli import command
from starling_train.config.fields import UserError
from starling_train.config.snr import SnrConfig, check

if TYPE_CHECKING:
    from starling_train.models.source import ModelSource
    from starling_train.selection.records import Record


@command(check, SnrConfig, "snr")
def main(config: SnrConfig) -> None:
    """List, scan, select, compare, write."""
    # torch takes seconds to import: only once the configuration is known to be right
    import torch

    from starling_train.models.source import ModelSource
    from starling_train.report import scan
    from starling_train.report import scan as report_scan
    from starling_train.run.runtime import device_kind
    from starling_train.selection import listing, overlap, scans
    from starling_train.selection.freeze import besides, check_tied
    from starling_train.selection.matching import fill
    from starling_train.selection.model_names import ModelNames
    from starling_train.selection.records import read_records
    from starling_train.selection.scan_file import find_scan, slug_of
    from starling_train.selection.select import names_of, select

    if config.cluster.threads:
        torch.set_num_threads(config.cluster.threads)

    # 1. Settings that are wrong whatever the checkpoint holds; no file has been touched yet.
    freeze, model = config.freeze, config.model
    device = device_kind(config.cluster.device)
    run = run_directory(config)
    # a scan alone needs no config.json
    weights = not config.dry_run and (not freeze.scan or bool(config.spectra))
    source = ModelSource.open(model.path, "model.path", model.revision, weights=weights, needs_config=False)
    slug = slug_of(source)
    other = read_records(find_scan(config.compare, slug, "compare"), "compare") if config.compare else {}
    if not config.dry_run and not freeze.scan:
        report_scan.retire(run, slug)

    # 2. The matrices, from headers alone: every mistake that can be found before the scan is reported before it.
    matrices = list_matrices(config, source)
    if freeze.method != "none":
        check_tied(freeze, ModelNames.of(source).is_tied)
    passed_over = report_scan.passed_over(listing.unscanned(source), listing.left_out(source))
    other = fill(other, matrices, lambda: listing.names(source))
    scanned = scans.read_scan(freeze, source) if freeze.scan else None
    others = select_other(config, other) if other else []
    planned = plan(config, matrices, scanned, device)
    if config.dry_run:
        print(f"would scan {source.directory} on {device}, dialect {freeze.dialect}\n{planned}{passed_over}")
        return

    # 3. Scan, unless a scan was read, and select.
    records = scans.scan(source, freeze.dialect, device, run) if scanned is None else scanned
    selected = select(freeze, records, config.seed)

    # 4. The comparison and the spectra, where requested; then everything is written at once.
    names = names_of(selected, records)
    overlaps = overlap.compare(records, other, names, others) if other else []
    spectra = {m: report_scan.draw_spectrum(source, m, freeze.dialect, device) for m in config.spectra}
    also = besides(freeze, listing.other_weights(source), names)
    outcome = scan.ScanOutcome(records, selected, also, config.compare, overlaps, spectra)
    report_scan.write(outcome, run, slug)
    print(report_scan.table(records, selected) + passed_over)
    if overlaps:
        print(f"compared with {config.compare}:\n{overlap.render(overlaps)}")
    print(f"results: {run.resolve()}")


def run_directory(config: SnrConfig) -> Path:
    """Return the directory of the results.

    Raises UserError where the path is not a directory, and for the directory of a training run, whose scan must stay as
    it is.
    """
    from starling_train.files.disk import check_directory

    run = config.directory()
    if (run / "metrics.jsonl").exists():
        raise UserError(f"run_dir: {run} holds a training run; give the scan another run_dir= or name=")
    check_directory(run, "run_dir")
    return run


def list_matrices(config: SnrConfig, source: "ModelSource") -> "dict[str, Record]":
    """Return the model's matrices, from headers alone.

    Raises UserError for weights that could not be scanned, and for a module of `spectra` that the model does not have.
    """
    from starling_train.selection import listing

    needed_by: str | None = "spectra" if config.freeze.scan else "a scan"
    if config.dry_run or (config.freeze.scan and not config.spectra):
        needed_by = None
    listing.check_weights(source, needed_by)
    matrices = listing.list_matrices(source)
    for module in config.spectra:
        if module not in matrices:
            raise UserError(f"spectra: the model has no matrix {module}; its first is {next(iter(matrices))}")
    return matrices


def plan(config: SnrConfig, matrices: "dict[str, Record]", scanned: "dict[str, Record] | None", device: str) -> str:
    """Return what would be scanned and how many matrices would be selected. Raises UserError for none.

    config: the command's.
    matrices: the model's, without scores.
    scanned: the scan that was read; None: the model is to be scanned.
    device: that would scan it; one that is slow at it gets a line.
    """
    from starling_train.report import scan as report_scan
    from starling_train.selection.scan import rate_note
    from starling_train.selection.select import SCORED, select, select_unscored

    freeze = config.freeze
    if scanned is not None:
        return report_scan.plan(matrices, freeze.method, len(select(freeze, scanned, config.seed)))
    # with a budget the number of matrices, too, depends on the scores
    at_most = freeze.method in SCORED and (freeze.max_trainable, freeze.max_memory_gb) != (None, None)
    count = len(select_unscored(freeze, matrices, config.seed))
    note = rate_note(device)
    return (f"note: {note}\n" if note else "") + report_scan.plan(matrices, freeze.method, count, at_most=at_most)


def select_other(config: SnrConfig, other: "dict[str, Record]") -> list[str]:
    """Return what the same settings select from the scan of `compare`. Raises UserError that names this key."""
    from starling_train.selection.select import names_of, select

    try:
        return names_of(select(config.freeze, other, config.seed), other)
    except UserError as error:
        raise UserError(f"compare: {config.compare}: {str(error).removeprefix('freeze.scan: ')}") from None


if __name__ == "__main__":
    main()
