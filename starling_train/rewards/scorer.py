"""What gives scores, as the rest of a run sees it."""

from collections.abc import Sequence
from typing import Any, Protocol

from starling_train.config.fields import UserError
from starling_train.models.budget import Budget


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
