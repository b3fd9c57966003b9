"""The first screen of a run's page: what it is, whether it is good, what to do next."""

import re
import shlex
from collections.abc import Sequence
from datetime import datetime

from starling_train.report import markup
from starling_train.report.judgement import verdict
from starling_train.report.judgement.finding import Finding
from starling_train.report.judgement.limits import BAD, GOOD, LIMITS, WATCH
from starling_train.report.read_run import (
    RunFiles,
    is_finished,
    is_number,
    judge_of,
    policy_step,
    setting,
    steps_done,
    terms_of,
)
from starling_train.rewards import server_facts

WORDS = {"good": "✓ good", "watch": "! look", "bad": "✗ bad", "note": "note"}
SIGNS = {"good": "✓", "watch": "!", "bad": "✗", "note": ""}
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December")  # fmt: skip


def run_name(run: RunFiles) -> str:
    """Return the run's name from its summary or config, else the directory's."""
    return str(run.summary.get("name") or run.config.get("name") or run.path.resolve().name)


def command(run: RunFiles) -> str:
    """Return the command that wrote the run, such as `ppo`: from its summary, else from the settings it has."""
    known = str(run.summary.get("command") or "")
    if known.isalpha():
        return known
    return next((name for name in ("rm", "dpo") if isinstance(run.config.get(name), dict)), "ppo")


def algorithm(run: RunFiles) -> str:
    """Return `ppo`, `apa`, ... from the configuration, or the name of another command, such as `dpo`."""
    known = command(run)
    if known != "ppo":
        return known
    return str(setting(run.config, "algorithm.name") or "training")


def recipe(run: RunFiles) -> str | None:
    """Return the recipe that the run was started with; None where it is not recorded."""
    for start in run.starts:
        for argument in start.get("arguments") or []:
            if match := re.match(r"\++recipe(?:@\w+)?=(.+)", str(argument)):
                return match[1]
    return None


def status(run: RunFiles) -> str:
    """Return whether it is finished, with the steps done, the recipe and the date.

    The word carries the meaning, the colour repeats it.
    """
    done, planned = steps_done(run), setting(run.config, "algorithm.steps")
    of = f" of {planned:,}" if isinstance(planned, int) else ""
    parts = [markup.badge("good", f"Finished, {done:,}{of} steps")]
    if not is_finished(run):
        parts = [markup.badge("watch", f"Not finished, {done:,}{of} steps so far")]
    if (step := policy_step(run)) is not None:
        parts.append(f"its guard went back to step {step:,}")
    if named := recipe(run):
        parts.append(f"recipe <strong>{markup.escape(named)}</strong>")
    parts += dates(run)
    return " · ".join(parts)


def dates(run: RunFiles) -> list[str]:
    """Return when the run was started, and how often; empty where that is not recorded."""
    times = []
    for start in run.starts:
        try:
            times.append(datetime.fromisoformat(str(start.get("at"))))
        except ValueError:
            continue
    if not times:
        return []
    first = times[0]
    text = f"{first.day} {MONTHS[first.month - 1]} {first.year}, {first:%H:%M} UTC"
    again = f", resumed {len(times) - 1} times" if len(times) > 2 else ", resumed once" if len(times) == 2 else ""
    return [f'<time datetime="{first.isoformat()}">started {text}{again}</time>']


def short_name(path: str) -> str:
    """Return a path's or address's last two parts as code, with the whole one on hover; a hub's id as it is."""
    whole = markup.redact(path)
    parts = [part for part in whole.split("/") if part]
    if len(parts) <= 2 or "://" in whole:
        return f"<code>{markup.escape(whole)}</code>"
    return f'<code title="{markup.escape(whole)}">{markup.escape("/".join(parts[-2:]))}</code>'


