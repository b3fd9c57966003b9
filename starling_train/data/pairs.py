"""Ranked answers as pairs of a better and a worse one, which DPO learns from."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from starling_train.data import ranked
from starling_train.data.chat import Chat
from starling_train.data.conversations import with_answer
from starling_train.data.nectar import RankedRow

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


def encode(conversation: list[dict], chat: Chat, max_length: int) -> tuple[list[int], list[int], bool]:
    """Encode a conversation that ends with an answer: (prompt ids, answer ids, whether the answer was cut).

    An answer beyond max_length tokens, its prompt counted, loses its end, and with it the end of turn.
    """
    prompt, answer = chat.answered(conversation)
    room = max(0, max_length - len(prompt))
    return prompt, answer[:room], len(answer) > room
