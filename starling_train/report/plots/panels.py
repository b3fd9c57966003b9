"""The plots of a report: the panels of each command, and which of them a run has."""

import itertools
from collections.abc import Sequence
from typing import Any

from starling_train.report.judgement.limits import POINTS_ALLOWED
from starling_train.report.markup import clean
from starling_train.report.metrics import SCORE, is_skill, parent, percent_scale, suite_label, suites
from starling_train.report.plots.panel import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    RED,
    Panel,
    PlotLine,
    PlotRow,
    panel,
    row,
)
from starling_train.report.read_run import RunFiles, series, setting, terms_of

# upright lines where a guarded skill was lost
GUARD: dict[str, Any] = {"mark": "guard/kept", "mark_label": "guard acted"}
# an axis on which three points of difference are a third of the height, or more of it
PERCENT: dict[str, Any] = {"lowest": -1.0, "highest": 101.0, "span": 9.0}


def _both(training: str, held_out: str, scale: float = 1.0) -> tuple[PlotLine, PlotLine]:
    """Make two curves: the same number on training and on held-out data."""
    return PlotLine(training, "training", BLUE, scale=scale), PlotLine(
        held_out, "held-out", RED, points=True, scale=scale
    )


REWARD = panel(
    "reward",
    "Reward",
    "Score of the reward model and, where it is known, the true quality (gold). Band: one standard deviation over the "
    "step's responses. Good: the held-out points climb with the training line and level off. Bad: training climbs and "
    "held-out stays flat, or the true quality falls while the score rises: then the policy exploits the reward model.",
    row(
        "score",
        PlotLine("reward/score_mean", "training prompts", BLUE, spread="reward/score_std"),
        PlotLine("eval/score_mean", "held-out prompts", RED, points=True),
    ),
    row("gold", PlotLine("eval/gold_mean", "held-out prompts", RED, points=True)),
)

TERMS = (
    "The reward above is the weighted sum of these, each as it was given, without weight and scale. Good: all of them "
    "climb, or stay. Bad: one falls while the sum climbs: the policy pays for one with another; change the weights."
)

RANKING = panel(
    "ranking",
    "Ranking of answers",
    "K-wise loss (1.42 before training, with seven answers) and share of answer pairs in the right order, over all "
    "pairs and by how many places lie between the two. Good: held-out follows training; distant pairs come out best. "
    "Bad: training improves alone, so that rows are memorised.",
    row("loss", *_both("rm/loss", "eval/kwise_loss")),
    row("pairs right, %", *_both("rm/accuracy", "eval/preference_accuracy", 100.0)),
    row(
        "by distance, %",
        *(
            PlotLine(f"eval/preference_accuracy_distance_{d}", f"{d} apart", colour, points=True, scale=100.0)
            for d, colour in enumerate((BLUE, ORANGE, GREEN, RED, PURPLE, INK), start=1)
        ),
    ),
)

PREFERENCE = panel(
    "preference",
    "Pairs of answers",
    "The reward that the policy implies of an answer is beta times the log of its probability over the one before "
    "training. Right: the better answer has the larger one. Good: held-out follows training, and the margin grows "
    "because worse answers become unlikely while better ones keep their probability. Bad: training improves alone "
    "(pairs are memorised), or the better answers' reward falls far below 0 too: the policy then moves to answers "
    "that nobody ranked.",
    row("loss", *_both("dpo/loss", "eval/loss")),
    row("pairs right, %", *_both("dpo/accuracy", "eval/preference_accuracy", 100.0)),
    row("margin", *_both("dpo/margin", "eval/reward_margin")),
    row("anchor", PlotLine("guard/coefficient", "KL coefficient of the guard", ORANGE), floor=0.0, **GUARD),
    row(
        "reward",
        PlotLine("dpo/chosen_reward", "better, training", GREEN),
        PlotLine("dpo/rejected_reward", "worse, training", ORANGE),
        PlotLine("eval/chosen_reward", "better, held-out", GREEN, points=True),
        PlotLine("eval/rejected_reward", "worse, held-out", ORANGE, points=True),
    ),
)