def headline(run: RunFiles) -> str:
    """Return what was trained, on what, by which algorithm, as one sentence of HTML."""
    if not run.config and not run.summary:
        return "What was trained is not recorded."
    parts = [f"<strong>{markup.escape(algorithm(run).upper())}</strong>"]
    sources = (
        ("of", ("model.path",)),
        ("on prompts of", ("data.path",)),
        ("scored by", ("reward.function", "reward.path", "reward.url", "reward.kind")),
    )
    for phrase, keys in sources:
        value = next((setting(run.config, key) for key in keys if setting(run.config, key)), None)
        if phrase == "scored by" and (of_terms := terms_of(run.config)):
            each = (f"{short_name(judge_of(term))} ({markup.escape(name)})" for name, term in of_terms.items())
            parts.append(f"{phrase} the sum of {' and '.join(each)}")
        elif value:
            parts.append(f"{phrase} {short_name(str(value))}")
    if server := server_facts.described(run.config.get(server_facts.KEPT)):
        parts[-1] += f" ({markup.escape(markup.redact(server))})"
    trainable = run.summary.get("trainable")
    if isinstance(trainable, dict) and is_number(trainable.get("parameters")) and trainable.get("of"):
        share = trainable["parameters"] / trainable["of"]
        parts.append(
            f"training {markup.number(trainable.get('matrices'))} matrices: {markup.count(trainable['parameters'])} of "
            f"{markup.count(trainable['of'])} parameters ({markup.percent(share)}), the rest frozen"
        )
    return ", ".join([" ".join(parts[:2]), *parts[2:]]) + "."


def verdict_line(found: Sequence[Finding]) -> str:
    """Return the verdict in one line, which names what is not good."""
    state, text = verdict.summary(found)
    return f'<p class="verdict {state}">{SIGNS[state]} {markup.escape(text)}</p>'


def findings_list(found: Sequence[Finding]) -> str:
    """Return the findings, the worst first; what is good is folded where something is not.

    A word and a sign carry the judgement, not the colour alone.
    """
    good = [one for one in found if one.state == GOOD]
    other = [one for one in found if one.state != GOOD]
    if not any(one.state in (BAD, WATCH) for one in other):
        return (_items(found) or markup.note("Nothing was measured yet.")) + _limits()
    passed = markup.details(f"{len(good)} checks passed", _items(good)) if good else ""
    return _items(other) + passed + _limits()


def _items(found: Sequence[Finding]) -> str:
    items = []
    for one in found:
        advice = f'<span class="advice">{markup.escape(one.advice)}</span>' if one.advice else ""
        text = f"<strong>{markup.escape(one.name)}.</strong> {markup.escape(one.text)}{advice}"
        badge = markup.badge(one.state, WORDS[one.state])
        items.append(f'<li data-state="{one.state}">{badge}<span>{text}</span></li>')
    return f'<ul class="findings">{"".join(items)}</ul>' if items else ""


def _limits() -> str:
    return markup.details("The limits of these judgements, and why", limits_table())


def limits_table() -> str:
    """Return LIMITS as a table."""
    rows = []
    for limit in LIMITS.values():
        than = "below" if limit.is_floor else "above"
        limits = [f"{than} {markup.escape(f'{value:g}')}" for value in (limit.watch, limit.bad)]
        rows.append([markup.escape(limit.name), markup.escape(limit.of), *limits, markup.escape(limit.reason)])
    return markup.table(["Judged", "Measured as", "Look", "Bad", "Why there"], rows)


def argument(key: str, value: str) -> str:
    """Return `key=value` so that a shell and Hydra read it back."""
    if re.fullmatch(r"[\w./@~+-]+", value):
        return f"{key}={value}"
    quoted = value.replace("\\", "\\\\").replace("'", "\\'")
    return shlex.quote(f"{key}='{quoted}'")


