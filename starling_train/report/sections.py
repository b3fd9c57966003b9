"""The parts of the page that are text and tables: key numbers, what trained, every metric."""

from collections import Counter, defaultdict
from dataclasses import dataclass, replace

from starling_train.report import markup
from starling_train.report.judgement.limits import POINTS_ALLOWED
from starling_train.report.judgement.results import score_gain
from starling_train.report.metrics import is_skill, parent, percent_scale, suite_label, suites
from starling_train.report.read_run import (
    RunFiles,
    first_last,
    is_number,
    layer_in,
    selected_modules,
    series,
)


@dataclass(frozen=True)
class Tile:
    """One key number: `better` is +1 where more is better, -1 where less is, 0 where neither is."""

    key: str
    label: str
    unit: str = ""
    change_unit: str = ""
    scale: float = 1.0
    better: int = 0


def facts(run: RunFiles) -> str:
    """Return device, time, speed and memory as a definition list."""
    summary = run.summary
    rows = [("Device", markup.escape(summary["device"]))] if summary.get("device") else []
    if is_number(summary.get("wall_time_s")):
        seconds = summary["wall_time_s"]
        rows.append(("Time", f'<data value="{seconds!r}">{markup.duration(seconds)}</data>'))
    speed = summary.get("throughput")
    speed = speed if isinstance(speed, dict) else {}
    for key, label, unit in (("tokens_per_s", "Speed", "tokens/s"), ("samples_per_s", "", "responses/s")):
        value = next((speed[k] for k in (key, f"throughput/{key}") if k in speed), None)
        if is_number(value):
            rows.append((label or "Responses", markup.number(value, unit)))
    if is_number(summary.get("peak_memory_gb")):
        rows.append(("Peak memory", markup.number(summary["peak_memory_gb"], "GB")))
    if summary.get("git_commit"):
        rows.append(("Code", f"<code>{markup.escape(str(summary['git_commit'])[:12])}</code>"))
    items = "".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in rows)
    return f'<dl class="facts-row">{items}</dl>' if items else ""


def tiles(run: RunFiles) -> str:
    """Return first and last value of the most important numbers, with the change, as a row of tiles."""
    keys = suites(run)
    gold = Tile("eval/gold_mean", "True quality (gold), held-out prompts", better=1)
    chosen = [_held_out(run, "score_mean", "reward/score_mean", Tile("", "Reward score", better=1)), gold]
    for key in sorted(keys, key=lambda key: key != "eval/function_calling"):
        if parent(key, keys) is not None:
            continue
        label = suite_label(key).capitalize()
        if is_skill(key):
            chosen.append(Tile(key, f"{label}, right", "%", "points", percent_scale(run, key), 1))
        else:
            chosen.append(Tile(key, label))
    chosen.append(_held_out(run, "kl_reference", "kl/reference", Tile("", "KL to the starting policy", "nats")))
    chosen.append(_held_out(run, "length_mean", "response/length_mean", Tile("", "Response length", "tokens")))
    drawn = [_tile(run, item) for item in chosen]
    return "".join(drawn) or markup.note("No measurement was recorded yet.")


def _held_out(run: RunFiles, suite: str, training: str, item: Tile) -> Tile:
    """Return the held-out version of a number where it was measured, else that of the training prompts."""
    if first_last(run, f"eval/{suite}")[0] is not None:
        return replace(item, key=f"eval/{suite}", label=f"{item.label}, held-out prompts")
    return replace(item, key=training, label=f"{item.label}, training prompts")


def _tile(run: RunFiles, item: Tile) -> str:
    """Return one tile, empty where the run never measured the number, or it is 0 throughout."""
    first, last = first_last(run, item.key)
    if first is None or (first == 0 and not last and not item.change_unit):
        return ""  # what is 0 throughout needs no tile
    first *= item.scale
    if last is None:
        values, change = markup.number(first, item.unit), "measured once"
    else:
        last *= item.scale
        values = (
            f'{markup.number(first)} <span class="arrow">→</span> <strong>{markup.number(last, item.unit)}</strong>'
        )
        change = _change(run, item, last - first)
    return markup.tile(item.label, values, change, item.key)


