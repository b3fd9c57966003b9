"""`report.html` of a directory of `compare`: the strategies side by side, then all of its runs over one another."""

import base64
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from starling_train.core.intervals import Interval
from starling_train.files.json_lines import parse
from starling_train.report import comparison, markup, overlay
from starling_train.report.plots import frontier
from starling_train.report.read_run import RunFiles, read


def render(directory: Path) -> str:
    """Return the page as text."""
    runs = [read(path) for path in sorted((directory / "runs").glob("*/seed_*")) if path.is_dir()]
    compared = parse((directory / "compare.json").read_bytes()) if (directory / "compare.json").is_file() else None
    before = markup.section("Strategies side by side", strategies(directory, compared))
    name = directory.resolve().name
    headline = f"{len(runs)} runs of {len({run.path.parent.name for run in runs})} strategies."
    return overlay.render([_named(run) for run in runs], name, headline, before)


def _named(run: RunFiles) -> RunFiles:
    """Return the run under the name of its strategy and seed."""
    name = f"{run.path.parent.name}, {run.path.name.replace('_', ' ')}"
    return RunFiles(**(vars(run) | {"summary": run.summary | {"name": name}}))


def strategies(directory: Path, compared: dict[str, Any] | None) -> str:
    """Return the tables, the sentences and the plot of compare.json; a sentence where there is none yet."""
    try:
        known = _objects(_completed(compared)) if compared else None
        ways = comparison.tables(known) if known else []
        more = comparison.more_tables(known) if known else []
        explained = " ".join(comparison.explanation(known)) if known else ""
    except (AttributeError, LookupError, TypeError, ValueError):
        return markup.note("compare.json cannot be read as a comparison.")
    if known is None:
        return markup.note("No comparison yet: no run of the reference strategy is finished.")
    explained = markup.note(markup.escape(explained.replace("*", "")))
    parts = [_list(known.notes), *map(_table, ways), explained, _picture(directory / "compare.png")]
    return "".join([*parts, *(markup.details(table.title, _table(table)) for table in more)])


def _table(table: comparison.Table) -> str:
    rows = [[markup.escape(cell) for cell in row] for row in table.rows]
    head = [markup.escape(cell) for cell in table.head]
    drawn = markup.table(head, rows, frozenset(range(1, len(head))))
    return f"<h3>{markup.escape(table.title)}</h3>{drawn}{_list(table.says)}"


def _list(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{markup.escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def _completed(compared: dict[str, Any]) -> dict[str, Any]:
    """Return the content of compare.json with what files of former versions lack."""
    none: dict[str, Any] = {"mean": None, "half": None, "count": 0}
    side = {"reward_at_kl": none, "at_kl": {}, "steps_to_kl": none, "rates": []}
    difference = {"spread": None, "p_value": None, "p_holm": None}
    whole = {"kl_level": None, "equal_kl": [], "cases": {}, "runs": [], "search": None} | compared
    whole["sides"] = [side | one for one in whole["sides"]]
    for key in ("equal_steps", "equal_reward", "equal_kl"):
        whole[key] = [difference | one for one in whole[key]]
    return whole


def _picture(path: Path) -> str:
    """Return the plot as part of the page."""
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="Reward gained against skills" style="max-width: 100%" src="data:image/png;base64,{data}">'
    return markup.card(image, f"{frontier.READING}.", slug="compare")


def _objects(value: Any) -> Any:
    """Return JSON as what `comparison` reads: objects with attributes, and intervals, whose null is nan."""
    if isinstance(value, list):
        return [_objects(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"mean", "half", "count"}:
        mean, half = (math.nan if value[key] is None else value[key] for key in ("mean", "half"))
        return Interval(mean, half, value["count"])
    if not value or any("/" in key for key in value):  # skills, by the names of metrics
        return {key: _objects(entry) for key, entry in value.items()}
    return SimpleNamespace(**{key: _objects(entry) for key, entry in value.items()})


def is_comparison(directory: Path) -> bool:
    """Whether a directory is one of `compare`."""
    return (directory / "compare.json").is_file() or any((directory / "runs").glob("*/seed_*"))
