"""What the plots of a report show, as data: keys, labels with units, colours, and how to read each one."""

import math
from dataclasses import dataclass

from starling_train.report.markup import clean
from starling_train.report.read_run import Run, series

# Okabe and Ito's palette, safe for colour-blind readers. The page exchanges these exact values for its own
# variables, so that plots follow light and dark.
INK, GRID = "#24292f", "#d8dee4"
BLUE, ORANGE, GREEN, RED, PURPLE = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7"
CYCLE = (BLUE, ORANGE, GREEN, RED, PURPLE)

HEADLINE_EVALS = ("eval/score_mean", "eval/score_std", "eval/gold_mean")
SKILL_WORDS = ("function_calling", "accuracy", "fraction", "rate")


@dataclass(frozen=True)
class Line:
    """One curve: a key of `metrics.jsonl`; `spread` names the key of its standard deviation."""

    key: str
    label: str
    colour: str = BLUE
    spread: str = ""
    points: bool = False
    scale: float = 1.0


@dataclass(frozen=True)
class Row:
    """One axis: its curves, and optionally a dashed line, limits, stacking.

    `floor` and `ceiling` fix an end of the axis; below `lowest` it never reaches, so that one outlier does
    not flatten the rest. The dashed line stands at the setting `target` of the config; with a `tolerance`,
    that far from the first value of the metric `target`.
    """

    ylabel: str
    lines: tuple[Line, ...]
    target: str = ""
    target_label: str = ""
    tolerance: float | None = None
    floor: float | None = None
    ceiling: float | None = None
    lowest: float = -math.inf
    stacked: bool = False


@dataclass(frozen=True)
class Panel:
    """One figure of the page; `reading` tells what good and bad look like."""

    slug: str
    title: str
    reading: str
    rows: tuple[Row, ...]


REWARD = Panel(
    "reward",
    "Reward",
    "Score of the reward model and, where it is known, the true quality (gold). Band: one standard "
    "deviation over the step's responses. Good: the held-out points climb with the training line and "
    "level off. Bad: training climbs and held-out stays flat, or the true quality falls while the score "
    "rises: then the policy exploits the reward model.",
    (
        Row(
            "score",
            (
                Line("reward/score_mean", "training prompts", BLUE, spread="reward/score_std"),
                Line("eval/score_mean", "held-out prompts", RED, points=True),
            ),
        ),
        Row("gold", (Line("eval/gold_mean", "held-out prompts", RED, points=True),)),
    ),
)

