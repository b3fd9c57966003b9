"""What a step left out because a number was not finite, for `skipped.jsonl`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starling_train.config import UserError

IN_A_ROW = 8  # skipped updates that stop a run: one can be a bad sample, so many in a row are no accident


def rows(step: int, reason: str, indices: Sequence[int], conversations: Sequence[list[dict]]) -> list[dict[str, Any]]:
    """A row for each sequence. reason: `score` (the reward model's was not finite) or `update` (loss or gradient)."""
    return [{"step": step, "reason": reason, "conversation": conversations[index]} for index in indices]


def too_many(count: int, path: Path) -> UserError:
    """The error that a run stops with."""
    return UserError(
        f"optim: {count} updates in a row had a loss or gradient that is not finite; the state is saved. "
        f"Lower optim.learning_rate, or look at the samples in {path}"
    )
