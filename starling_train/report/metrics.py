"""The `eval/*` keys of a run: which of them are suites, which of those skills, and what to call them."""

from starling_train.report.markup import clean
from starling_train.report.read_run import RunFiles, series, terms_of

SKILL_WORDS = ("function_calling", "instructions", "accuracy", "rate")
IN_PERCENT = ("function_calling", "instructions")
SCORE = "eval/score_"  # and the name of a term: its mean score
CASES = "_cases"  # what a skill's key with this at its end counts
# measured at every evaluation of ppo; everything else is a suite's or the user's
PLAIN = {
    f"eval/{name}"
    for name in (
        "score_mean", "score_std", "gold_mean", "kl_reference", "length_mean", "eos_fraction", "empty_fraction",
        "unscored",
    )
}  # fmt: skip


def suites(run: RunFiles) -> list[str]:
    """Return every measured `eval/*` key that is a suite's or the user's, in alphabetical order."""
    keys = {key for line in run.metrics for key in line if key.startswith("eval/")}
    own = keys - PLAIN - {f"{SCORE}{name}" for name in terms_of(run.config)}
    return sorted(key for key in own if not key.endswith(CASES) and series(run, key)[1])


def is_skill(key: str) -> bool:
    """Whether an `eval/*` key is a share of right answers, by its name."""
    return any(word in key for word in SKILL_WORDS)


def percent_scale(run: RunFiles, key: str) -> float:
    """Return the factor that turns a skill into percent: 1 if it is logged in percent, 100 if as a share."""
    in_percent = any(word in key for word in IN_PERCENT) or any(value > 1 for value in series(run, key)[1])
    return 1.0 if in_percent else 100.0


def parent(key: str, keys: list[str]) -> str | None:
    """Return the key that `key` is a category of: `eval/skill` for `eval/skill_simple` and `eval/skill/simple`."""
    return next((other for other in keys if key.startswith((f"{other}_", f"{other}/"))), None)


def suite_label(key: str) -> str:
    """Return a key as words: `eval/function_calling/simple` -> `function calling: simple`."""
    return clean(key).removeprefix("eval/").replace("/", ": ").replace("_", " ")
