"""What training was for, and what it cost: score, true quality, skills, pairs in the right order."""

import math
from dataclasses import replace
from typing import Any

from starling_train.core.intervals import Interval, difference_of_shares, interval
from starling_train.report.judgement.finding import Finding, finding
from starling_train.report.judgement.limits import BAD, GOOD, NOTE, POINTS_ALLOWED, WATCH
from starling_train.report.markup import percent, plain, points
from starling_train.report.metrics import CASES, is_skill, parent, percent_scale, suite_label, suites
from starling_train.report.read_run import (
    RunFiles,
    change,
    early_mean,
    first_last,
    is_number,
    late_mean,
    latest,
    series,
    setting,
)


def findings(run: RunFiles) -> list[Finding]:
    """Return the findings that the run has the numbers for."""
    checks = (_score, _generalisation, _gold, _ranking, _memorised, _displaced, _perplexity)
    return [found for check in checks if (found := check(run)) is not None] + _skills(run)


def score_gain(run: RunFiles) -> float | None:
    """Return the change of the held-out score in standard deviations of the starting policy's scores."""
    gain, spread = change(run, "eval/score_mean"), first_last(run, "eval/score_std")[0]
    return gain / spread if gain is not None and spread else None


def score_interval(run: RunFiles) -> Interval | None:
    """Return that change with its interval, as of two independent sets of answers."""
    gain, count = score_gain(run), setting(run.config, "data.eval_prompts")
    first, last = first_last(run, "eval/score_std")
    if gain is None or not first or last is None or not is_number(count) or count < 2:
        return None
    return Interval(gain, 1.959964 * math.sqrt((1 + (last / first) ** 2) / count), int(count))


def _score(run: RunFiles) -> Finding | None:
    gain, known = score_gain(run), score_interval(run)
    if gain is None:
        return None
    first, last = first_last(run, "eval/score_mean")
    assert first is not None and last is not None
    text = f"{plain(float(first))} → {plain(float(last))}, {plain(gain, signed=True)} starting standard deviations"
    if known is None:
        return finding("score", f"{text}.", gain)
    text += f" ({_range(known)})"
    if known.verdict == "alike":
        return finding("score", f"{text}: chance may explain it.", state=WATCH)
    return finding("score", f"{text}.", gain)


def _range(known: Interval) -> str:
    return f"95 % interval {plain(known.low, signed=True)} to {plain(known.high, signed=True)}"


def _generalisation(run: RunFiles) -> Finding | None:
    first, last = early_mean(run, "reward/score_mean"), late_mean(run, "reward/score_mean")
    spread, held_out = first_last(run, "eval/score_std")[0], score_gain(run)
    if first is None or last is None or not spread or held_out is None or (last - first) / spread < 0.5:
        return None
    gained = (last - first) / spread
    share = held_out / gained
    text = f"The score rose by {plain(gained)} deviations on training prompts, by {plain(held_out)} on held-out ones."
    return finding("generalisation", text, share)


def gold_interval(run: RunFiles) -> Interval | None:
    """Return the change of the gold score on held-out prompts.

    Its interval is by the kept answers to the same prompts, before and after; without eight of them it has none.
    """
    gain = change(run, "eval/gold_mean")
    if gain is None:
        return None
    steps = sorted({sample["step"] for sample in run.samples})
    golds: list[dict[str, Any]] = [
        {str(sample.get("prompt")): sample.get("gold") for sample in run.samples if sample["step"] == step}
        for step in (steps[:1] + steps[-1:])
    ]
    pairs = [(golds[0][prompt], after) for prompt, after in golds[-1].items() if prompt in golds[0]] if golds else []
    differences = [b - a for a, b in pairs if is_number(a) and is_number(b)] if len(steps) > 1 else []
    if len(differences) < 8:
        return Interval(gain, math.nan, len(differences))
    count = setting(run.config, "data.eval_prompts")
    spread = interval(differences).half * math.sqrt(len(differences))
    size = max(len(differences), int(count)) if is_number(count) else len(differences)
    return Interval(gain, spread / math.sqrt(size), size)


def is_gold_better(run: RunFiles) -> bool:
    """Return whether the true quality was measured and rose."""
    known = gold_interval(run)
    return known is not None and known.mean > 0 and known.verdict in ("more", "unknown")


