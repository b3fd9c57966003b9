"""The section on the results of `evaluate`: a table for each, and a radar plot of MT-Bench's categories."""

from typing import Any

from starling_train.report import markup
from starling_train.report.markup import details, escape, redact, table
from starling_train.report.plots.radar import radar_svg
from starling_train.report.read_run import RunFiles, is_number

Entry = dict[str, Any]


def section(run: RunFiles) -> str:
    """Return the whole section, newest results first; empty where `evaluate` measured nothing."""
    if not run.evaluation:
        return ""
    cards = [radar(run.evaluation), *(card(entry) for entry in reversed(run.evaluation))]
    body = '<div class="plots">\n' + "\n".join(filter(None, cards)) + "\n</div>"
    return markup.section("Evaluation", body)


def card(entry: Entry) -> str:
    """Return one result: suite and model, the numbers, and the notes."""
    identity = entry["identity"]
    suite, name = str(identity.get("suite", "suite")), model_of(entry)
    notes = "".join(f"<li>{escape(redact(note))}</li>" for note in notes_of(entry))
    origin = entry.get("made")
    origin = origin if isinstance(origin, dict) else {}
    how = ", ".join(
        f"{escape(key)} {escape(origin[key])}"
        for key in ("version", "device", "seconds")
        if origin.get(key) is not None
    )
    rows = [[escape(part), escape(value), escape(count)] for part, value, count in lines_of(entry)]
    return (
        f'<figure class="card" data-suite="{escape(suite)}"><h3>{escape(suite.replace("_", " "))}</h3>'
        f"<p>of <code>{escape(redact(name))}</code></p>"
        f"{table(['Part', 'Value', 'Of'], rows, frozenset({1, 2}))}"
        + (f'<ul class="note">{notes}</ul>' if notes else "")
        + details("What it belongs to", f"{markup.verbatim(_lines(identity))}<p>{how}</p>")
        + "</figure>"
    )


def lines_of(entry: Entry) -> list[tuple[str, str, str]]:
    """Return (part, value, of how many): as the suite wrote them, else the plain numbers of an older file."""
    words = entry.get("shown")
    lines = words.get("lines") if isinstance(words, dict) else None
    if isinstance(lines, list):
        good = [line for line in lines if isinstance(line, list) and len(line) == 3]
        return [(str(part) or "all", str(value), _count(count)) for part, value, count in good]
    return [(key, f"{value:.6g}", "") for key, value in entry["result"].items() if is_number(value)]


def notes_of(entry: Entry) -> list[str]:
    """Return the notes of a result; none in an older file."""
    words = entry.get("shown")
    notes = words.get("notes") if isinstance(words, dict) else None
    return [str(note) for note in notes] if isinstance(notes, list) else []


def model_of(entry: Entry) -> str:
    """Return the name of the measured model."""
    model = entry["identity"].get("model")
    named = model if isinstance(model, dict) else {}
    return str(named.get("path") or named.get("url") or "a model")


def radar(entries: list[Entry]) -> str:
    """Plot MT-Bench by category, a curve for each result that has ratings; empty without one."""
    curves: dict[str, dict[str, float]] = {}
    for entry in entries:
        if entry["identity"].get("suite") == "mt_bench" and (scores := category_scores(entry)):
            curves[_curve_label(entry)] = scores
    svg = radar_svg(curves) if curves else ""
    if not svg:
        return ""
    return markup.card(
        svg,
        "MT-Bench by category, ratings from 1 to 10 of the judge that is named. Ratings of different judges do not "
        "compare. A category without a rating is left out.",
        slug="radar",
    )


def category_scores(entry: Entry) -> dict[str, float]:
    """Return the mean rating of each category that has one."""
    parts = entry["result"].get("by_category")
    rated = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return {str(part.get("category")): part["score"] for part in rated if is_number(part.get("score"))}


def _curve_label(entry: Entry) -> str:
    judge = entry["result"].get("judge")
    name = judge.get("model") if isinstance(judge, dict) else None
    return f"{model_of(entry).rstrip('/').rpartition('/')[2]}, judge {name}"


def _count(count: object) -> str:
    return f"{count:,}" if isinstance(count, int) else str(count)


def _lines(values: Entry, prefix: str = "") -> str:
    """Return nested values as `a.b: value` lines."""
    lines = []
    for key, value in values.items():
        nested = isinstance(value, dict) and value
        lines.append(_lines(value, f"{prefix}{key}.") if nested else f"{prefix}{key}: {value}")
    return "\n".join(lines)
