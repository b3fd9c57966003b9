"""python -m starling_train.snr model.path=DIR: signal-to-noise ratio of every matrix, and what it selects."""

from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

from starling_train import assets
from starling_train.cli import command
from starling_train.config import SnrConfig, UserError, check_snr

if TYPE_CHECKING:
    from starling_train.models.scan_records import Record

JOURNAL = "snr.partial.jsonl"
# Every file that a scan writes, and no other: the directory may hold more than ours.
RESULTS = (
    "snr.json",
    "snr_results_{slug}.json",
    "unfrozen.yaml",
    "target_modules.json",
    "comparison.json",
    "heatmap.png",
    "spectrum_*.png",
)
SCORED = ("snr", "lowest")  # methods that cannot select without a score


@command(check_snr, SnrConfig, "snr")
def main(config: SnrConfig) -> None:
    """List, scan, select, write, compare."""
    # torch takes seconds to import: only once the configuration is known to be right
    import torch

    from starling_train.models import scan_records, snr_scan
    from starling_train.report import scan_text

    if config.cluster.threads:
        torch.set_num_threads(config.cluster.threads)
    if config.prepare:
        assets.ensure(config.prepare)
    directory = model_directory(config)
    run = run_directory(config)

    # 1. What there is, from headers alone: a wrong setting is told before the scan, not after it.
    listing = snr_scan.list_matrices(directory)
    unknown = scan_text.unknown(snr_scan.unscanned(directory))
    other = scan_records.read_scan(Path(config.compare).expanduser(), "compare") if config.compare else None
    check_names(config, listing)
    count = len(select(config, listing, "random" if config.freeze.method in SCORED else None))
    if config.dry_run:
        print(f"would scan {directory} on {device_of(config)}, dialect {config.freeze.dialect}")
        print(scan_text.plan(listing, config.freeze.method, count) + unknown)
        return

    # 2. Scan, or read a scan.
    records = read_scan(config, directory, run, listing) if config.freeze.scan else scan(config, directory, run)

    # 3. Select and write.
    selected = select(config, records)
    write(config, directory, run, records, selected)
    print(scan_text.table(records, selected) + unknown)

    # 4. What was asked for besides.
    if other:
        compare(config, run, records, selected, other)
    for module in config.spectra:
        plot_spectrum(config, directory, run, module)
    (run / JOURNAL).unlink(missing_ok=True)
    print(f"results: {run.resolve()}")


def run_directory(config: SnrConfig) -> Path:
    """Where the results go. Raises UserError for the directory of a training run, whose scan must stay what it is."""
    run = Path(config.run_dir or Path("runs") / config.name).expanduser()
    if (run / "metrics.jsonl").exists():
        raise UserError(f"run_dir: {run} holds a training run; give the scan another run_dir= or name=")
    return run


def model_directory(config: SnrConfig) -> Path:
    """`model.path` itself, or the snapshot of a hub id. A scan alone needs no config.json."""
    from starling_train.models import load

    weights = not (config.dry_run or config.freeze.scan)
    model = config.model
    return load.resolve(model.path, "model.path", model.revision, weights=weights, needs_config=False)


def device_of(config: SnrConfig) -> str:
    """The device that `cluster.device` means."""
    import torch

    if config.cluster.device != "auto":
        return config.cluster.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_names(config: SnrConfig, listing: "dict[str, Record]") -> None:
    """Raise UserError for a module of `spectra` that the model does not have."""
    for module in config.spectra:
        if module not in listing:
            raise UserError(f"spectra: the model has no matrix {module}; its first is {next(iter(listing))}")


def select(config: SnrConfig, records: "dict[str, Record]", method: str | None = None) -> list[str]:
    """What the freeze section selects of `records`."""
    from starling_train.models import selection

    return selection.select(
        records,
        method=method or config.freeze.method,
        unit=config.freeze.unit,
        scope=config.freeze.scope,
        top_percent=config.freeze.top_percent,
        max_trainable=config.freeze.max_trainable,
        max_memory_gb=config.freeze.max_memory_gb,
        last_layers=config.freeze.last_layers,
        layers=config.freeze.layers,
        lowest_layer=config.freeze.lowest_layer,
        seed=config.seed,
    )


