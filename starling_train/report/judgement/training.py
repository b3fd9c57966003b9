"""How the updates went: KL, entropy, clipping, the critic, agreement with the rollout, what was left out."""

from starling_train.report.judgement.finding import Finding, finding
from starling_train.report.judgement.limits import BAD, CRITIC_STEPS, GOOD, LIMITS, SEVERITY, WATCH
from starling_train.report.markup import percent, plain
from starling_train.report.read_run import RunFiles, early_mean, is_number, late_mean, latest, series, setting


def findings(run: RunFiles) -> list[Finding]:
    """Return the findings that the run has the numbers for."""
    checks = (_kl, _entropy, _clip, _critic, _ratio, _engine_gap, _skipped, _left_out)
    return [found for check in checks if (found := check(run)) is not None]


def _kl(run: RunFiles) -> Finding | None:
    steps, values = series(run, "kl/reference")
    ends = [late_mean(run, "kl/reference"), latest(run, "eval/kl_reference"), values[-1] if values else None]
    known = [float(value) for value in ends if value is not None]
    if not known:
        return None
    lowest, value = min(known[:2]), max(known)
    if LIMITS["kl_negative"].state(lowest) != GOOD:
        return finding("kl_negative", f"{plain(lowest)} nats a response at the end.", lowest)
    text, limit = f"{plain(value)} nats a response at the end", LIMITS["kl"]
    target = setting(run.config, "algorithm.kl.target")
    if limit.state(value) == BAD or not is_number(target) or target <= 0:
        beside = f", under {limit.watch:g}" if limit.state(value) == GOOD else f", where {limit.bad:g} is too much"
        found = finding("kl", f"{text}{beside}.", value)
    else:
        ratio = value / target
        found = finding("kl_target", f"{text}, {plain(ratio)} times its target of {plain(float(target))}.", ratio)
    peak = max(values, default=value)
    if found.state == GOOD and limit.state(peak) == BAD:
        at = steps[values.index(peak)]
        return finding("kl", f"{found.text[:-1]}, but {plain(float(peak))} at step {at:,}.", state=WATCH)
    return found


def _entropy(run: RunFiles) -> Finding | None:
    first, last = early_mean(run, "policy/entropy"), late_mean(run, "policy/entropy")
    if first is None or last is None:
        return None
    text = f"{plain(first)} nats a token at the start, {plain(last)} at the end"
    share = last / first if first > 0 else 1.0
    if share > 1:
        return finding("entropy_rise", f"{text}: {plain(share)} times as much.", share)
    rows = [
        finding("entropy", f"{text}: {percent(share)} of it is left.", share),
        finding("entropy_floor", f"{text}: about {plain(2.718281828**last)} choices a token.", last),
    ]
    return min(rows, key=lambda row: SEVERITY.index(row.state))


def _clip(run: RunFiles) -> Finding | None:
    share = late_mean(run, "policy/clip_fraction")
    if share is None:
        return None
    return finding("clip", f"{percent(share)} of tokens are clipped at the end.", share)


def _critic(run: RunFiles) -> Finding | None:
    values = series(run, "value/explained_variance")[1]
    share = late_mean(run, "value/explained_variance")
    if share is None or len(values) < CRITIC_STEPS:
        return None
    return finding("critic", f"The critic explains {percent(share)} of the variance of returns at the end.", share)


def _ratio(run: RunFiles) -> Finding | None:
    values = series(run, "policy/ratio_first")[1]
    if not values:
        return None
    row = "ratio_float32" if setting(run.config, "model.dtype") == "float32" else "ratio_half"
    expected = f"where up to {plain(LIMITS[row].watch)} is rounding"
    text = f"Probabilities of generation and training differ by up to {plain(max(values))}, {expected}."
    return finding(row, text, max(values))


def _engine_gap(run: RunFiles) -> Finding | None:
    values = series(run, "policy/engine_gap_mean")[1]
    top_p, top_k = setting(run.config, "rollout.top_p"), setting(run.config, "rollout.top_k")
    if not values or (is_number(top_p) and top_p < 1) or top_k:  # what is cut off moves the engine's log-probs alone
        return None
    row = "gap_float32" if setting(run.config, "model.dtype") == "float32" else "gap_half"
    worst = max(series(run, "policy/engine_gap_p99")[1], default=0.0)
    text = (
        f"Log-probabilities of the rollout's engine and of training differ by up to {plain(max(values))} nats a token "
        f"in the mean of a step, where up to {plain(LIMITS[row].watch)} is rounding; by up to {plain(worst)} for all "
        "but 1 % of tokens."
    )
    return finding(row, text, max(values))


def _skipped(run: RunFiles) -> Finding | None:
    values = series(run, "optim/skipped")[1]
    if not sum(values):
        return None
    return finding(
        "skipped", f"{plain(sum(values))} updates were skipped in {len(values):,} steps.", sum(values) / len(values)
    )


def _left_out(run: RunFiles) -> Finding | None:
    count = max(sum(series(run, key)[1]) for key in ("optim/left_out", "reward/unscored"))
    answers = latest(run, "episodes")
    if not count or not answers:
        return None
    each = setting(run.config, "algorithm.responses_per_prompt")
    of = answers * (each if is_number(each) else 1)
    return finding("left_out", f"{plain(count)} of {plain(of)} answers were left out of training.", count / of)
