"""The table of reward kinds: where scores come from, by `reward.kind`.

A kind is a module beside this one and a row here; its keys are checked in `config/sections.py`. A module has

    LOCATION       the key of the section `reward` that says where the model is
    SCORED_BY      the keys that its scores depend on besides
    HOLDS_MEMORY   whether another model has to be released for it
    check(config, weights)               check what can be checked without loading; weights=False: it need not exist
    load(config, runtime)                a Scorer, on the run's device
    identity(config, identify, weights)  which model it is, as JSON; identify: hashes the files of a ModelSource
    columns(config)                      names of the columns of the data that it is given where they exist
    admit(config, prompts, rows)         an Admission of prompts; rows: the columns of each

and raises UserError.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, Protocol

from starling_train.config.fields import UserError
from starling_train.config.sections import RewardConfig
from starling_train.data import reward_templates
from starling_train.models.budget import Budget
from starling_train.rewards import directory, function, served

# by reward.kind
KINDS: dict[str, ModuleType] = {
    **dict.fromkeys(reward_templates.KINDS, directory),
    "server": served,
    "function": function,
}


class Mark(Protocol):
    """What tells one reward from another, as numbers."""

    def state_dict(self) -> dict[str, float]:
        """Return the numbers, for a checkpoint."""

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Compare with those of a checkpoint, and say if they differ."""


class Scorer(Protocol):
    """What gives scores.

    truncated: answers so far that lost their beginning. shortened: conversations so far that did, within their prompt
    or further. budget: of tokens at a time, that a run may halve, or None.
    may_leave_out: nan means that an answer is not to be scored, and is no fault. mark: what a checkpoint keeps of it,
    as numbers, to notice at the next start that it has changed; None where nothing is kept. facts: what a server tells
    of itself, for config.yaml; empty for the others.

    columns: of each conversation's row of the data, for a function; the others have no use for them.
    """

    @property
    def truncated(self) -> int: ...
    @property
    def shortened(self) -> int: ...

    budget: Budget | None
    may_leave_out: bool
    mark: "Mark | None"
    facts: dict[str, Any]

    def score(
        self, conversations: Sequence[list[dict]], columns: Sequence[dict[str, Any]] | None = None
    ) -> list[float]:
        """Return one score a conversation, in order. Raises UserError."""

    def score_each(
        self, conversations: Sequence[list[dict]], columns: Sequence[dict[str, Any]] | None = None
    ) -> list[float | UserError]:
        """Return one score a conversation, or what is wrong with it."""


def of(config: RewardConfig) -> ModuleType:
    return KINDS[config.kind]


def described(config: RewardConfig) -> str:
    """Describe where the reward model is, and its kind."""
    return f"{getattr(config, of(config).LOCATION)} ({config.kind})"