def _change(run: RunFiles, item: Tile, gain: float) -> str:
    judged = gain * item.better
    if item.change_unit == "points" and abs(gain) <= POINTS_ALLOWED:
        judged = 0  # within what a run may lose: no alarm, and no praise for noise
    mark = "up" if judged > 0 else "down" if judged < 0 else "same"
    arrow = "▲" if gain > 0 else "▼" if gain < 0 else "="
    text = f'<span class="{mark}">{arrow} {markup.number(gain, item.change_unit or item.unit, signed=True)}</span>'
    spreads = score_gain(run) if item.key == "eval/score_mean" else None
    if spreads is None:
        return text
    return f"{text}, {markup.number(spreads, signed=True)} starting standard deviations"


def trained_table(run: RunFiles) -> str:
    """Return what trained, a row per module type: matrices, parameters, layers."""
    scanned = Counter(str(record.get("type", "unknown")) for record in run.snr.values())
    trained: dict[str, list[str]] = defaultdict(list)
    for name in selected_modules(run):
        trained[str(run.snr[name].get("type", "unknown"))].append(name)
    trainable = run.summary.get("trainable")
    by_type = trainable.get("by_type") if isinstance(trainable, dict) else None
    known = {str(row.get("type")): row for row in by_type or [] if isinstance(row, dict)}
    rows = []
    for kind in known | scanned:
        row = known.get(kind, {"matrices": len(trained[kind])})
        of = row.get("of", scanned.get(kind))
        share = (
            f"{markup.number(row.get('matrices'))} of {markup.number(of)}" if of else markup.number(row.get("matrices"))
        )
        size = markup.count(row["parameters"]) if is_number(row.get("parameters")) else "–"
        layers = {layer for name in trained[kind] if (layer := layer_in(name)) is not None}
        rows.append([f"<code>{markup.escape(kind)}</code>", share, size, ranges(layers) or "–"])
    if not rows:
        return markup.note("Neither a scan nor a list of what trained was recorded.")
    head = ["Module type", "Matrices trained", "Parameters", "Layers"]
    return f'<div class="card">{markup.table(head, rows, frozenset({1, 2}))}</div>'


def ranges(numbers: set[int]) -> str:
    """Return numbers as ranges: `{1, 2, 3, 7}` -> `1–3, 7`."""
    parts: list[list[int]] = []
    for value in sorted(numbers):
        if parts and value == parts[-1][1] + 1:
            parts[-1][1] = value
        else:
            parts.append([value, value])
    return ", ".join(str(low) if low == high else f"{low}–{high}" for low, high in parts)


def appendix(run: RunFiles) -> str:
    """Return every metric's first and last value, the configuration, the selection and the versions, folded."""
    keys = sorted({key for line in run.metrics for key in line if key != "step"})
    rows = []
    for key in keys:
        values = series(run, key)[1]
        if values:
            ends = [values[0], values[-1], min(values), max(values)]
            rows.append([f"<code>{markup.escape(key)}</code>", *(markup.number(value) for value in ends)])
    parts = []
    if rows:
        head = ["Key of metrics.jsonl", "First", "Last", "Smallest", "Largest"]
        parts.append(markup.details("All metrics", markup.table(head, rows, frozenset({1, 2, 3, 4}))))
    if run.config_text:
        parts.append(markup.details("Configuration", markup.verbatim(run.config_text)))
    if run.patterns:
        parts.append(
            markup.details(f"Unfrozen parameters ({len(run.patterns)})", markup.verbatim("\n".join(run.patterns)))
        )
    versions = run.summary.get("versions")
    if isinstance(versions, dict) and versions:
        rows = [
            [markup.escape(name), f"<code>{markup.escape(value)}</code>"] for name, value in sorted(versions.items())
        ]
        parts.append(markup.details("Versions", markup.table(["Package", "Version"], rows)))
    if run.summary.get("command"):
        parts.append(markup.details("Command", markup.verbatim(str(run.summary["command"]))))
    return "\n".join(parts) or markup.note("Neither configuration nor versions were recorded.")
