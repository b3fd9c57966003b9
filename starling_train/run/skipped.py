"""What a step left out because a number was not finite, for `skipped.jsonl`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from starling_train.config.fields import UserError

# without an applied update, that stop a run: one can be due to bad samples, so many are not an accident
STEPS_IN_A_ROW = 3


def rows(step: int, reason: str, indices: Sequence[int], conversations: Sequence[list[dict]]) -> list[dict[str, Any]]:
    """Make a row for each sequence.

    reason: what was not finite: `score` (the reward model's), `forward` (a log-probability or value), `update` (loss or
    gradient).
    """
    return [{"step": step, "reason": reason, "conversation": conversations[index]} for index in indices]


def unusable(
    step: int,
    scores: Tensor,
    fit: Tensor,
    conversations: Sequence[list[dict]],
    of_terms: Mapping[str, Tensor],
) -> list[dict[str, Any]]:
    """Make rows for the sequences that a step learns nothing from.

    scores: nan where not finite.
    fit: see Experience.
    conversations: of the sequences.
    of_terms: scores of each term of the reward, likewise; a row names those that gave none.
    """
    unscored = (~scores.isfinite()).nonzero().flatten().tolist()
    odd = (~fit.cpu() & scores.isfinite()).nonzero().flatten().tolist()
    left_out = rows(step, "score", unscored, conversations)
    for row, index in zip(left_out, unscored, strict=True):
        if lacking := [name for name, term in of_terms.items() if not term[index].isfinite()]:
            row["terms"] = lacking
    return left_out + rows(step, "forward", odd, conversations)


def too_many(path: Path) -> UserError:
    """Return the error that a run stops with."""
    return UserError(
        f"optim: {STEPS_IN_A_ROW} steps in a row had no update with numbers that are finite; the state is saved. "
        f"Lower optim.learning_rate, or look at the samples in {path}"
    )
