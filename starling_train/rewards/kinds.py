"""The table of reward kinds: everything that the rest of the house asks about `reward.kind`.

A new kind is a file beside this one and a row here; its keys are checked in `config/sections.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from starling_train.config.fields import UserError
from starling_train.config.sections import RewardConfig
from starling_train.data import reward_templates
from starling_train.models.budget import Budget
from starling_train.rewards import directory, served
from starling_train.run.runtime import Runtime


class Scorer(Protocol):
    """What gives scores.

    truncated: answers so far that lost their beginning. budget: of tokens at a time, that a run may halve, or None.
    """

    truncated: int
    budget: Budget | None

    def score(self, conversations: Sequence[list[dict]]) -> list[float]:
        """One score a conversation, in order. Raises UserError."""

    def score_each(self, conversations: Sequence[list[dict]]) -> list[float | UserError]:
        """One score a conversation, or what is wrong with it."""


@dataclass(frozen=True)
class RewardKind:
    """One row.

    place: the key of the section that says where it is.
    check: what can be found wrong without loading it; the flag is False where weights (or a server) need not be there.
    load: it, on the run's device, with its own tokenizer.
    identity: who it is, as JSON; given a function that hashes a directory's files, and the flag of `check`.
    holds_memory: whether the one before has to be let go for it. scored_by: keys that its scores depend on besides.
    """

    place: str
    check: Callable[[RewardConfig, bool], None]
    load: Callable[[RewardConfig, Runtime], Scorer]
    identity: Callable[[RewardConfig, Callable[[str, Path], dict[str, Any]], bool], dict[str, Any]]
    holds_memory: bool
    scored_by: tuple[str, ...] = ()


DIRECTORY = RewardKind(
    "path", directory.check, directory.load, directory.identity, holds_memory=True, scored_by=directory.SCORED_BY
)
SERVER = RewardKind("url", served.check, served.load, served.identity, holds_memory=False)
# by reward.kind
KINDS: dict[str, RewardKind] = {**dict.fromkeys(reward_templates.KINDS, DIRECTORY), "server": SERVER}


def of(config: RewardConfig) -> RewardKind:
    return KINDS[config.kind]


def described(config: RewardConfig) -> str:
    """Where it is, and its kind, for people to read."""
    return f"{getattr(config, of(config).place)} ({config.kind})"