PANELS = (
    REWARD,
    panel(
        "kl",
        "Distance from the starting policy",
        "KL to the reference, summed over a response, and the coefficient of the penalty on it. Good: a slow rise "
        "that settles (near the target, where one is set). Bad: negative for many steps (generation and training "
        "disagree), or a steep rise without a gain in held-out score.",
        row(
            "KL (nats)",
            *_both("kl/reference", "eval/kl_reference"),
            target="algorithm.kl.target",
            target_label="target",
        ),
        row("coefficient", PlotLine("kl/coefficient", "coefficient", ORANGE), floor=0.0, **GUARD),
        row("penalty in the loss", PlotLine("policy/kl_loss", "coefficient times KL", PURPLE), floor=0.0),
    ),
    panel(
        "length",
        "Response length",
        "Good: length settles and nearly every response ends by itself. Bad: length climbs together with the score "
        "(reward models favour long answers), or fewer responses end before the token limit.",
        row(
            "tokens",
            PlotLine("response/length_max", "longest", ORANGE),
            PlotLine("response/length_mean", "mean", BLUE),
            PlotLine("eval/length_mean", "held-out", RED, points=True),
            floor=0.0,
        ),
        row(
            "ended by itself, %",
            *_both("response/eos_fraction", "eval/eos_fraction", 100.0),
            floor=0.0,
            ceiling=103.0,
        ),
    ),
    panel(
        "policy",
        "Entropy and clipping",
        "Entropy is per token. Good: it falls slowly and stays above zero; a few percent of tokens are clipped. Bad: "
        "entropy drops to nothing (the policy repeats itself), or more than about 30 % are clipped (steps too large).",
        row("entropy (nats)", PlotLine("policy/entropy", "entropy", BLUE), floor=0.0),
        row(
            "clipped, %",
            PlotLine("policy/clip_fraction", "policy", ORANGE, scale=100.0),
            PlotLine("value/clip_fraction", "value", PURPLE, scale=100.0),
            floor=0.0,
        ),
    ),
    panel(
        "value",
        "Value fit",
        "Explained variance: 1 predicts every return, 0 is no better than a constant, below 0 is worse (the axis ends "
        "at -1). Good: it rises in the first steps and stays up. Bad: around or below 0 throughout, so that "
        "advantages are mostly noise.",
        row("explained variance", PlotLine("value/explained_variance", "", BLUE), ceiling=1.05, lowest=-1.0),
        row("value loss", PlotLine("value/loss", "", ORANGE), floor=0.0),
    ),
    panel(
        "optimiser",
        "Optimiser",
        "Good: a gradient norm without growing peaks. Bad: peaks that grow, or skipped steps (gradients that "
        "are not numbers).",
        row("gradient norm", PlotLine("optim/gradient_norm", "before clipping", BLUE), floor=0.0),
        row("learning rate", PlotLine("optim/learning_rate", "", ORANGE), floor=0.0),
    ),
    panel(
        "time",
        "Time and speed",
        "Where the seconds of a step go. Generation is usually the largest part; a step that grows slower follows "
        "longer responses.",
        row(
            "seconds",
            PlotLine("time/rollout_s", "generate", BLUE),
            PlotLine("time/score_s", "score", ORANGE),
            PlotLine("time/update_s", "update", GREEN),
            floor=0.0,
            stacked=True,
        ),
        row("tokens / s", PlotLine("throughput/tokens_per_s", "", BLUE), floor=0.0),
    ),
)


def of(run: RunFiles) -> tuple[Panel, ...]:
    """Return the panels of a run's page, in order: those of a reward model's training, of DPO, or of PPO."""
    if series(run, "rm/loss")[1]:
        return (RANKING, *(panel for panel in PANELS if panel.slug in ("optimiser", "time")))
    if series(run, "dpo/loss")[1]:
        shared = [panel for panel in PANELS if panel.slug in ("length", "optimiser", "time")]
        return (PREFERENCE, *eval_panels(run, drawn=PREFERENCE), *shared)
    has_critic = setting(run.config, "algorithm.critic") != "none"
    rest = [panel for panel in PANELS[1:] if has_critic or panel.slug != "value"]
    return (REWARD, *term_panels(run), *eval_panels(run), *rest)


def term_panels(run: RunFiles) -> list[Panel]:
    """Make a panel of the terms that the reward is a sum of, an axis for each: their scores are of different sizes."""
    names = list(terms_of(run.config))
    rows = [
        row(
            clean(name)[:30],
            PlotLine(f"reward/terms/{name}_mean", "training prompts", BLUE, spread=f"reward/terms/{name}_std"),
            PlotLine(f"{SCORE}{name}", "held-out prompts", RED, points=True),
        )
        for name in names
    ]
    slug = _slug("-".join(["terms", *names]))  # beside a run with other terms each has a panel of its own
    return [panel(slug, "Terms of the reward", TERMS, *rows)] if rows else []


def skill_row(curves: Sequence[PlotLine]) -> PlotRow:
    """Make an axis of percent on which 3 points can be seen, with a line 3 points below the first result."""
    target = {"target": "eval/function_calling", "target_label": "3 points lost", "tolerance": -POINTS_ALLOWED}
    return row("right, %", *curves, **target, **GUARD, **PERCENT)


def eval_panels(run: RunFiles, drawn: Panel | None = None) -> list[Panel]:
    """Make panels of skills in percent, of their categories, and of each other number that is not in `drawn`."""
    covered = {line.key for row in drawn.rows for line in row.lines} if drawn else set()
    keys = [key for key in suites(run) if key not in covered]
    skills = [key for key in keys if is_skill(key)]
    whole = [key for key in skills if parent(key, skills) is None]
    reading = (
        "Skills that the reward does not train, on held-out tasks. Good: flat or rising. Bad: a loss of more "
        "than 3 points: the policy pays for the score with something else."
    )
    panels = [panel("skills", "Skill kept", reading, skill_row(_curves(run, whole)))]
    for skill in whole:
        if categories := [key for key in skills if parent(key, skills) == skill]:
            title = f"{suite_label(skill).capitalize()}, by category"
            curves = _curves(run, categories, skill)
            panels.append(panel(_slug(skill), title, "", row("right, %", *curves, **PERCENT)))
    for key in (key for key in keys if key not in skills):
        curve = PlotLine(key, "held-out", PURPLE, points=True)
        panels.append(panel(_slug(key), f"Held-out: {suite_label(key)}", "", row("value", curve, **GUARD)))
    return panels


def _slug(key: str) -> str:
    return clean(key).replace("/", "-")


def _curves(run: RunFiles, keys: list[str], skill: str = "eval") -> tuple[PlotLine, ...]:
    """Make a curve for each key, labelled by what its name adds to the skill's name."""
    colours = itertools.cycle((GREEN, BLUE, ORANGE, PURPLE, RED))
    labels = [clean(key[len(skill) + 1 :]).replace("_", " ")[:30] for key in keys]
    return tuple(
        PlotLine(key, label, colour, points=True, scale=percent_scale(run, key))
        for key, label, colour in zip(keys, labels, colours, strict=False)
    )