def next_steps(run: RunFiles, found: Sequence[Finding]) -> list[tuple[str, str]]:
    """Return what to do now: (in words, the command with this run's paths; may be empty)."""
    path, known = str(run.path), command(run)
    is_bad = any(one.state == BAD for one in found)
    steps = []
    if not is_finished(run):
        arguments = run.starts[-1].get("arguments") if run.starts else None
        again = shlex.join(["starling", known, *map(str, arguments or [])]) if arguments else ""
        steps.append(("Go on from the last checkpoint: the same command again.", markup.redact(again)))
    if known in ("ppo", "dpo"):
        return steps + _policy_steps(run, path, is_bad)
    if known == "rm":
        kind = str(setting(run.config, "rm.kind") or "starling_7b")
        options = f"reward={kind} {argument('reward.path', f'{path}/reward')}"
        steps.append(("Use it in PPO.", f"starling ppo +recipe=NAME {options}"))
        steps.append(("Serve it.", f"starling serve_reward {options}"))
    return steps


def _policy_steps(run: RunFiles, path: str, is_bad: bool) -> list[tuple[str, str]]:
    """Return what a trained policy is good for; of a bad one, how to come to a better one first."""
    saved = sorted(folder.name for folder in (run.path / "checkpoints").glob("step_*"))
    export = f"starling export {argument('run_dir', path)} {argument('output', f'{path}/export')}"
    steps = [_again(run)] if is_bad and is_finished(run) else []
    if is_bad and len(saved) > 1:
        earlier = f"Export the earliest checkpoint that was kept ({len(saved)} were: checkpoint.keep), and compare it."
        steps.append((earlier, f"{export} checkpoint={saved[0]}"))
    elif saved or is_finished(run):
        steps.append(("Export the model: complete, with a card.", export))
    if is_finished(run):
        steps.append(("Measure it.", _evaluate(run, path)))
        if not is_bad:
            steps.append(("Serve it (docs/serving.md has more ways).", f"vllm serve {shlex.quote(f'{path}/policy')}"))
    steps.append(("Lay runs over one another.", f"starling report {shlex.quote(path)} OTHER_RUN"))
    return steps


def _again(run: RunFiles) -> tuple[str, str]:
    """Return how to train once more, beside this run."""
    given = [str(argument) for argument in (run.starts[0].get("arguments") or [])] if run.starts else []
    kept = [one for one in given if not one.startswith(("name=", "run_dir="))]
    words = "Train again under another name, with what the judgement advises."
    if not kept:
        return words, ""
    line = shlex.join(["starling", command(run), *kept])
    return words, markup.redact(f"{line} {argument('name', f'{run_name(run)}-2')} ...")


def _evaluate(run: RunFiles, path: str) -> str:
    """Return the command that measures the written policy on the suites of the run, its results beside the run's."""
    suites = setting(run.config, "evaluation.suites")
    named = [str(suite) for suite in suites] if isinstance(suites, list) and suites else ["function_calling"]
    options = []
    for suite in named:
        where = setting(run.config, f"evaluation.{suite}.path")
        texts = setting(run.config, f"evaluation.{suite}.texts")
        if where:
            options.append(argument(f"{suite}.path", str(where)))
        if texts and isinstance(texts, dict):
            options += [argument(f"+{suite}.texts.{name}", str(text)) for name, text in texts.items()]
        if not where and not texts and suite != "instructions":
            options.append(f"{suite}.path=DIR")
    return " ".join(
        [
            "starling evaluate",
            argument("model.path", f"{path}/policy"),
            shlex.quote(f"suites=[{','.join(named)}]"),
            *options,
            argument("run_dir", path),
        ]
    )


def opening(run: RunFiles, found: Sequence[Finding]) -> str:
    """Return judgement and next steps, side by side where there is room."""
    steps = "".join(
        f"<li>{markup.escape(words)}{f'<pre>{markup.escape(line)}</pre>' if line else ''}</li>"
        for words, line in next_steps(run, found)
    )
    judged = markup.section("Judgement", findings_list(found))
    return f'<div class="opening">{judged}{markup.section("What to do next", f"<ul class=steps>{steps}</ul>")}</div>'
