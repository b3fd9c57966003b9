"""Answers without text: which they are, and a stated score for them in place of the reward's own."""

from collections.abc import Sequence
from typing import Any

from starling_train.config.fields import UserError
from starling_train.rewards.scorer import Mark, Scorer


def is_empty(conversation: Sequence[dict]) -> bool:
    """Return whether the answer, the last message, has nothing but white space."""
    return not conversation[-1]["content"].strip()


class StatedForEmpty:
    """A reward whose score of empty answers is `reward.empty_response`; it is asked about the others only."""

    def __init__(self, reward: Scorer, stated: float):
        self._reward, self._stated = reward, stated
        self.budget, self.may_leave_out = reward.budget, reward.may_leave_out
        self.mark: Mark | None = reward.mark
        self.facts = reward.facts

    @property
    def truncated(self) -> int:
        return self._reward.truncated

    @property
    def shortened(self) -> int:
        return self._reward.shortened

    def score(
        self, conversations: Sequence[list[dict]], columns: Sequence[dict[str, Any]] | None = None
    ) -> list[float]:
        """Return one score a conversation, in order. Raises UserError."""
        asked, of_asked = self._asked(conversations, columns)
        scores = [self._stated] * len(conversations)
        if asked:
            for index, value in zip(asked, self._reward.score(*of_asked), strict=True):
                scores[index] = value
        return scores

    def score_each(
        self, conversations: Sequence[list[dict]], columns: Sequence[dict[str, Any]] | None = None
    ) -> list[float | UserError]:
        """Return one score a conversation, or what is wrong with it."""
        asked, of_asked = self._asked(conversations, columns)
        scores: list[float | UserError] = [self._stated] * len(conversations)
        if asked:
            for index, value in zip(asked, self._reward.score_each(*of_asked), strict=True):
                scores[index] = value
        return scores

    def _asked(
        self, conversations: Sequence[list[dict]], columns: Sequence[dict[str, Any]] | None
    ) -> tuple[list[int], tuple[list[list[dict]], list[dict[str, Any]] | None]]:
        """Return the indices of the conversations with text, and those with their columns."""
        asked = [index for index, conversation in enumerate(conversations) if not is_empty(conversation)]
        given = [columns[index] for index in asked] if columns else None
        return asked, ([conversations[index] for index in asked], given)
