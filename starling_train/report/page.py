"""`report.html` of a run: one self-contained page, made from the run directory's files alone, in milliseconds."""

from pathlib import Path
from types import SimpleNamespace

from starling_train.report import evaluation, first_screen, samples, sections
from starling_train.report.document import document, save
from starling_train.report.judgement import verdict
from starling_train.report.markup import card, clean, escape, note, section
from starling_train.report.plots import panels
from starling_train.report.plots.draw import panel_charts
from starling_train.report.plots.heat_table import heat_table
from starling_train.report.read_run import RunFiles, is_number, layer_in, of_policy, read, selected_modules


def write(run_dir: Path) -> Path:
    """Write `run_dir/report.html`, whole or not at all, and return its path.

    The page shows the content of the directory and says what is missing; the same files under the same path give the
    same bytes. Raises `UserError` when `run_dir` is not a directory.
    """
    run = read(run_dir)
    return save(run.path, render(run))


def render(run: RunFiles) -> str:
    """Return the page as text."""
    measured, name = evaluation.section(run), first_screen.run_name(run)
    if not is_training(run):
        return document(name, "evaluation report", measured, headline="Measured by <code>evaluate</code>.")
    remarks, found = list(run.missing), verdict.findings(run)
    body = first_screen.opening(run, found) + training(run, remarks) + measured
    return document(
        name,
        "training report",
        body + section("Details", sections.appendix(run)) + missing(remarks),
        status=first_screen.status(run),
        headline=first_screen.headline(run),
        verdict=first_screen.verdict_line(found),
        facts=sections.facts(run),
    )


def is_training(run: RunFiles) -> bool:
    """Whether the directory is a run's; a directory of `evaluate` alone lacks nothing."""
    return bool(run.config or run.metrics or run.summary) or not run.evaluation


def training(run: RunFiles, remarks: list[str]) -> str:
    """Return the sections on a training command's files; `remarks` gets what they lack."""
    parts = {
        "First evaluation against the last": f'<div class="tiles">{sections.tiles(of_policy(run))}</div>',
        "How training went": f'<div class="plots">\n{plot_cards(run, remarks)}\n</div>',
        "Which layers trained": f'<div class="columns">\n{heatmap(run)}\n{sections.trained_table(run)}\n</div>',
        "Answers before and after": samples.section(of_policy(run)),
    }
    return "".join(section(title, body) for title, body in parts.items())


def plot_cards(run: RunFiles, remarks: list[str]) -> str:
    """Return a figure with its caption for every panel that has numbers; `remarks` gets the others."""
    cards, without = [], []
    for panel in panels.of(run):
        charts = panel_charts(run, panel)
        if charts:
            cards.append(card(charts, escape(panel.reading), panel.title, panel.slug))
        else:
            without.append(panel.title)
    if without:
        remarks.append(f"plots without any number in metrics.jsonl: {', '.join(without)}")
    return "\n".join(cards) or note("No step has been recorded yet.")


def heatmap(run: RunFiles) -> str:
    """Return the scan as a table of colours with the selection framed."""
    scanned = {name: record for name, record in scan_records(run).items() if record.layer is not None}
    if not scanned:
        return note("No SNR scan belongs to this run (no snr.json).")
    return card(
        heat_table(scanned, selected_modules(run)),
        "Signal-to-noise ratio of every scanned matrix; framed matrices were trained. Compare within one module type "
        "only: the ratio depends on the matrix’s shape. With selection by SNR the framed cells are the highest of "
        "their column.",
    )


def scan_records(run: RunFiles) -> dict[str, SimpleNamespace]:
    """Return the records of `snr.json` with `.type`, `.layer` (None outside the layers) and `.snr`."""
    records = {}
    for name, record in run.snr.items():
        records[name] = SimpleNamespace(
            type=clean(record.get("type", "unknown")),
            layer=layer_in(name),
            snr=record["snr"] if is_number(record["snr"]) else None,
        )
    return records


def missing(remarks: list[str]) -> str:
    """Return a section on what could not be shown; empty when nothing is missing."""
    if not remarks:
        return ""
    items = "".join(f"<li>{escape(remark)}</li>" for remark in remarks)
    return section("What is missing", f'<ul class="note">{items}</ul>')
