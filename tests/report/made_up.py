"""Runs with made-up files and no training: a good one, and one for each fault that the page must name."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from synthetic_run import metrics_line, summary, write_lines, write_selection

STEPS, EVERY = 40, 10
# prompt, answer before training, answer after a good training
TALKS = (
    (
        "How do I descale a kettle?",
        "Use vinegar.",
        "Fill it half with water and half with vinegar, boil it once, wait an hour and rinse it twice.",
    ),
    (
        "Why is the sky blue?",
        "Because of the air.",
        "Air scatters short waves of light more than long ones, so blue reaches us from all sides.",
    ),
    (
        "What is a good name for a grey cat?",
        "Smoky.",
        "Ash, Pebble or Misty all fit; say them aloud and keep the one that the cat looks up at.",
    ),
    (
        "Explain recursion to a child.",
        "It is a function that calls itself.",
        "Imagine two mirrors that face each other: every picture holds a smaller one, until it is too small to see.",
    ),
    (
        "Which bread keeps longest?",
        "Rye bread.",
        "Dark rye with sourdough stays moist for a week in a cloth; white rolls are dry the next day.",
    ),
    (
        "Translate 'good evening' into Italian.",
        "Buona sera.",
        "It is “buona sera”; among friends “ciao” is enough at any hour.",
    ),
    (
        "How far is the moon?",
        "Very far, about 384,000 km.",
        "On average 384,400 kilometres: light needs a little over a second for the way.",
    ),
    (
        "My bicycle chain squeaks.",
        "Oil it.",
        "Wipe it clean with a rag, put one drop of oil on each link, turn the pedals backwards and wipe off the rest.",
    ),
    (
        "Give me a word for someone who loves books.",
        "Bibliophile.",
        "A bibliophile; if it is about reading rather than owning them, a bookworm.",
    ),
    (
        "When should tomatoes be planted?",
        "In spring.",
        "After the last frost, mid May in most of Europe, when nights stay above ten degrees.",
    ),
    (
        "What does a conductor do?",
        "He leads the orchestra.",
        "She sets the tempo, cues the players, balances the sections and decides beforehand how a piece should sound.",
    ),
    (
        "Is tea better than coffee?",
        "It depends.",
        "Tea has half the caffeine and wakes you more gently; for a long night coffee wins.",
    ),
    (
        "How can I sleep better?",
        "Sleep regularly.",
        "Get up at the same time daily, keep the room cool and dark, and leave screens outside the bedroom.",
    ),
    (
        "What is inflation?",
        "Prices rise.",
        "Money buys less each year: if a basket of goods costs 100 today and 103 in a year, it was 3 percent.",
    ),
    (
        "Write a title for a poem about rain.",
        "Rain.",
        "“What the Gutters Know”, or, quieter, “Grey Applause”.",
    ),
    (
        "How do magnets work?",
        "By magnetism.",
        "Electrons act as tiny bars; where many of them line up in iron, their pulls add up instead of cancelling.",
    ),
)

Lines = list[dict[str, Any]]


def write_made_up(path: Path, fault: str = "good", gold: bool = False) -> Path:
    """Write a run of 40 steps with one fault, or `good`, as the commands do. gold: the true quality was measured."""
    path.mkdir(parents=True)
    noise = random.Random(1)
    lines = [metrics_line(step, STEPS, EVERY, noise) for step in range(STEPS + 1)]
    for line in lines:
        line.pop("eval/gold_mean", None)
        if "eval/function_calling" in line:
            line["eval/function_calling_cases"] = 400
        if step_gold(line) is not None and gold:
            line["eval/gold_mean"] = step_gold(line)
    samples = [sample for line in lines if "eval/score_mean" in line for sample in answers(line["step"], gold)]
    FAULTS[fault](lines, samples)
    write_lines(path / "metrics.jsonl", lines)
    write_lines(path / "samples.jsonl", samples)
    write_selection(path, 6, noise)
    (path / "config.yaml").write_text(CONFIG.replace("NAME", fault))
    evals = [line for line in lines if "eval/score_mean" in line]
    (path / "summary.json").write_text(json.dumps(summary(evals, STEPS, 6) | {"name": fault}))
    start = {"step": 0, "at": "2026-11-29T01:44:00+00:00", "arguments": ["+recipe=small", f"name={fault}"]}
    write_lines(path / "starts.jsonl", [start])
    return path


def step_gold(line: dict[str, Any]) -> float | None:
    return 0.3 + line["step"] / 60 if "eval/score_mean" in line else None


def answers(step: int, gold: bool) -> Lines:
    """The same prompts at every evaluation; from step 20 on with the longer answers."""
    rows = []
    for index, (prompt, before, after) in enumerate(TALKS):
        row = {"step": step, "prompt": prompt, "response": before if step < STEPS / 2 else after}
        row |= {"score": -0.5 + step / 25 + index % 5 / 10, "kl": step / 7, "ended": True}
        rows.append(row | ({"gold": 0.3 + step / 60 + index % 3 / 50} if gold else {}))
    return rows


def done(line: dict[str, Any]) -> float:
    return line["step"] / STEPS


def good(lines: Lines, samples: Lines) -> None:
    """Change nothing."""


def kl_blow_up(lines: Lines, samples: Lines) -> None:
    """114.9 nats at the end, as in the field, without a target."""
    for line in lines:
        if "kl/reference" in line:
            line["kl/reference"] = 114.9 * done(line) ** 2
        if "eval/kl_reference" in line:
            line["eval/kl_reference"] = 114.9 * done(line) ** 2


def kl_270(lines: Lines, samples: Lines) -> None:
    """270 nats in the last steps only."""
    for line in lines:
        if "kl/reference" in line and line["step"] > 36:
            line["kl/reference"] = 270.0


def entropy_collapse(lines: Lines, samples: Lines) -> None:
    """Down to 1e-4 nats a token."""
    for line in lines:
        if "policy/entropy" in line:
            line["policy/entropy"] = max(1e-4, 1.2 * (1 - 2 * done(line)))


def clipped(lines: Lines, samples: Lines) -> None:
    """90 % of the ratios."""
    for line in lines:
        if "policy/clip_fraction" in line:
            line["policy/clip_fraction"] = 0.9


def length_hacking(lines: Lines, samples: Lines) -> None:
    """Answers of three times the length, which the score follows."""
    for line in lines:
        for key in ("response/length_mean", "eval/length_mean"):
            if key in line:
                line[key] = 30.0 + 66 * done(line)
    for sample in samples:
        if sample["step"] == STEPS:
            index = [prompt for prompt, _, _ in TALKS].index(sample["prompt"])
            others = [TALKS[(index + shift) % len(TALKS)][2] for shift in range(1, 2 + index % 4)]
            sample["response"] = " ".join([sample["response"], *others])
            sample["score"] = 0.5 + len(sample["response"]) / 200


def dead_critic(lines: Lines, samples: Lines) -> None:
    """It explains nothing, from beginning to end."""
    for line in lines:
        if "value/explained_variance" in line:
            line["value/explained_variance"] = 0.01 * (-1) ** line["step"]


def closing_sentence(lines: Lines, samples: Lines) -> None:
    """Every answer ends in the same words."""
    for sample in samples:
        if sample["step"] >= 30:
            sample["response"] += " I hope this helps! Let me know if you have any other questions."


def skill_lost(lines: Lines, samples: Lines) -> None:
    """Function calling falls from 92 to 71 %."""
    for line in lines:
        if "eval/function_calling" in line:
            line["eval/function_calling"] = 92.0 - 21 * done(line)


def skill_by_chance(lines: Lines, samples: Lines) -> None:
    """Five points less, of 37 cases."""
    for line in lines:
        if "eval/function_calling" in line:
            line["eval/function_calling"] = 100 * (35 - 2 * (line["step"] == STEPS)) / 37
            line["eval/function_calling_cases"] = 37


def guard_lost(lines: Lines, samples: Lines) -> None:
    """A guard that only warns saw the skill lost twice, by 9.5 points in the end."""
    for line in lines:
        if "eval/function_calling" in line:
            line["guard/kept"] = int(line["step"] not in (20, STEPS))
            if line["step"]:
                line |= {"guard/function_calling_fall": 9.5, "guard/function_calling_fall_low": 4.25}


def empty(lines: Lines, samples: Lines) -> None:
    """5 of 16 answers say nothing, as on a real model."""
    for sample in [sample for sample in samples if sample["step"] == STEPS][:5]:
        sample["response"] = ""


def looping(lines: Lines, samples: Lines) -> None:
    """Answers go round in circles, each in its own."""
    for sample in samples:
        if sample["step"] == STEPS:
            words = sample["response"].split()[:5]
            sample["response"] = " ".join(words * 5)


def truncated(lines: Lines, samples: Lines) -> None:
    """Six of ten answers run into the limit."""
    for line in lines:
        for key in ("response/eos_fraction", "eval/eos_fraction"):
            if key in line:
                line[key] = 0.95 - 0.55 * done(line)


def memorised(lines: Lines, samples: Lines) -> None:
    """The score rises on training prompts alone."""
    for line in lines:
        if "eval/score_mean" in line:
            line["eval/score_mean"] = -0.5 + 0.05 * done(line)


def engines_differ(lines: Lines, samples: Lines) -> None:
    """Another engine drew the answers, with weights that were not the policy's from the middle of the run on."""
    for line in lines:
        if "policy/entropy" in line:
            gap = 0.01 if line["step"] < STEPS / 2 else 0.4
            line |= {"policy/engine_gap_mean": gap, "policy/engine_gap_p99": 5 * gap}


FAULTS: dict[str, Callable[[Lines, Lines], None]] = {
    change.__name__: change
    for change in (
        good, kl_blow_up, kl_270, entropy_collapse, clipped, length_hacking, dead_critic, closing_sentence, skill_lost,
        skill_by_chance, empty, looping, truncated, memorised, guard_lost,
        engines_differ,
    )
}  # fmt: skip

CONFIG = """\
name: NAME
seed: 0
model:
  path: openchat/openchat-3.5-0106
  dtype: bfloat16
freeze:
  method: snr
  top_percent: 25.0
reward:
  kind: starling_7b
  path: berkeley-nest/Starling-RM-7B-alpha
data:
  path: berkeley-nest/Nectar
  eval_prompts: 128
rollout:
  max_new_tokens: 512
algorithm:
  name: ppo
  steps: 40
  prompts_per_step: 32
  kl:
    coefficient: 0.01
    target: null
guard:
  skills: ['eval/function_calling:3']
  then: warn
evaluation:
  suites: [function_calling]
  function_calling:
    path: data/bfcl
"""
