"""The table of reward kinds: where scores come from, by `reward.kind`.

They are what gives scores by itself (`sources`, where a new one is added) and their sum.
"""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from starling_train.config.sections import RewardConfig, ScorerConfig
from starling_train.rewards import sources, terms
from starling_train.rewards.admission import Admission
from starling_train.rewards.scorer import Scorer

Asks = Callable[[ScorerConfig], bool]  # whether one of the reward side is asked which prompts it takes

# by reward.kind
KINDS: dict[str, ModuleType] = {**sources.SOURCES, "terms": terms}


def of(config: RewardConfig) -> ModuleType:
    return KINDS[config.kind]


def described(config: RewardConfig) -> str:
    """Describe where the reward model is, and its kind; of a sum, each term with its weight."""
    return terms.described(config) if config.kind == "terms" else sources.described(config)


def load(config: RewardConfig, runtime: Any) -> Scorer:
    """Load the reward that the configuration names, or connect to it, with the score that it states for empty answers.

    Raises UserError.
    """
    if config.kind == "terms":
        return terms.load(config, runtime)
    return sources.load(config, runtime)


def everyone(scorer: ScorerConfig) -> bool:
    """Ask every one (`Asks`)."""
    return True


def without_weights(scorer: ScorerConfig) -> bool:
    """Ask those that have no weights here, which are there without being loaded (`Asks`)."""
    return not scorer.has_weights


def admit(
    config: RewardConfig,
    prompts: Sequence[list[dict]],
    rows: Sequence[dict[str, Any]],
    asks: Asks,
) -> Admission:
    """Ask what gives scores, of a sum each term, which prompts it takes.

    prompts: messages up to where an answer begins.
    rows: the columns of each prompt.
    asks: who is asked; the others are taken to refuse nothing.

    Raises UserError if all are refused.
    """
    if config.kind == "terms":
        return terms.admit(config, prompts, rows, asks)
    return sources.of(config).admit(config, prompts, rows) if asks(config) else Admission()
