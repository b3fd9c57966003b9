"""python -m starling_train.snr model.path=DIR: signal-to-noise ratio of every matrix, and what it selects."""

from starling_train.cli import command
from starling_train.config.snr import SnrConfig, check


@command(check, SnrConfig, "snr")
def main(config: SnrConfig) -> None:
    """List, scan, select, compare, write."""
    # torch takes seconds to import: only once the configuration is known to be right
    import torch

    from starling_train.report import scan as report_scan
    from starling_train.selection import overlap, scan, scans
    from starling_train.selection import records as scan_records

    if config.cluster.threads:
        torch.set_num_threads(config.cluster.threads)

    # 1. Settings that are wrong whatever the checkpoint holds; nothing has been touched yet.
    device = scans.device_of(config)
    run = scans.run_directory(config)
    directory = scans.model_directory(config)
    other = scans.read_other(config)
    slug = report_scan.slug_of(config.model.path, directory)
    if not config.dry_run and not config.freeze.scan:
        report_scan.retire(run, slug)

    # 2. What there is, from headers alone: whatever can be told before the scan is not told after it.
    listing = scans.list_matrices(config, directory)
    passed_over = report_scan.passed_over(scan.unscanned(directory), scan.left_out(directory))
    planned = scans.plan(config, listing)
    other = scan_records.fill(other, listing)
    others = scans.select_other(config, other) if other else []
    if config.dry_run:
        print(f"would scan {directory} on {device}, dialect {config.freeze.dialect}")
        at_most = scans.depends_on_scores(config.freeze)
        print(report_scan.plan(listing, config.freeze.method, len(planned), at_most=at_most) + passed_over)
        return

    # 3. Scan, or read a scan, and select.
    records = scans.read_scan(config.freeze, directory) if config.freeze.scan else scans.scan(config, directory, run)
    selected = scans.select(config.freeze, records, config.seed)

    # 4. What was asked for besides; then everything is written at once.
    names = scans.names_of(selected, records)
    overlaps = overlap.compare(records, other, names, others) if other else []
    spectra = {m: report_scan.draw_spectrum(directory, m, config.freeze.dialect, device) for m in config.spectra}
    besides = scans.besides(config.freeze, directory, names)
    outcome = report_scan.Outcome(records, selected, besides, config.compare, overlaps, spectra)
    report_scan.write(outcome, run, slug)
    print(report_scan.table(records, selected) + passed_over)
    if overlaps:
        print(f"compared with {config.compare}:\n{overlap.render(overlaps)}")
    print(f"results: {run.resolve()}")


if __name__ == "__main__":
    main()