def read_scan(config: SnrConfig, directory: Path, run: Path, listing: "dict[str, Record]") -> "dict[str, Record]":
    """The scan that `freeze.scan` names, checked to be of this model."""
    from starling_train.models import scan_records

    source = Path(config.freeze.scan).expanduser()
    records = scan_records.match(scan_records.read_scan(source), listing, str(source))
    if config.freeze.method in SCORED:
        select(config, records)  # before anything is removed: the source may be one of the results
    remove_results(run, directory)
    return records


def scan(config: SnrConfig, directory: Path, run: Path) -> "dict[str, Record]":
    """Scan the model, with a progress bar, or a plain line per matrix where there is no terminal."""
    from rich.console import Console
    from rich.progress import Progress

    from starling_train.models import scan_records, snr_scan
    from starling_train.models.scan_journal import Journal

    snr_scan.check_weights(directory)
    finished = run / "snr.json"
    earlier = scan_records.read_scan(finished, "run_dir").values() if finished.is_file() else ()
    journal = Journal(run / JOURNAL, earlier)
    remove_results(run, directory)
    console = Console()
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("scanning", total=None)

        def on_progress(done: int, total: int, record: "Record") -> None:
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


def remove_results(run: Path, directory: Path) -> None:
    """Delete an earlier scan's files: nothing in the directory looks like a result before there is one."""
    for pattern in RESULTS:
        for path in run.glob(pattern.format(slug=escape(slug_of(directory)))):
            path.unlink()


def slug_of(directory: Path) -> str:
    """The model's name in the names of files."""
    return directory.resolve().name


def write(config: SnrConfig, directory: Path, run: Path, records: "dict[str, Record]", selected: list[str]) -> None:
    """The files; `snr.json` last, which says that the others are there."""
    from starling_train.models import freeze, scan_records, snr_scan
    from starling_train.models.selection import EVERYTHING
    from starling_train.report import heatmap

    run.mkdir(parents=True, exist_ok=True)
    slug = slug_of(directory)
    names = list(records) if selected == [EVERYTHING] else selected
    besides = freeze.besides(
        snr_scan.other_weights(directory),
        names,
        embeddings=config.freeze.embeddings,
        head=config.freeze.head,
        norms=config.freeze.norms,
    )
    scan_records.write_spectrum_scan(records, run / f"snr_results_{slug}.json")
    freeze.write_unfrozen_yaml(selected, records, run / "unfrozen.yaml", besides)
    scan_records.write_target_modules(names, run / "target_modules.json")
    heatmap.save(heatmap.draw(records, names, f"SNR of {slug}"), run / "heatmap.png")
    scan_records.write_scan(records, run / "snr.json")


def compare(
    config: SnrConfig,
    run: Path,
    records: "dict[str, Record]",
    selected: list[str],
    other: "dict[str, Record]",
) -> None:
    """Print and write how far another scan agrees, selected by the same settings."""
    from dataclasses import asdict

    from starling_train.models import scan_overlap, scan_records

    rows = scan_overlap.compare(records, other, selected, select(config, other))
    table = {"other": config.compare, "types": [asdict(row) for row in rows]}
    scan_records.write_json(table, run / "comparison.json")
    print(f"compared with {config.compare}:\n{scan_overlap.render(rows)}")


def plot_spectrum(config: SnrConfig, directory: Path, run: Path, module: str) -> None:
    """Write the singular values of one matrix with the threshold."""
    from starling_train.core import spectrum
    from starling_train.models import snr_scan
    from starling_train.report import heatmap, spectrum_plot

    matrix = snr_scan.read_matrix(directory, module)
    values = spectrum.singular_values(matrix.to(device_of(config)))
    n, m = matrix.shape
    score = spectrum.score(values, n, m, config.freeze.dialect)
    heatmap.save(spectrum_plot.draw(values.tolist(), score, module), run / f"spectrum_{module}.png")


if __name__ == "__main__":
    main()
