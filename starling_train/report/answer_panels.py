"""The panels of training on answers that were given: rankings for a reward model, pairs for DPO."""

from starling_train.report.panel import BLUE, GREEN, INK, ORANGE, PURPLE, RED, Line, Panel, Row

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


PREFERENCE = Panel(
    "preference",
    "Pairs of answers",
    "The reward that the policy implies of an answer is beta times the log of its probability over the one before "
    "training. Right: the better answer has the larger one. Good: held-out follows training, and the margin grows "
    "because worse answers become unlikely while better ones keep their probability. Bad: training improves alone "
    "(pairs are memorised), or the better answers' reward falls far below 0 too: the policy then moves to answers that "
    "nobody ranked.",
    (
        Row("loss", (Line("dpo/loss", "training", BLUE), Line("eval/loss", "held-out", RED, points=True))),
        Row(
            "pairs right, %",
            (
                Line("dpo/accuracy", "training", BLUE, scale=100.0),
                Line("eval/preference_accuracy", "held-out", RED, points=True, scale=100.0),
            ),
        ),
        Row("margin", (Line("dpo/margin", "training", BLUE), Line("eval/reward_margin", "held-out", RED, points=True))),
        Row(
            "reward",
            (
                Line("dpo/chosen_reward", "better, training", GREEN),
                Line("dpo/rejected_reward", "worse, training", ORANGE),
                Line("eval/chosen_reward", "better, held-out", GREEN, points=True),
                Line("eval/rejected_reward", "worse, held-out", ORANGE, points=True),
            ),
        ),
    ),
)
