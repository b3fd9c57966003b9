"""Several runs laid over one another: curves of each in one plot, what differs in their settings, what came out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starling_train.report import first_screen, markup
from starling_train.report.document import document
from starling_train.report.judgement import verdict
from starling_train.report.metrics import is_skill, parent, percent_scale, suite_label, suites
from starling_train.report.plots import panels
from starling_train.report.plots.draw import overlaid
from starling_train.report.plots.panel import Panel
from starling_train.report.read_run import RunFiles, is_finished, is_number, latest, steps_done

# Settings that name a run rather than describe it
NAMES = ("name", "run_dir", "dry_run", "debug")
# (label, keys of which the first that a run has counts, unit)
FIGURES = (
    ("Score, held-out prompts", ("eval/score_mean",), ""),
    ("Score, training prompts", ("reward/score_mean",), ""),
    ("True quality (gold), held-out prompts", ("eval/gold_mean",), ""),
    ("KL to the reference", ("eval/kl_reference", "kl/reference"), "nats"),
    ("Response length", ("eval/length_mean", "response/length_mean"), "tokens"),
    ("Entropy", ("policy/entropy",), "nats"),
    ("Explained variance", ("value/explained_variance",), ""),
    ("Held-out pairs in the right order", ("eval/preference_accuracy",), ""),
    ("Held-out loss", ("eval/loss", "eval/kwise_loss"), ""),
)


def labels(runs: Sequence[RunFiles]) -> list[str]:
    """Return a name for each run: its own, with the directory's where several have the same."""
    names = [first_screen.run_name(run) for run in runs]
    return [
        name if names.count(name) == 1 else f"{name} ({run.path.resolve().parent.name}/{run.path.resolve().name})"
        for name, run in zip(names, runs, strict=True)
    ]


def render(runs: Sequence[RunFiles], title: str, headline: str = "", before: str = "") -> str:
    """Return the page of several runs.

    runs: two or more.
    title: its heading.
    headline: a sentence, HTML.
    before: sections that come first, HTML.
    """
    names = labels(runs)
    parts = {
        "The runs": runs_table(runs, names),
        "Where their settings differ": settings_table(runs, names),
        "Last figures": figures_table(runs, names),
        "Curves": f'<div class="plots" data-zoom="overlay">\n{plots(runs, names)}\n</div>',
    }
    body = before + "".join(markup.section(heading, part) for heading, part in parts.items())
    return document(title, "runs side by side", body, headline=headline or f"{len(runs)} runs, a colour each.")


def runs_table(runs: Sequence[RunFiles], names: Sequence[str]) -> str:
    """Return what each run is, and the verdict on it."""
    rows = []
    for run, name in zip(runs, names, strict=True):
        state, text = verdict.summary(verdict.findings(run))
        finished = "finished" if is_finished(run) else "not finished"
        rows.append(
            [
                f"<strong>{markup.escape(name)}</strong><br><code>{markup.escape(run.path)}</code>",
                markup.escape(first_screen.algorithm(run).upper()),
                f"{steps_done(run):,}, {finished}",
                markup.badge(state, first_screen.SIGNS[state] or "–") + f" {markup.escape(text)}",
            ]
        )
    return markup.table(["Run", "Algorithm", "Steps", "Verdict"], rows)


def settings_table(runs: Sequence[RunFiles], names: Sequence[str]) -> str:
    """Return the settings that are not the same in all runs, a column a run."""
    flat = [flattened(run.config) for run in runs]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    rows = []
    for key in keys:
        values = [one.get(key) for one in flat]
        if key not in NAMES and any(value != values[0] for value in values):
            cells = [f"<code>{markup.escape(_shown(key, value))}</code>" for value in values]
            rows.append([f"<code>{markup.escape(key)}</code>", *cells])
    if not rows:
        return markup.note("All settings are the same." if any(flat) else "No settings were recorded.")
    return markup.table(["Setting", *map(markup.escape, names)], rows)


def _shown(key: str, value: str | None) -> str:
    """Return a setting's value without secrets; a dash where the run does not have it."""
    return "–" if value is None else markup.redact(f"{key}={value}")[len(key) + 1 :]


def flattened(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as `a.b` -> value as text."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = "null" if value is None else str(value)
    return flat


def figures_table(runs: Sequence[RunFiles], names: Sequence[str]) -> str:
    """Return the last value of the most important numbers, a column a run."""
    rows = [
        _row(
            label,
            [next((value for key in keys if (value := latest(run, key)) is not None), None) for run in runs],
            unit,
        )
        for label, keys, unit in FIGURES
    ]
    known = list(dict.fromkeys(key for run in runs for key in suites(run) if is_skill(key) and "preference" not in key))
    for key in (key for key in known if parent(key, known) is None):
        values = [latest(run, key) for run in runs]
        scaled = [None if v is None else v * percent_scale(run, key) for v, run in zip(values, runs, strict=True)]
        rows.append(_row(f"{suite_label(key).capitalize()}, right", scaled, "%"))
    for label, key, unit in (("Time", "wall_time_s", "s"), ("Peak memory", "peak_memory_gb", "GB")):
        measured = [run.summary.get(key) for run in runs]
        rows.append(_row(label, [value if is_number(value) else None for value in measured], unit))
    shown = [row for row in rows if row]
    if not shown:
        return markup.note("Nothing was measured yet.")
    return markup.table(["Last value", *map(markup.escape, names)], shown, frozenset(range(1, len(runs) + 1)))


def _row(label: str, values: Sequence[float | None], unit: str) -> list[str]:
    if all(value is None for value in values):
        return []
    return [markup.escape(label), *(markup.number(value, unit if value is not None else "") for value in values)]


def plots(runs: Sequence[RunFiles], names: Sequence[str]) -> str:
    """Return a figure for every panel that any of the runs has numbers for."""
    known: dict[str, Panel] = {}
    for run in runs:
        for panel in panels.of(run):
            known.setdefault(panel.slug, panel)
    cards = []
    for panel in known.values():
        charts = overlaid(runs, names, panel)
        if charts:
            cards.append(markup.card(charts, "", panel.title, panel.slug))
    return "\n".join(cards) or markup.note("No step has been recorded yet.")


def title_of(paths: Sequence[Path]) -> str:
    """Return the heading of a page of several runs."""
    return " · ".join(path.resolve().name for path in paths[:4]) + (
        f" and {len(paths) - 4} more" if len(paths) > 4 else ""
    )
