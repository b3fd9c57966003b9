"""The table of what gives scores by itself, by `reward.kind` or the kind of a term: a model, a server, a function.

A row is a module beside this one; its keys are checked in `config/sections.py`. A module has

    LOCATION       the key of the section `reward` that says where the model is
    SCORED_BY      the keys that its scores depend on besides
    check(config, weights)               check what can be checked without loading; weights=False: it need not exist
    load(config, runtime)                a Scorer, on the run's device
    identity(config, identify, weights)  which model it is, as JSON; identify: hashes the files of a ModelSource
    columns(config)                      names of the columns of the data that it is given where they exist
    admit(config, prompts, rows)         an Admission of prompts; rows: the columns of each

and raises UserError, with keys as of the section `reward`; those of a term are named by `terms`.
"""

from types import ModuleType
from typing import Any

from starling_train.config.sections import ScorerConfig
from starling_train.data import reward_templates
from starling_train.rewards import directory, function, served
from starling_train.rewards.empty_answers import StatedForEmpty
from starling_train.rewards.scorer import Scorer

SOURCES: dict[str, ModuleType] = {
    **dict.fromkeys(reward_templates.KINDS, directory),
    "server": served,
    "function": function,
}


def of(config: ScorerConfig) -> ModuleType:
    return SOURCES[config.kind]


def load(config: ScorerConfig, runtime: Any) -> Scorer:
    """Load it, or connect to it, with the score that it states for empty answers. Raises UserError."""
    scorer = of(config).load(config, runtime)
    return scorer if config.empty_response is None else StatedForEmpty(scorer, config.empty_response)


def described(config: ScorerConfig) -> str:
    """Describe where the reward model is, and its kind."""
    return f"{getattr(config, of(config).LOCATION)} ({config.kind})"