def _gold(run: RunFiles) -> Finding | None:
    known, gain = gold_interval(run), score_gain(run)
    if known is None:
        if gain is None or gain <= 0:
            return None
        text = "Not measured: that answers became better, and not only better scored, is the reward model's word alone."
        return finding("gold", text, state=NOTE)
    first, last = first_last(run, "eval/gold_mean")
    assert first is not None and last is not None
    text = f"Gold {plain(float(first))} → {plain(float(last))}"
    text += f" ({_range(known)})" if known.verdict != "unknown" else f" ({plain(known.mean, signed=True)})"
    if known.mean > 0:
        return finding("gold", f"{text}.", state=GOOD if known.verdict != "alike" else WATCH)
    if gain is not None and gain > 0:
        text += f" while the score rose by {plain(gain)} deviations: the policy exploits the reward model"
        return finding("gold", f"{text}.", state=BAD)
    return finding("gold", f"{text}.", state=WATCH if known.verdict == "alike" else BAD)


def skill_interval(run: RunFiles, key: str) -> Interval | None:
    """Return the change of a skill in points, with its interval where the number of cases is in the metrics."""
    points, cases = change(run, key), latest(run, key + CASES)
    if points is None:
        return None
    scale = percent_scale(run, key)
    if not cases:
        return Interval(points * scale, math.nan, 0)
    first, last = first_last(run, key)
    assert first is not None and last is not None
    right = [value * scale / 100 * cases for value in (first, last)]
    known = difference_of_shares(right[0], int(cases), right[1], int(cases))
    return Interval(100 * known.mean, 100 * known.half, known.count)


def _skills(run: RunFiles) -> list[Finding]:
    keys = [key for key in suites(run) if is_skill(key) and "preference" not in key]
    found = []
    for key in keys:
        known = skill_interval(run, key)
        if parent(key, keys) is None and known is not None:
            found.append(_skill(run, key, known))
    return found


def _skill(run: RunFiles, key: str, known: Interval) -> Finding:
    scale = percent_scale(run, key)
    first, last = first_last(run, key)
    assert first is not None and last is not None
    text = f"{points(first * scale, False)} → {points(last * scale, False)} %, {points(known.mean)} points"
    if known.verdict != "unknown":
        text += f" (95 % interval {points(known.low)} to {points(known.high)}, {known.count:,} cases)"
    state = GOOD
    if known.mean < -POINTS_ALLOWED:
        state = WATCH if known.verdict == "alike" else BAD
        text += f"; {POINTS_ALLOWED:g} may be lost" + (", and chance may explain it" if state == WATCH else "")
    elif known.verdict == "unknown":
        text += " (how many cases is not recorded, so no interval)"
    row, name = finding("skill", f"{text}.", state=state), suite_label(key)
    return replace(row, name=f"Skill: {name}", fault=f"{name} {row.fault}" if state == BAD else name)


def _perplexity(run: RunFiles) -> Finding | None:
    first, last = first_last(run, "eval/perplexity")
    if not first or last is None:
        return None
    return finding("perplexity", f"{plain(float(first))} → {plain(float(last))}.", last / first)


def _ranking(run: RunFiles) -> Finding | None:
    first, last = first_last(run, "eval/preference_accuracy")
    if first is None or last is None:
        return None
    row = finding("ranking", f"{percent(first)} → {percent(last)} in the right order.", last)
    if row.state == GOOD and last < first:
        return finding("ranking", row.text, state=BAD)
    return row


def _memorised(run: RunFiles) -> Finding | None:
    held_out = latest(run, "eval/preference_accuracy")
    key = next((key for key in ("rm/accuracy", "dpo/accuracy") if series(run, key)[1]), None)
    training = late_mean(run, key) if key else None
    if held_out is None or training is None:
        return None
    text = f"{percent(training)} of training pairs are right, {percent(held_out)} of held-out ones."
    return finding("memorised", text, training - held_out)


def _displaced(run: RunFiles) -> Finding | None:
    chosen, margin = latest(run, "eval/chosen_reward"), latest(run, "eval/reward_margin")
    if chosen is None or margin is None or margin <= 0:
        return None
    text = f"The better answers' reward is {plain(float(chosen), signed=True)}, the margin {plain(float(margin))}."
    return finding("displaced", text, max(0.0, -chosen / margin))
