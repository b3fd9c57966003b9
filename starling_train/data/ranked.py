"""Ranked answers as a reward model learns from them."""

from collections.abc import Sequence

from starling_train.config.fields import UserError
from starling_train.data.conversations import with_answer
from starling_train.data.nectar import Answer, RankedRow

NO_ORDER = "without two answers of different rank"


def ranks(answers: Sequence[Answer]) -> list[int]:
    """Rank the answers, best first and counted from 1; equal answers share a rank.

    Not the data's own ranks, which may be any numbers: what `nectar.load` left out leaves no gap.
    """
    rank_of = {rank: new for new, rank in enumerate(sorted({answer.rank for answer in answers}), start=1)}
    return [rank_of[answer.rank] for answer in answers]


def split_by_order(rows: Sequence[RankedRow]) -> tuple[list[RankedRow], list[RankedRow]]:
    """Split rows, in order, into those with at least two ranks to learn from, and those with fewer."""
    with_order = [len({answer.rank for answer in row.answers}) >= 2 for row in rows]
    usable = [row for row, has in zip(rows, with_order, strict=True) if has]
    return usable, [row for row, has in zip(rows, with_order, strict=True) if not has]


def with_an_order(rows: Sequence[RankedRow], source: str) -> tuple[list[RankedRow], list[RankedRow]]:
    """Split rows as `split_by_order`. Raises UserError, naming `source`, if none has an order."""
    usable, without = split_by_order(rows)
    if not usable:
        raise UserError(
            f"data.path: {source}: all {len(rows)} rows are {NO_ORDER}; every row needs `answers` with "
            "`answer` and `rank`, as in Nectar, or `chosen` and `rejected`"
        )
    return usable, without


def conversations(row: RankedRow) -> list[list[dict]]:
    """Return the prompt with each of its answers, best first."""
    return [with_answer(row.messages, answer.text) for answer in row.answers]
