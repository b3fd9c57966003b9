"""What the plots of a report show, as data: keys, labels with units, colours, and how to read each one."""

import itertools
import math
from dataclasses import dataclass

from starling_train.report.markup import clean
from starling_train.report.read_run import Run, series

# Okabe and Ito's palette, safe for colour-blind readers. The page exchanges these exact values for its own
# variables, so that plots follow light and dark.
INK, GRID = "#24292f", "#d8dee4"
BLUE, ORANGE, GREEN, RED, PURPLE = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7"

SKILL_WORDS = ("function_calling", "accuracy", "rate")


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
                (
                    Line("kl/reference", "training", BLUE),
                    Line("eval/kl_reference", "held-out", RED, points=True),
                ),
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
                    Line("response/length_max", "longest", ORANGE),
                    Line("response/length_mean", "mean", BLUE),
                    Line("eval/length_mean", "held-out", RED, points=True),
                ),
                floor=0.0,
            ),
            Row(
                "ended by itself, %",
                (
                    Line("response/eos_fraction", "training", BLUE, scale=100.0),
                    Line("eval/eos_fraction", "held-out", RED, points=True, scale=100.0),
                ),
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
            Row("explained variance", (Line("value/explained_variance", "", BLUE),), ceiling=1.05, lowest=-1.0),
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


RANKING = Panel(
    "ranking",
    "Ranking of answers",
    "K-wise loss (1.42 before training, with seven answers) and share of answer pairs in the right order, over all "
    "pairs and by how many places lie between the two. Good: held-out follows training; distant pairs come out best. "
    "Bad: training improves alone, so that rows are memorised.",
    (
        Row("loss", (Line("rm/loss", "training", BLUE), Line("eval/kwise_loss", "held-out", RED, points=True))),
        Row(
            "pairs right, %",
            (
                Line("rm/accuracy", "training", BLUE, scale=100.0),
                Line("eval/preference_accuracy", "held-out", RED, points=True, scale=100.0),
            ),
        ),
        Row(
            "by distance, %",
            tuple(
                Line(f"eval/preference_accuracy_distance_{d}", f"{d} apart", colour, points=True, scale=100.0)
                for d, colour in enumerate((BLUE, ORANGE, GREEN, RED, PURPLE, INK), start=1)
            ),
        ),
    ),
)


def of(run: Run) -> tuple[Panel, ...]:
    """The panels of a run's page, in order: those of a reward model's training, or of a policy's."""
    if series(run, "rm/loss")[1]:
        return (RANKING, *(panel for panel in PANELS if panel.slug in ("optimiser", "time")))
    return (PANELS[0], *eval_panels(run), *PANELS[1:])


def suites(run: Run) -> list[str]:
    """Every measured `eval/*` key that has no place in `PANELS`, in alphabetical order."""
    placed = {line.key for panel in PANELS for row in panel.rows for line in row.lines}
    keys = {key for line in run.metrics for key in line if key.startswith("eval/")}
    return sorted(key for key in keys - placed - {"eval/score_std"} if series(run, key)[1])


def is_skill(key: str) -> bool:
    """True for `eval/*` keys that are shares of right answers, by their name."""
    return any(word in key for word in SKILL_WORDS)


def percent_scale(run: Run, key: str) -> float:
    """What turns a skill into percent: 1 where it is logged so, 100 where it is logged as a share."""
    in_percent = "function_calling" in key or any(value > 1 for value in series(run, key)[1])
    return 1.0 if in_percent else 100.0


def parent(key: str, keys: list[str]) -> str | None:
    """The key that `key` is a category of: `eval/skill` for `eval/skill_simple` and `eval/skill/simple`."""
    return next((other for other in keys if key.startswith((f"{other}_", f"{other}/"))), None)


def suite_label(key: str) -> str:
    """`eval/function_calling/simple` -> `function calling: simple`."""
    return clean(key).removeprefix("eval/").replace("/", ": ").replace("_", " ")


def skill_row(curves: tuple[Line, ...]) -> Row:
    """Percent from 0 to 100, with a line 3 points below the first function-calling result."""
    limits = {"floor": 0.0, "ceiling": 103.0}
    return Row("right, %", curves, "eval/function_calling", "3 points lost", tolerance=-3.0, **limits)


def eval_panels(run: Run) -> list[Panel]:
    """Skills in percent, their categories, and an axis for each other number."""
    keys = suites(run)
    skills = [key for key in keys if is_skill(key)]
    whole = [key for key in skills if parent(key, skills) is None]
    reading = (
        "Skills that the reward does not train, on held-out tasks. Good: flat or rising. Bad: a loss of more "
        "than 3 points: the policy pays for the score with something else."
    )
    panels = [Panel("skills", "Skill kept", reading, (skill_row(_curves(run, whole)),))]
    for skill in whole:
        categories = [key for key in skills if parent(key, skills) == skill]
        row = Row("right, %", _curves(run, categories, skill), floor=0.0, ceiling=103.0)
        if categories:
            title = f"{suite_label(skill).capitalize()}, by category"
            panels.append(Panel(clean(skill).replace("/", "-"), title, "", (row,)))
    for key in keys:
        if key not in skills:
            line = Line(key, "held-out", PURPLE, points=True)
            title = f"Held-out: {suite_label(key)}"
            panels.append(Panel(clean(key).replace("/", "-"), title, "", (Row("value", (line,)),)))
    return panels


def _curves(run: Run, keys: list[str], skill: str = "eval") -> tuple[Line, ...]:
    """A curve a key, labelled by what its name adds to that of the skill."""
    colours = itertools.cycle((GREEN, BLUE, ORANGE, PURPLE, RED))
    labels = [clean(key[len(skill) + 1 :]).replace("_", " ")[:30] for key in keys]
    return tuple(
        Line(key, label, colour, points=True, scale=percent_scale(run, key))
        for key, label, colour in zip(keys, labels, colours, strict=False)
    )
