"""Answers to the same held-out prompts before and after training, side by side."""

from collections import defaultdict
from typing import Any

from starling_train.report.markup import details, escape, note, number
from starling_train.report.read_run import RunFiles, is_number

VISIBLE = 6  # prompts on the page; the others are folded

Sample = dict[str, Any]


def section(run: RunFiles) -> str:
    """Return the before/after section, or a sentence that there is nothing to compare."""
    if not run.samples:
        return note("No samples were recorded (samples.jsonl is missing or empty).")
    steps = sorted({sample["step"] for sample in run.samples})
    first, last = steps[0], steps[-1] if len(steps) > 1 else None
    pairs = pair(run.samples, first, last)
    cards = [_card(before, after, first, last) for before, after in pairs]
    more = details(f"{len(cards) - VISIBLE} more prompts", "\n".join(cards[VISIBLE:])) if cards[VISIBLE:] else ""
    return _headline(pairs, first, last) + "\n" + "\n".join(cards[:VISIBLE]) + more


def pair(samples: list[Sample], first: int, last: int | None) -> list[tuple[Sample | None, Sample | None]]:
    """Pair samples of the first step with those of the last with the same prompt, in file order.

    The n-th answer to a prompt is paired with the n-th; an answer without a partner with None.
    """
    before, after = _by_prompt(samples, first), _by_prompt(samples, last)
    pairs: list[tuple[Sample | None, Sample | None]] = []
    for prompt in before | after:
        left, right = before.get(prompt, []), after.get(prompt, [])
        for i in range(max(len(left), len(right))):
            pairs.append((left[i] if i < len(left) else None, right[i] if i < len(right) else None))
    return pairs


def _by_prompt(samples: list[Sample], step: int | None) -> dict[str, list[Sample]]:
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample["step"] == step:
            groups[str(sample.get("prompt", ""))].append(sample)
    return groups


def _headline(pairs: list[tuple[Sample | None, Sample | None]], first: int, last: int | None) -> str:
    if last is None:
        return note(f"Samples exist for step {first} only; there is no “after” yet.")
    scored = [
        (a["score"], b["score"])
        for a, b in pairs
        if a and b and is_number(a.get("score")) and is_number(b.get("score"))
    ]
    better = sum(after > before for before, after in scored)
    rose = f" The score rose on <strong>{better} of {len(scored)}</strong> of them." if scored else ""
    return f"<p>The same held-out prompts at step {first} and at step {last}.{rose}</p>"


def _card(before: Sample | None, after: Sample | None, first: int, last: int | None) -> str:
    sample = before or after or {}
    right = "" if last is None else _answer(after, f"After, step {last}", before)
    return (
        f'<article class="sample"><div class="prompt">{_prompt(sample)}</div>'
        f'<div class="pair">{_answer(before, f"Before, step {first}")}{right}</div></article>'
    )


def _prompt(sample: Sample) -> str:
    """Return everything that was answered: the turns before the last one too, where there are any."""
    context = sample.get("context")
    turns = [turn for turn in context if isinstance(turn, dict)] if isinstance(context, list) else []
    parts = [(str(turn.get("role", "turn")), turn.get("content", "")) for turn in turns]
    parts.append(("Prompt", sample.get("prompt", "")))
    return "".join(
        f'<h4>{escape(role)}</h4><div class="text turn" dir="auto">{escape(str(content))}</div>'
        for role, content in parts
    )


def _answer(sample: Sample | None, title: str, reference: Sample | None = None) -> str:
    if sample is None:
        return f'<div class="answer"><h4>{title}</h4>{note("No answer was recorded.")}</div>'
    text = str(sample.get("response", ""))
    body = escape(text) if text else '<span class="none">(empty answer)</span>'
    return (
        f'<div class="answer"><h4>{title}</h4><div class="text" dir="auto">{body}</div>'
        f'<p class="facts">{_facts(sample, reference)}</p></div>'
    )


def _facts(sample: Sample, reference: Sample | None) -> str:
    """Return score (with its change), those of its terms, gold, KL, and whether the answer ended by itself."""
    facts = []
    terms = [(key, escape(key.removeprefix("score_")), "") for key in sample if key.startswith("score_")]
    for key, label, unit in (("score", "score", ""), *terms, ("gold", "gold", ""), ("kl", "KL", "nats")):
        if not is_number(sample.get(key)):
            continue
        fact = f"{label} {number(sample[key], unit)}"
        if reference and key != "kl" and is_number(reference.get(key)):
            gain = sample[key] - reference[key]
            mark = "up" if gain > 0 else "down" if gain < 0 else "same"
            fact += f' <span class="{mark}">({number(gain, signed=True)})</span>'
        facts.append(f"<span>{fact}</span>")
    if sample.get("ended") is False:
        facts.append('<span class="down">cut at the token limit</span>')
    return " ".join(facts)
