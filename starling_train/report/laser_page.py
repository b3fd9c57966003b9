"""`report.html` of a `laser` run: the measure over the tries, and every try in a table. From the run's files alone."""

import re
from pathlib import Path
from typing import Any

from starling_train.report import markup as html
from starling_train.report import page
from starling_train.report.plots import draw
from starling_train.report.plots.panel import BLUE, GREEN, INK, RED
from starling_train.report.read_run import RunFiles, is_number, json_lines, read

HEAD = ("", "matrix", "raw SNR", "rank before", "rank", "before", "after", "", "seconds")
NUMERIC = frozenset((0, 2, 3, 4, 5, 6, 8))


def write(run_dir: Path) -> Path:
    """Write `run_dir/report.html`, whole or not at all, and return its path. The same files give the same bytes.

    Raises UserError when `run_dir` is not a directory.
    """
    run = read(run_dir)
    return page.save(run, render(run, json_lines(run.path / "tries.jsonl", [])))


def render(run: RunFiles, rows: list[dict[str, Any]]) -> str:
    """The page as text."""
    model = html.redact(str((run.config.get("model") or {}).get("path", "")))
    headline = (
        f"<strong>Rank reduction</strong> of <code>{html.escape(model)}</code>, judged by "
        f"{html.escape(run.summary.get('measure', 'an unknown measure'))}."
    )
    parts = {
        "Before and after": f'<div class="tiles">{tiles(run)}</div>',
        "The measure over the tries": figure(rows),
        "Every try": html.table(HEAD, [_cells(row) for row in rows], NUMERIC),  # in the order in which they were made
        "Details": html.details("Configuration", html.verbatim(run.config_text)),
    }
    body = "".join(html.section(title, part) for title, part in parts.items())
    return page.document(run, "rank reduction", status(run, rows), headline, body)


def status(run: RunFiles, rows: list[dict[str, Any]]) -> str:
    """Finished or not, with the tries; the word carries the meaning, the colour repeats it."""
    kept = sum(bool(row.get("accepted")) for row in rows)
    word, colour = ("Finished", "good") if run.summary.get("finished") else ("Not finished", "watch")
    return html.badge(colour, f"{word}, {kept} of {len(rows)} tries kept")


def tiles(run: RunFiles) -> str:
    """The measure before and after, on what judged and on what was held out; and the numbers of parameters."""
    shown = []
    for part, what in (("judging", "that judged"), ("held_out", "held out")):
        values = run.summary.get(part)
        if isinstance(values, dict) and is_number(values.get("after")):
            before, after = _exact(values.get("before")), _exact(values["after"])
            label = f"{run.summary.get('measure')}, {values.get('count')} {run.summary.get('unit')} {what}"
            shown.append(html.tile(label, f'{before} <span class="arrow">→</span> {after}'))
    if is_number(run.summary.get("parameters")):
        shown.append(html.tile("Parameters of the model", html.number(run.summary["parameters"])))
        shown.append(html.tile("Fewer as factors", html.number(run.summary.get("parameters_saved_by_factors"))))
    return "".join(shown) or html.note("Not measured yet.")


def _exact(value: object) -> str:
    """A measure with six figures: what decides is often in the fourth."""
    if not is_number(value):
        return html.number(None)
    return f'<data value="{value!r}">{value:.6g}</data>'.replace(">-", f">{html.MINUS}")


def figure(rows: list[dict[str, Any]]) -> str:
    """The measure after each try, accepted ones on the line, restored ones beside it."""
    points = [row for row in rows if is_number(row.get("after")) and is_number(row.get("before"))]
    if not points:
        return html.note("No try was recorded.")
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(draw.style("laser")):
        drawn = Figure(figsize=(8.0, 2.8), layout="constrained")
        axis = drawn.subplots()
        standing = [row["after"] if row.get("accepted") else row["before"] for row in points]
        axis.plot(
            [0, *(row["step"] for row in points)], [points[0]["before"], *standing], color=BLUE, label="the model"
        )
        for accepted, colour, marker, label in ((True, GREEN, "o", "kept"), (False, RED, "x", "restored")):
            chosen = [row for row in points if bool(row.get("accepted")) is accepted]
            if chosen:
                x, y = [row["step"] for row in chosen], [row["after"] for row in chosen]
                axis.plot(x, y, color=colour, marker=marker, linestyle="", label=label)
        axis.set_xlabel("try")
        axis.set_ylabel(str(points[0].get("measure", "measure")), color=INK)
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.1, ncols=3)
        svg = draw.inline_svg(drawn, "laser", "The measure over the tries", themed=True)
    return html.card(
        svg,
        "Each mark is the measure with one more matrix at lower rank; it was kept where the measure was not worse than "
        "the line. What was held out says whether that holds for other data.",
    )


def _cells(row: dict[str, Any]) -> list[str]:
    numbers = [html.number(row.get(key)) for key in ("raw_snr", "rank_before", "rank")]
    numbers += [_exact(row.get(key)) for key in ("before", "after")]
    shown = html.badge("good", "kept") if row.get("accepted") else html.badge("watch", "restored")
    module = f"<code>{html.escape(re.sub(r'^model[.]', '', str(row.get('module', ''))))}</code>"
    return [html.number(row.get("step")), module, *numbers, shown, html.number(row.get("seconds"))]
