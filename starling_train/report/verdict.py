"""The checks that a careful reader would make first: each finding is one sentence with a judgement."""

from dataclasses import dataclass

from starling_train.report.markup import plain
from starling_train.report.read_run import RunFiles, first_last, series, setting

GOOD, WATCH, BAD = "good", "watch", "bad"
POINTS_ALLOWED = 3.0  # percentage points of a skill that a run may lose


@dataclass(frozen=True)
class Finding:
    """One sentence with its judgement."""

    state: str
    text: str


def findings(run: RunFiles) -> list[Finding]:
    """Return the findings of every check that the run has the numbers for."""
    checks = (_score, _preference, _gold, _skill, _kl, _ratio, _ended, _length, _skipped)
    return [finding for check in checks if (finding := check(run)) is not None]


def change(run: RunFiles, key: str) -> float | None:
    """Return last minus first value of a key, None where it was measured less than twice."""
    first, last = first_last(run, key)
    return None if first is None or last is None else last - first


def score_change_in_spreads(run: RunFiles) -> float | None:
    """Return the change of the held-out score in standard deviations of the starting policy's scores."""
    gain, spread = change(run, "eval/score_mean"), first_last(run, "eval/score_std")[0]
    return gain / spread if gain is not None and spread else None


def _score(run: RunFiles) -> Finding | None:
    gain = score_change_in_spreads(run)
    if gain is None:
        return None
    if gain >= 1:
        return Finding(GOOD, f"Held-out score rose by {plain(gain)} standard deviations of the starting policy.")
    if gain > 0:
        text = f"Held-out score rose by only {plain(gain)} standard deviations of the starting policy."
        return Finding(WATCH, text)
    return Finding(BAD, f"Held-out score did not rise ({plain(gain, signed=True)} starting deviations).")


def _preference(run: RunFiles) -> Finding | None:
    first, last = first_last(run, "eval/preference_accuracy")
    if first is None or last is None:
        return None
    text = f"Held-out pairs in the right order went from {plain(100 * first)} to {plain(100 * last)} %."
    return Finding(GOOD if last > first else BAD, text)


def _gold(run: RunFiles) -> Finding | None:
    gold, score = change(run, "eval/gold_mean"), change(run, "eval/score_mean")
    if gold is None:
        return None
    if gold > 0:
        return Finding(GOOD, f"True quality (gold) moved by {plain(gold, signed=True)}.")
    exploited = " while the score rose: the policy exploits the reward model" if score and score > 0 else ""
    return Finding(BAD, f"True quality (gold) moved by {plain(gold, signed=True)}{exploited}.")


def _skill(run: RunFiles) -> Finding | None:
    points = change(run, "eval/function_calling")
    if points is None:
        return None
    state = GOOD if points >= -POINTS_ALLOWED else BAD
    return Finding(state, f"Function calling changed by {plain(points, signed=True)} percentage points.")


def _kl(run: RunFiles) -> Finding | None:
    values = series(run, "kl/reference")[1]
    if not values:
        return None
    late = values[-max(1, len(values) // 4) :]
    mean = sum(late) / len(late)
    if mean < -0.05:
        text = f"KL to the reference is negative at the end ({plain(mean)} nats)"
        return Finding(BAD, f"{text}: generation and training disagree.")
    target = setting(run.config, "algorithm.kl.target")
    if target and mean > 2 * target:
        text = f"KL to the reference ended at {plain(mean)} nats"
        return Finding(WATCH, f"{text}, over twice its target of {plain(float(target))}.")
    return Finding(GOOD, f"KL to the reference is under control: {plain(mean)} nats per response at the end.")


def _ratio(run: RunFiles) -> Finding | None:
    values = series(run, "policy/ratio_first")[1]
    if not values:
        return None
    # In half precision two passes over the same tokens differ by rounding alone.
    allowed = 1e-4 if setting(run.config, "model.dtype") == "float32" else 0.1
    if max(values) <= allowed:
        return Finding(GOOD, f"Generation and training agree on log-probabilities (within {plain(max(values))}).")
    text = f"Generation and training disagree on log-probabilities: ratio off by up to {plain(max(values))}"
    return Finding(WATCH, f"{text}, where {plain(allowed)} is expected at this precision.")


def _ended(run: RunFiles) -> Finding | None:
    last = first_last(run, "response/eos_fraction")
    share = last[0] if last[1] is None else last[1]
    if share is None or share >= 0.8:
        return None
    text = f"Only {plain(100 * share)} % of responses end by themselves; the others are cut at the token limit."
    return Finding(WATCH, text)


def _length(run: RunFiles) -> Finding | None:
    first, last = first_last(run, "response/length_mean")
    if not first or not last or 2 / 3 < last / first < 1.5:
        return None
    text = f"Responses went from {plain(float(first))} to {plain(float(last))} tokens"
    return Finding(WATCH, f"{text}: part of the change in score may be length.")


def _skipped(run: RunFiles) -> Finding | None:
    skipped = sum(series(run, "optim/skipped")[1])
    return Finding(WATCH, f"{plain(skipped)} optimiser steps were skipped.") if skipped else None