PANELS = (
    REWARD,
    Panel(
        "kl",
        "Distance from the starting policy",
        "KL to the reference, summed over a response, and the coefficient of the penalty on it. Good: a "
        "slow rise that settles (near the target, where one is set). Bad: negative for many steps "
        "(generation and training disagree), or a steep rise without a gain in held-out score.",
        (
            Row(
                "KL (nats)",
                (Line("kl/reference", "KL to reference", BLUE),),
                target="algorithm.kl.target",
                target_label="target",
            ),
            Row("coefficient", (Line("kl/coefficient", "coefficient", ORANGE),), floor=0.0),
        ),
    ),
    Panel(
        "length",
        "Response length",
        "Good: length settles and nearly every response ends by itself. Bad: length climbs together with "
        "the score (reward models favour long answers), or fewer responses end before the token limit.",
        (
            Row(
                "tokens",
                (
                    Line("response/length_mean", "mean", BLUE),
                    Line("response/length_max", "longest", ORANGE),
                ),
                floor=0.0,
            ),
            Row(
                "ended by itself, %",
                (Line("response/eos_fraction", "end-of-turn", GREEN, scale=100.0),),
                floor=0.0,
                ceiling=103.0,
            ),
        ),
    ),
    Panel(
        "policy",
        "Entropy and clipping",
        "Entropy is per token. Good: it falls slowly and stays above zero; a few percent of tokens are "
        "clipped. Bad: entropy drops to nothing (the policy repeats itself), or more than about 30 % are "
        "clipped (steps too large).",
        (
            Row("entropy (nats)", (Line("policy/entropy", "entropy", BLUE),), floor=0.0),
            Row(
                "clipped, %",
                (
                    Line("policy/clip_fraction", "policy", ORANGE, scale=100.0),
                    Line("value/clip_fraction", "value", PURPLE, scale=100.0),
                ),
                floor=0.0,
            ),
        ),
    ),
    Panel(
        "value",
        "Value fit",
        "Explained variance: 1 predicts every return, 0 is no better than a constant, below 0 is worse "
        "(the axis ends at -1). Good: it rises in the first steps and stays up. Bad: around or below 0 "
        "throughout, so that advantages are mostly noise.",
        (
            Row(
                "explained variance", (Line("value/explained_variance", "", BLUE),), ceiling=1.05, lowest=-1.0
            ),
            Row("value loss", (Line("value/loss", "", ORANGE),), floor=0.0),
        ),
    ),
    Panel(
        "optimiser",
        "Optimiser",
        "Good: a gradient norm without growing peaks. Bad: peaks that grow, or skipped steps (not-a- "
        "number gradients).",
        (
            Row("gradient norm", (Line("optim/gradient_norm", "before clipping", BLUE),), floor=0.0),
            Row("learning rate", (Line("optim/learning_rate", "", ORANGE),), floor=0.0),
        ),
    ),
    Panel(
        "time",
        "Time and speed",
        "Where the seconds of a step go. Generation is usually the largest part; a step that grows slower "
        "follows longer responses.",
        (
            Row(
                "seconds",
                (
                    Line("time/rollout_s", "generate", BLUE),
                    Line("time/score_s", "score", ORANGE),
                    Line("time/update_s", "update", GREEN),
                ),
                floor=0.0,
                stacked=True,
            ),
            Row("tokens / s", (Line("throughput/tokens_per_s", "", BLUE),), floor=0.0),
        ),
    ),
)


def is_skill(key: str) -> bool:
    """True for `eval/*` keys that are shares between 0 and 1, by their name."""
    return key.startswith("eval/") and any(word in key for word in SKILL_WORDS)


def eval_keys(run: Run) -> list[str]:
    """Every `eval/*` key with at least one number, in alphabetical order."""
    keys = {key for line in run.metrics for key in line if key.startswith("eval/")}
    return sorted(key for key in keys if series(run, key)[1])


def suite_label(key: str) -> str:
    """`eval/function_calling/simple` -> `function calling: simple`."""
    return clean(key).removeprefix("eval/").replace("/", ": ").replace("_", " ")


def skill_row(curves: tuple[Line, ...]) -> Row:
    """Shares in percent from 0 to 100, with a line 3 points below the first function-calling result."""
    limits = {"floor": 0.0, "ceiling": 103.0}
    return Row("right, %", curves, "eval/function_calling", "3 points lost", tolerance=-3.0, **limits)


def eval_panels(run: Run) -> list[Panel]:
    """Skills in percent on one axis, and every other held-out measurement on an axis of its own."""
    rest = [key for key in eval_keys(run) if key not in HEADLINE_EVALS]
    skills = [key for key in rest if is_skill(key)]
    curves = tuple(
        Line(key, suite_label(key), CYCLE[(index + 2) % len(CYCLE)], points=True, scale=100.0)
        for index, key in enumerate(skills)
    )
    reading = (
        "Skills that the reward does not train, on held-out tasks. Good: flat or rising. Bad: a loss of "
        "more than 3 points: the policy pays for the score with something else."
    )
    panels = [Panel("skills", "Skill kept", reading, (skill_row(curves),))]
    for key in rest:
        if key not in skills:
            line = Line(key, "held-out", PURPLE, points=True)
            title = f"Held-out: {suite_label(key)}"
            panels.append(Panel(clean(key).replace("/", "-"), title, "", (Row("value", (line,)),)))
    return panels
