"""`report.html`: one self-contained page about a run, made from the run directory's files alone."""

from importlib import resources
from pathlib import Path
from string import Template
from types import SimpleNamespace

from starling_train.files.whole import write_text
from starling_train.report import evaluation, samples, sections
from starling_train.report.markup import card, clean, escape, note, section
from starling_train.report.plots import panels
from starling_train.report.plots.draw import inline_svg, panel_svg
from starling_train.report.read_run import RunFiles, is_number, layer_in, read, selected_modules


def write(run_dir: Path) -> Path:
    """Write `run_dir/report.html`, whole or not at all, and return its path.

    The page shows the content of the directory and says what is missing; the same files give the same bytes. Raises
    `UserError` when `run_dir` is not a directory.
    """
    run = read(run_dir)
    return save(run, render(run))


def save(run: RunFiles, text: str) -> Path:
    """Write a page as the run's `report.html`, and return its path."""
    return write_text(run.path / "report.html", text)


def document(run: RunFiles, title: str, status: str, headline: str, body: str) -> str:
    """Return a whole page in the style that all pages have.

    run: the run.
    title: for the browser.
    status: whether it is finished, HTML.
    headline: the run in a sentence, HTML.
    body: HTML.
    """
    template = resources.files("starling_train.report").joinpath("page.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        name=escape(sections.run_name(run)),
        title=title,
        status=status,
        headline=headline,
        facts=sections.facts(run),
        body=body,
    )


def render(run: RunFiles) -> str:
    """Return the page as text."""
    measured = evaluation.section(run)
    if not is_training(run):
        return document(run, "evaluation report", "", "Measured by <code>evaluate</code>.", measured)
    remarks = list(run.missing)
    body = training(run, remarks) + measured + section("Details", sections.appendix(run)) + missing(remarks)
    return document(run, "training report", sections.status(run), sections.headline(run), body)


def is_training(run: RunFiles) -> bool:
    """Whether the directory is a run's; a directory of `evaluate` alone lacks nothing."""
    return bool(run.config or run.metrics or run.summary) or not run.evaluation


def training(run: RunFiles, remarks: list[str]) -> str:
    """Return the sections on a training command's files; `remarks` gets what they lack."""
    parts = {
        "First evaluation against the last": f'<div class="tiles">{sections.tiles(run)}</div>\n'
        + sections.findings_list(run),
        "How training went": f'<div class="plots">\n{plot_cards(run, remarks)}\n</div>',
        "Which layers trained": f'<div class="columns">\n{heatmap(run)}\n{sections.trained_table(run)}\n</div>',
        "Answers before and after": samples.section(run),
    }
    return "".join(section(title, body) for title, body in parts.items())


def plot_cards(run: RunFiles, remarks: list[str]) -> str:
    """Return a figure with its caption for every panel that has numbers; `remarks` gets the others."""
    cards, without = [], []
    for panel in panels.of(run):
        svg = panel_svg(run, panel)
        if not svg:
            without.append(panel.title)
            continue
        cards.append(card(svg, escape(panel.reading), panel.title))
    if without:
        remarks.append(f"plots without any number in metrics.jsonl: {', '.join(without)}")
    return "\n".join(cards) or note("No step has been recorded yet.")


def heatmap(run: RunFiles) -> str:
    """Return the scan as a heatmap with the selection marked, on a light background in both themes."""
    scanned = {name: record for name, record in scan_records(run).items() if record.layer is not None}
    if not scanned:
        return note("No SNR scan belongs to this run (no snr.json).")
    import matplotlib

    from starling_train.report.plots.heatmap import draw

    with matplotlib.rc_context({"svg.hashsalt": "snr", "svg.fonttype": "none"}):
        svg = inline_svg(draw(scanned, selected_modules(run)), "snr", "Signal-to-noise ratio", themed=False)
    return card(
        f'<div class="scroll paper">{svg}</div>',
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
