"""What the answers look like: cut, empty, repetitive, long."""

from typing import Any

from starling_train.report.judgement import results
from starling_train.report.judgement.finding import Finding, finding, softened
from starling_train.report.judgement.limits import FEWEST_ANSWERS, FEWEST_WORDS, GOOD, LIMITS, WATCH
from starling_train.report.judgement.repetition import common_text, rank_correlation, repeated_share, words
from starling_train.report.markup import percent, plain
from starling_train.report.read_run import RunFiles, first_last, is_number, latest, series, setting

BETTER = "The true quality rose all the same."
AS_BEFORE = 0.15  # a share that grew by less is as before training


def findings(run: RunFiles) -> list[Finding]:
    """Return the findings that the run has the numbers or the answers for."""
    checks = (_empty, _truncation, _across, _within, _length)
    return [found for check in checks if (found := check(run)) is not None]


def _held_out(run: RunFiles, key: str) -> tuple[float | None, float | None, str]:
    """Return first and last value of a number of answers, held-out ones where they exist, and which they are."""
    if first_last(run, f"eval/{key}")[0] is not None:
        return *first_last(run, f"eval/{key}"), "held-out"
    return *first_last(run, f"response/{key}"), "training"


def last_samples(run: RunFiles, first: bool = False) -> list[dict[str, Any]]:
    """Return the kept answers of the last evaluation, or of the first."""
    steps = [sample["step"] for sample in run.samples]
    step = (min if first else max)(steps, default=None)
    return [sample for sample in run.samples if sample["step"] == step]


def _texts(samples: list[dict[str, Any]]) -> list[str]:
    return [str(sample.get("response") or "") for sample in samples]


def _truncation(run: RunFiles) -> Finding | None:
    first, last, which = _held_out(run, "eos_fraction")
    share = first if last is None else last
    if share is None or first is None:
        return None
    tokens = setting(run.config, "rollout.max_new_tokens")
    limit = f" of {tokens} tokens" if is_number(tokens) else ""
    text = f"{percent(1 - share)} of {which} answers run into the limit{limit} at the end"
    at_start = f", {percent(1 - first)} at the start." if last is not None else "."
    found = finding("truncation", text + at_start, 1 - share)
    if found.state == GOOD and LIMITS["truncation"].state(1 - first) != GOOD:
        note = f"{percent(1 - first)} of the first {which} answers ran into the limit{limit}: the penalty for "
        note += "that pays for stopping early, and the end may be due to it."
        return finding("truncation", note, state=WATCH)
    return found


def _empty(run: RunFiles) -> Finding | None:
    keys = ("eval/empty_fraction", "response/empty_fraction")
    shares = [(value, key) for key in keys if (value := latest(run, key)) is not None]
    if shares:
        share, key = max(shares)
        first = first_last(run, key)[0]
        start = "" if first is None else f" ({percent(first)} at the start)"
        return finding("empty", f"{percent(share)} of answers are empty at the end{start}.", share)
    texts = _texts(last_samples(run))
    if not texts:
        return None
    count = sum(not text.strip() for text in texts)
    share = count / len(texts)
    text = f"{count} of the {len(texts)} answers that were kept last are empty."
    # one of a few may be an accident
    return finding("empty", text, state=WATCH) if count == 1 else finding("empty", text, share)


def _across(run: RunFiles) -> Finding | None:
    shared, sizes = [], []
    for first in (True, False):
        samples = last_samples(run, first)
        shared.append(common_text([str(sample.get("prompt")) for sample in samples], _texts(samples)))
        sizes.append(len({str(sample.get("prompt")) for sample in samples}))
    if sizes[1] < FEWEST_ANSWERS:
        return None
    before, after = (one.share if one else 0.0 for one in shared)
    counted = f"{shared[0].count} of {sizes[0]}" if shared[0] else "none"
    if shared[1] is None or LIMITS["repeat_across"].state(after) == GOOD:
        most = f"at most {shared[1].count} of {sizes[1]}" if shared[1] else "no two"
        return finding("repeat_across", f"Of the answers to different prompts {most} share a sentence.", after)
    common = shared[1]
    text = f"{common.count} of {common.of} answers to different prompts {common.kind} “{_short(common.text)}”"
    several = len({sample["step"] for sample in run.samples}) > 1
    found = finding("repeat_across", text + (f" (at the start {counted} shared any)." if several else "."), after)
    if several and after - before < AS_BEFORE:
        return softened(found)
    return softened(found, BETTER) if results.is_gold_better(run) else found


def _short(text: str, length: int = 90) -> str:
    return text if len(text) <= length else f"{text[: length - 1].rstrip()}…"


def _within(run: RunFiles) -> Finding | None:
    means = []
    for first in (True, False):
        shares = [repeated_share(text, fewest=FEWEST_WORDS) for text in _texts(last_samples(run, first))]
        known = [share for share in shares if share is not None]
        means.append(sum(known) / len(known) if len(known) >= FEWEST_ANSWERS else None)
    before, after = means
    if after is None:
        return None
    start = f" ({percent(before)} at the start)" if before is not None else ""
    return finding("repeat_within", f"{percent(after)} of an answer repeats what it has said{start}.", after)


def _length(run: RunFiles) -> Finding | None:
    first, last, which = _held_out(run, "length_mean")
    if not first or not last:
        return None
    ratio = max(last / first, first / last)
    text = f"{which.capitalize()} answers went from {plain(float(first))} to {plain(float(last))} tokens"
    gain = results.score_gain(run)
    if gain is not None and gain <= 0:
        return finding("length", f"{text}.", state=GOOD if ratio < LIMITS["length"].watch else WATCH)
    found = finding("length", f"{text}{_with_score(run) if ratio >= LIMITS['length'].watch else ''}.", ratio)
    if results.is_gold_better(run):
        return softened(found, BETTER)
    return softened(found) if gain is None else found


def _with_score(run: RunFiles) -> str:
    """Return how closely the score follows length: over the steps, and among the last answers."""
    steps, scores = series(run, "reward/score_mean")
    lengths = dict(zip(*series(run, "response/length_mean"), strict=True))
    pairs = [(lengths[step], score) for step, score in zip(steps, scores, strict=True) if step in lengths]
    over_steps = rank_correlation(*map(list, zip(*pairs, strict=True))) if pairs else None
    scored = [sample for sample in last_samples(run) if is_number(sample.get("score"))]
    among = rank_correlation([len(words(text)) for text in _texts(scored)], [sample["score"] for sample in scored])
    parts = [f"{plain(over_steps)} over the steps"] if over_steps is not None else []
    parts += [f"{plain(among)} among the last answers"] if among is not None else []
    return f", and the score with them (rank correlation {', '.join(parts)})" if parts else ""
