"""python -m starling_train.snr model.path=DIR: signal-to-noise ratio of every matrix, and what it selects."""

from starling_train import assets
from starling_train.cli import command
from starling_train.config.snr import SnrConfig, check_snr


@command(check_snr, SnrConfig, "snr")
def main(config: SnrConfig) -> None:
    """List, scan, select, compare, write."""
    # torch takes seconds to import: only once the configuration is known to be right
    import torch

    from starling_train.engine import scan_setup
    from starling_train.models import scan_overlap, scan_records, snr_scan
    from starling_train.report import scan_files, scan_text

    if config.cluster.threads:
        torch.set_num_threads(config.cluster.threads)
    if config.prepare:
        assets.ensure(config.prepare)

    # 1. Settings that are wrong whatever the checkpoint holds; nothing has been touched yet.
    device = scan_setup.device_of(config)
    run = scan_setup.run_directory(config)
    directory = scan_setup.model_directory(config)
    other = scan_setup.read_other(config)
    slug = scan_files.slug_of(config.model.path, directory)
    if not config.dry_run and not config.freeze.scan:
        scan_files.retire(run, slug)

    # 2. What there is, from headers alone: whatever can be told before the scan is not told after it.
    listing = scan_setup.list_matrices(config, directory)
    passed_over = scan_text.passed_over(snr_scan.unscanned(directory), snr_scan.left_out(directory))
    planned = scan_setup.plan(config, listing)
    other = scan_records.fill(other, listing)
    others = scan_setup.select_other(config, other) if other else []
    if config.dry_run:
        print(f"would scan {directory} on {device}, dialect {config.freeze.dialect}")
        at_most = scan_setup.depends_on_scores(config.freeze)
        print(scan_text.plan(listing, config.freeze.method, len(planned), at_most=at_most) + passed_over)
        return

    # 3. Scan, or read a scan, and select.
    if config.freeze.scan:
        records = scan_setup.read_scan(config.freeze, directory)
    else:
        records = scan_setup.scan(config, directory, run)
    selected = scan_setup.select(config.freeze, records, config.seed)

    # 4. What was asked for besides; then everything is written at once.
    names = scan_setup.names_of(selected, records)
    overlaps = scan_overlap.compare(records, other, names, others) if other else []
    spectra = {m: scan_files.draw_spectrum(directory, m, config.freeze.dialect, device) for m in config.spectra}
    besides = scan_setup.besides(config.freeze, directory, names)
    outcome = scan_files.Outcome(records, selected, besides, config.compare, overlaps, spectra)
    scan_files.write(outcome, run, slug)
    print(scan_text.table(records, selected) + passed_over)
    if overlaps:
        print(f"compared with {config.compare}:\n{scan_overlap.render(overlaps)}")
    print(f"results: {run.resolve()}")


if __name__ == "__main__":
    main()
