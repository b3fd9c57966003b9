"""Ranked answers as a reward model learns from them."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice

from starling_train.config.fields import UserError
from starling_train.data.conversations import with_answer
from starling_train.data.nectar import Answer, RankedRow, normalise
from starling_train.data.rows.beginnings import shared_beginning

Encode = Callable[[list[dict]], list[int]]  # a conversation that ends with an answer -> token ids
WORD = re.compile(r"[^\W_]+")
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


def taken(rows: Sequence[RankedRow], encode: Encode) -> tuple[list[RankedRow], dict[str, str]]:
    """Split off the rows whose conversation the reward model's template refuses: (the others, reason by row's place).

    A template refuses roles, such as a system message: one conversation of each sequence of roles is tried.

    rows: each with an answer.
    encode: the template, raises UserError.
    """
    reasons: dict[tuple[str, ...], str] = {}
    for row in rows:
        if (roles := _roles(row)) not in reasons:
            try:
                encode(conversations(row)[0])
                reasons[roles] = ""
            except UserError as error:
                reasons[roles] = str(error)
    kept = [row for row in rows if not reasons[_roles(row)]]
    return kept, {row.where: reasons[_roles(row)] for row in rows if reasons[_roles(row)]}


def _roles(row: RankedRow) -> tuple[str, ...]:
    return tuple(message["role"] for message in row.messages)


def distinct(rows: Sequence[RankedRow], encode: Encode, max_length: int) -> tuple[list[RankedRow], int]:
    """Leave out answers that are the same last `max_length` tokens as a better one: (rows, how many were left out).

    A reward model reads no more of a conversation, so that the two have one score and no order to learn: both are cut
    behind where they differ, or the template leaves out where they do, or the tokenizer does not tell them apart.

    rows: their answers are best first.
    encode: a conversation's token ids, not cut.
    max_length: tokens that are read.
    """
    is_whole = _keeps_reasoning(encode)
    shorter = []
    for row in rows:
        texts = [answer.text for answer in row.answers]
        # few answers are alike for so long: only those are tokenised; what a template leaves out hides others
        pairs = [
            (i, j)
            for j in range(len(texts))
            for i in range(j)
            if not is_whole or _end_alike(texts[i], texts[j], max_length) or same_words(texts[i], texts[j])
        ]
        ids = {i: encode(with_answer(row.messages, texts[i])) for pair in pairs for i in pair}
        lost = {j for i, j in pairs if _read(ids[i], max_length) == _read(ids[j], max_length)}
        kept = [answer for index, answer in enumerate(row.answers) if index not in lost]
        shorter.append(replace(row, answers=kept) if lost else row)
    return shorter, sum(len(old.answers) - len(new.answers) for old, new in zip(rows, shorter, strict=True))


def _read(ids: list[int], max_length: int) -> list[int]:
    """Return what a reward model reads of a conversation: its end, behind its first token where it is too long."""
    return ids if len(ids) <= max_length else ids[1 - max_length :]


def _keeps_reasoning(encode: Encode) -> bool:
    """Return whether the template renders all of an answer that reasons."""
    asked = [{"role": "user", "content": "Hello?"}]
    answers = (f"<think>\n{thought}\n</think>\n\nHello." for thought in ("A thought.", "Another one."))
    try:
        first, second = (encode(with_answer(asked, answer)) for answer in answers)
    except UserError:
        return False
    return first != second


def same_words(first: str, second: str) -> bool:
    """Return whether two texts have the same letters and digits: a tokenizer may tell such apart, or not."""
    return _first_words(first) == _first_words(second) and normalise(first) == normalise(second)


def _first_words(text: str) -> list[str]:
    return [word[0].casefold() for word in islice(WORD.finditer(text), 3)]


def _end_alike(first: str, second: str, tokens: int) -> bool:
    """Return False for texts that certainly differ in their last tokens: a token has a byte at least, bar a few."""
    if len(first.encode()) + 16 < tokens or len(second.encode()) + 16 < tokens:
        return False
    return len(shared_beginning(first[::-1], second[::-1]).encode()) + 16 >= tokens


def conversations(row: RankedRow) -> list[list[dict]]:
    """Return the prompt with each of its answers, best first."""
    return [with_answer(row.messages, answer.text) for answer in row.answers]
