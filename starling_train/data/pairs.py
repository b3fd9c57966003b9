"""Ranked answers as pairs of a better and a worse one, which DPO learns from."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from starling_train.data import ranked
from starling_train.data.chat import Chat
from starling_train.data.conversations import with_answer
from starling_train.data.nectar import RankedRow
from starling_train.data.rows.beginnings import shared_beginning

KINDS = ("best_worst", "best_random", "all")


@dataclass(frozen=True)
class PairedRow:
    """A prompt, the texts of the answers in its pairs, and the pairs: (better, worse) indices.

    index: among all rows of the data. reference: log-probability of each answer under the policy that
    training starts from, nats; empty before it is known.
    """

    index: int
    messages: list[dict]
    answers: list[str]
    pairs: list[tuple[int, int]]
    reference: list[float] = field(default_factory=list)

    def only(self, pairs: Sequence[tuple[int, int]]) -> "PairedRow":
        """Return the row with only these of its pairs, and the answers in them."""
        used = sorted({i for pair in pairs for i in pair})
        new = {i: index for index, i in enumerate(used)}
        return replace(
            self,
            answers=[self.answers[i] for i in used],
            pairs=[(new[i], new[j]) for i, j in pairs],
            reference=[self.reference[i] for i in used] if self.reference else [],
        )

    def conversations(self) -> list[list[dict]]:
        """Return the prompt with each of the answers."""
        return [with_answer(self.messages, answer) for answer in self.answers]


def make(rows: Sequence[RankedRow], kind: str, seed: int) -> list[PairedRow]:
    """Pair the answers of each row, in order. Each row needs two answers of different rank (`ranked.with_an_order`).

    kind: best_worst, the first and the last answer; best_random, the first and one that is ranked below it, drawn by
    the seed once for the whole run; all, every two answers of different rank.
    """
    return [_paired(index, row, kind, seed) for index, row in enumerate(rows)]


def _paired(index: int, row: RankedRow, kind: str, seed: int) -> PairedRow:
    ranks = ranked.ranks(row.answers)
    last = len(ranks) - 1
    if kind == "best_worst":
        pairs = [(0, last)]
    elif kind == "best_random":
        below = [i for i in range(last + 1) if ranks[i] > ranks[0]]
        pairs = [(0, random.Random(f"{seed} {index}").choice(below))]
    else:
        assert kind == "all", kind
        pairs = [(i, j) for i in range(last + 1) for j in range(i + 1, last + 1) if ranks[i] < ranks[j]]
    return PairedRow(index, row.messages, [answer.text for answer in row.answers], pairs).only(pairs)


def distinct(rows: Sequence[PairedRow], chat: Chat, max_length: int) -> tuple[list[PairedRow], list[int]]:
    """Leave out pairs whose answers are the same tokens, which teach nothing.

    Both are cut before they differ, or the template leaves out where they do.

    rows: of `make`.
    chat: the policy's template.
    max_length: as in `encode`.

    Returns the rows that still have pairs, and the index of the row of every pair that was left out.
    """
    kept: list[PairedRow] = []
    same: list[int] = []
    for row in rows:
        # few answers begin alike for so long: only those are tokenised; what a template leaves out hides others
        is_whole = chat.template.keeps_reasoning
        suspects = [pair for pair in row.pairs if not is_whole or _may_be_same(row, pair, max_length)]
        if suspects and is_whole:
            room = max_length - len(chat.prompt(row.messages))
            suspects = [pair for pair in suspects if _may_be_same(row, pair, room)]
        ids = {
            i: _tokens(with_answer(row.messages, row.answers[i]), chat, max_length) for pair in suspects for i in pair
        }
        lost = [(i, j) for i, j in suspects if ids[i] == ids[j]]
        same += [row.index] * len(lost)
        if len(lost) < len(row.pairs):
            kept.append(row.only([pair for pair in row.pairs if pair not in lost]) if lost else row)
    return kept, same


def _may_be_same(row: PairedRow, pair: tuple[int, int], room: int) -> bool:
    """Return False for answers that certainly differ within `room` tokens: a token has a byte at least, bar a few."""
    first, second = (row.answers[i] for i in pair)
    if len(shared_beginning(first, second).encode()) + 16 >= room:
        return True
    # a tokenizer may tell letters from letters only; few answers begin with the same words
    return ranked.same_words(first, second)


def _tokens(conversation: list[dict], chat: Chat, max_length: int) -> list[int]:
    prompt, answer, _ = encode(conversation, chat, max_length)
    return prompt + answer


def encode(conversation: list[dict], chat: Chat, max_length: int) -> tuple[list[int], list[int], bool]:
    """Encode a conversation that ends with an answer: (prompt ids, answer ids, whether the answer was cut).

    An answer beyond max_length tokens, its prompt counted, loses its end, and with it the end of turn.
    """
    prompt, answer = chat.answered(conversation)
    room = max(0, max_length - len(prompt))
    return prompt, answer[:room], len(answer) > room
