"""`report.html` of a `laser` run: the measure over the tries, and every try in a table. From the run's files alone."""

import os
import re
from importlib import resources
from pathlib import Path
from typing import Any

from starling_train.report import sections
from starling_train.report.markup import MINUS, details, escape, number, redact, table
from starling_train.report.plots import draw
from starling_train.report.plots.panel import BLUE, GREEN, INK, RED
from starling_train.report.read_run import Run, is_number, json_lines, read

HEAD = ("", "matrix", "raw SNR", "rank before", "rank", "before", "after", "", "seconds")
NUMERIC = frozenset((0, 2, 3, 4, 5, 6, 8))


def write(run_dir: Path) -> Path:
    """Write `run_dir/report.html`, whole or not at all, and return its path. The same files give the same bytes.

    Raises UserError when `run_dir` is not a directory.
    """
    run = read(run_dir)
    rows = json_lines(run.path / "tries.jsonl", [])
    path = run.path / "report.html"
    draft = path.with_name("report.html.tmp")
    draft.write_bytes(render(run, rows).encode("utf-8", errors="replace"))
    os.replace(draft, path)
    return path


def render(run: Run, rows: list[dict[str, Any]]) -> str:
    """The page as text, in the style of a training run's."""
    name = sections.run_name(run)
    page = resources.files("starling_train.report").joinpath("page.html").read_text(encoding="utf-8")
    head = page[: page.index("<main>")].replace("$name: training report", f"{escape(name)}: rank reduction")
    model = redact(str((run.config.get("model") or {}).get("path", "")))
    return (
        f"{head}<main>\n<header>\n<h1>{escape(name)}</h1>\n<p>{status(run, rows)}</p>\n"
        f"<p><strong>Rank reduction</strong> of <code>{escape(model)}</code>, judged by "
        f"{escape(run.summary.get('measure', 'an unknown measure'))}.</p>\n{sections.facts(run)}\n</header>\n"
        f'<section>\n<h2>Before and after</h2>\n<div class="tiles">{tiles(run)}</div>\n</section>\n'
        f"<section>\n<h2>The measure over the tries</h2>\n{figure(rows)}\n</section>\n"
        f"<section>\n<h2>Every try</h2>\n{tries(rows)}\n</section>\n"
        f"<section>\n<h2>Details</h2>\n"
        f"{details('Configuration', f'<pre>{escape(redact(run.config_text))}</pre>')}\n</section>\n"
        "</main>\n</body>\n</html>\n"
    )


def status(run: Run, rows: list[dict[str, Any]]) -> str:
    """Finished or not, with the tries; the word carries the meaning, the colour repeats it."""
    kept = sum(bool(row.get("accepted")) for row in rows)
    word, colour = ("Finished", "good") if run.summary.get("finished") else ("Not finished", "watch")
    return f'<span class="badge {colour}">{word}, {kept} of {len(rows)} tries kept</span>'


def tiles(run: Run) -> str:
    """The measure before and after, on what judged and on what was held out; and the numbers of parameters."""
    found = []
    for part, what in (("judging", "that judged"), ("held_out", "held out")):
        values = run.summary.get(part)
        if isinstance(values, dict) and is_number(values.get("after")):
            before, after = _exact(values.get("before")), _exact(values["after"])
            label = f"{run.summary.get('measure')}, {values.get('count')} {run.summary.get('unit')} {what}"
            found.append(_tile(label, f'{before} <span class="arrow">→</span> {after}'))
    if is_number(run.summary.get("parameters")):
        found.append(_tile("Parameters of the model", number(run.summary["parameters"])))
        found.append(_tile("Fewer as factors", number(run.summary.get("parameters_saved_by_factors"))))
    return "".join(found) or '<p class="note">Not measured yet.</p>'


def _exact(value: object) -> str:
    """A measure with six figures: what decides is often in the fourth."""
    return (
        f'<data value="{value!r}">{value:.6g}</data>'.replace(">-", f">{MINUS}") if is_number(value) else number(None)
    )


def _tile(label: str, value: str) -> str:
    return f'<div class="tile"><h3>{escape(label)}</h3><p class="value">{value}</p></div>'


def figure(rows: list[dict[str, Any]]) -> str:
    """The measure after each try, accepted ones on the line, restored ones beside it."""
    points = [row for row in rows if is_number(row.get("after")) and is_number(row.get("before"))]
    if not points:
        return '<p class="note">No try was recorded.</p>'
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
    return (
        f'<figure class="card">{svg}<figcaption>Each mark is the measure with one more matrix at lower rank; it was '
        "kept where the measure was not worse than the line. What was held out says whether that holds for other "
        "data.</figcaption></figure>"
    )


def tries(rows: list[dict[str, Any]]) -> str:
    """A line a try, in the order in which they were made."""
    return table(list(HEAD), [_cells(row) for row in rows], NUMERIC)


def _cells(row: dict[str, Any]) -> list[str]:
    numbers = [number(row.get(key)) for key in ("raw_snr", "rank_before", "rank")]
    numbers += [_exact(row.get(key)) for key in ("before", "after")]
    badge = ("good", "kept") if row.get("accepted") else ("watch", "restored")
    shown = f'<span class="badge {badge[0]}">{badge[1]}</span>'
    module = f"<code>{escape(re.sub(r'^model[.]', '', str(row.get('module', ''))))}</code>"
    return [number(row.get("step")), module, *numbers, shown, number(row.get("seconds"))]
