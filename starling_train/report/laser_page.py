"""`report.html` of a `laser` run: the measure over the tries, and every try in a table. From the run's files alone."""

import re
from pathlib import Path
from typing import Any

from starling_train.report import markup
from starling_train.report.document import document, save
from starling_train.report.first_screen import run_name
from starling_train.report.plots.chart import Chart, Curve
from starling_train.report.plots.chart import render as render_chart
from starling_train.report.plots.panel import BLUE, GREEN, RED
from starling_train.report.read_run import RunFiles, is_number, json_lines, read
from starling_train.report.sections import facts

HEAD = ("", "matrix", "raw SNR", "rank before", "rank", "before", "after", "", "seconds")
NUMERIC = frozenset((0, 2, 3, 4, 5, 6, 8))


def write(run_dir: Path) -> Path:
    """Write `run_dir/report.html`, whole or not at all, and return its path. The same files give the same bytes.

    Raises UserError when `run_dir` is not a directory.
    """
    run = read(run_dir)
    return save(run.path, render(run))


def is_search(directory: Path) -> bool:
    """Whether a directory is one of `laser`."""
    return (directory / "tries.jsonl").is_file()


def render(run: RunFiles) -> str:
    """Return the page as text."""
    rows = json_lines(run.path / "tries.jsonl", [])
    model = markup.redact(str((run.config.get("model") or {}).get("path", "")))
    headline = (
        f"<strong>Rank reduction</strong> of <code>{markup.escape(model)}</code>, judged by "
        f"{markup.escape(run.summary.get('measure', 'an unknown measure'))}."
    )
    parts = {
        "Before and after": f'<div class="tiles">{tiles(run)}</div>',
        "The measure over the tries": figure(rows),
        "Every try": markup.table(HEAD, [_cells(row) for row in rows], NUMERIC),  # in their own order
        "Details": markup.details("Configuration", markup.verbatim(run.config_text)),
    }
    body = "".join(markup.section(title, part) for title, part in parts.items())
    return document(
        run_name(run), "rank reduction", body, status=status(run, rows), headline=headline, facts=facts(run)
    )


def status(run: RunFiles, rows: list[dict[str, Any]]) -> str:
    """Return whether it is finished, with the tries; the word carries the meaning, the colour repeats it."""
    accepted = sum(bool(row.get("accepted")) for row in rows)
    word, colour = ("Finished", "good") if run.summary.get("finished") else ("Not finished", "watch")
    return markup.badge(colour, f"{word}, {accepted} of {len(rows)} tries kept")


def tiles(run: RunFiles) -> str:
    """Return tiles of the measure before and after, on both parts of the data, and of the numbers of parameters."""
    parts = []
    for part, what in (("judging", "that judged"), ("held_out", "held out")):
        values = run.summary.get(part)
        if isinstance(values, dict) and is_number(values.get("after")):
            before, after = _exact(values.get("before")), _exact(values["after"])
            label = f"{run.summary.get('measure')}, {values.get('count')} {run.summary.get('unit')} {what}"
            parts.append(markup.tile(label, f'{before} <span class="arrow">→</span> {after}'))
    if is_number(run.summary.get("parameters")):
        parts.append(markup.tile("Parameters of the model", markup.number(run.summary["parameters"])))
        parts.append(markup.tile("Fewer as factors", markup.number(run.summary.get("parameters_saved_by_factors"))))
    return "".join(parts) or markup.note("Not measured yet.")


def _exact(value: object) -> str:
    """Return a measure with six figures: the fourth often decides."""
    if not is_number(value):
        return markup.number(None)
    return f'<data value="{value!r}">{value:.6g}</data>'.replace(">-", f">{markup.MINUS}")


def figure(rows: list[dict[str, Any]]) -> str:
    """Plot the measure after each try, accepted ones on the line, restored ones beside it."""
    points = [row for row in rows if all(is_number(row.get(key)) for key in ("step", "before", "after"))]
    if not points:
        return markup.note("No try was recorded.")
    steps = [float(row["step"]) for row in points]
    standing = [row["after"] if row.get("accepted") else row["before"] for row in points]
    curves = [Curve("the model", BLUE, [0.0, *steps], [points[0]["before"], *standing])]
    for accepted, colour, label in ((True, GREEN, "kept"), (False, RED, "restored")):
        chosen = [row for row in points if bool(row.get("accepted")) is accepted]
        if chosen:
            xs, ys = [float(row["step"]) for row in chosen], [row["after"] for row in chosen]
            curves.append(Curve(label, colour, xs, ys, points=True, joined=False))
    measure = str(points[0].get("measure", "measure"))
    svg = render_chart(Chart(measure, curves, max(steps), xlabel="try"), "The measure over the tries")
    return markup.card(
        svg,
        "Each mark is the measure with one more matrix at lower rank; it was kept where the measure was not worse than "
        "the line. What was held out says whether that holds for other data.",
        slug="laser",
    )


def _cells(row: dict[str, Any]) -> list[str]:
    numbers = [markup.number(row.get(key)) for key in ("raw_snr", "rank_before", "rank")]
    numbers += [_exact(row.get(key)) for key in ("before", "after")]
    outcome = markup.badge("good", "kept") if row.get("accepted") else markup.badge("watch", "restored")
    module = f"<code>{markup.escape(re.sub(r'^model[.]', '', str(row.get('module', ''))))}</code>"
    return [markup.number(row.get("step")), module, *numbers, outcome, markup.number(row.get("seconds"))]
