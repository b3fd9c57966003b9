"""The forms in which people publish prompts, conversations and preferences: which columns, and what they mean.

`FORMS` is the table. A row has the first form whose columns it has; other columns are not read. What a row means is a
`Talk`: the messages in front of the answers, and the answers. What answers are worth learning from is not decided here.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from starling_train.config.fields import UserError
from starling_train.data.rows import cells, context, marked_text, messages
from starling_train.data.rows.beginnings import shared_beginning
from starling_train.data.rows.messages import Unusable

# all columns that a form reads
COLUMNS = (
    "prompt", "messages", "conversations", "system", "answers", "chosen", "rejected", "response", "completion",
    "input", "preferred_output", "non_preferred_output",
)  # fmt: skip
ANSWERS = ("answers", "response", "completion")  # say nothing of the messages in front
PAIR = ("chosen", "rejected")
PREFERRED = ("preferred_output", "non_preferred_output")  # OpenAI's, better first
# The scores that some data give the two of a pair, better first: UltraFeedback's, TRL's and Argilla's names.
SCORES = (
    ("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)  # fmt: skip
# What people call the messages in front, where no form reads a column of that name.
LIKE_CONTEXT = (
    "history", "chat_history", "system_prompt", "system_message", "system_instruction", "sys_prompt", "context",
    "instruction", "instructions", "input", "dialogue", "dialog", "conversation", "conversations", "previous_turns",
    "background", "passage",
)  # fmt: skip


@dataclass(frozen=True)
class Beside:
    """What is known beside a row. names: of all columns of the data. key: the section that names it, for messages."""

    names: Collection[str] = ()
    key: str = "data"


@dataclass(frozen=True)
class Talk:
    """What a row says.

    context: the messages in front of the answers.
    answers: `{"answer", "rank"}` and, in ranked ones, "model"; as the row has them, in no order.
    """

    context: list[dict]
    answers: list[dict]


@dataclass(frozen=True)
class Form:
    """A form: its name for people, the columns that a row of it has, and how it is read.

    asked: columns with the messages in front of the answers.
    answered: columns with answers; a row that has only null in all of them is of a later form.
    talk: from (row, what is known beside it) to what it says.
    """

    name: str
    asked: tuple[str, ...]
    answered: tuple[str, ...]
    talk: Callable[[dict, Beside], Talk]

    def read(self, known: dict, beside: Beside) -> Talk:
        """Return what a row says, also where its messages are text. known: its columns, as `find` returns them."""
        return self.talk(cells.parsed(known), beside)


def _ranked(row: dict, beside: Beside) -> Talk:
    """Ranked answers: `answers` is a list of {answer, rank, model}, rank 1 the best."""
    answers = row["answers"]
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise UserError("`answers` must be a list of objects with `answer`, `model` and `rank`")
    return Talk(context.of_row(row, [], whole=True), answers)


def _pair(row: dict, beside: Beside) -> Talk:
    """Two answers; each is text, or messages that end with it and may begin with all messages in front of it."""
    texts = [row[key] for key in PAIR if isinstance(row[key], str)]
    marked = bool(texts) and all(map(marked_text.begins_with_a_turn, texts))
    sides = [_side(row[key], key, marked) for key in PAIR]
    own, *rest = [before for before, _ in sides if before] or [[]]
    if any(not messages.same(own, other) for other in rest):
        raise Unusable("chosen and rejected follow different messages")
    if not own and not any(row.get(key) for key in ("prompt", "messages")):
        return _begun_alike([answer for _, answer in sides], row, beside)
    return Talk(context.of_row(row, own), _two(*(answer for _, answer in sides)))


def _preferred(row: dict, beside: Beside) -> Talk:
    """OpenAI's pairs: `input` is `{"messages": [...], "tools": [...]}`, each output a list of one message."""
    given = row["input"]
    if not isinstance(given, dict | None):
        raise UserError("`input` must be an object with `messages`, beside preferred and non-preferred output")
    if given and given.get("tools"):
        raise Unusable("with tools beside the text")
    said = messages.read((given or {}).get("messages") or [], "input.messages")
    sides = [_side(row[key], key, False) for key in PREFERRED]
    if any(before for before, _ in sides):
        raise Unusable("an output of several turns")
    return Talk(said, _two(*(answer for _, answer in sides)))


def _side(value: Any, key: str, marked: bool) -> tuple[list[dict], str]:
    """Return (the messages that an answer of a pair brings along, its text); null is an empty answer."""
    if isinstance(value, str) and not marked:
        return [], value
    if not isinstance(value, str | list | None):
        raise UserError(f"`{key}` is not an answer; give text, or messages that end with the assistant's")
    turns = marked_text.parse_turns(value) if isinstance(value, str) else messages.read(value or [], key)
    if not turns:
        return [], ""
    if turns[-1]["role"] != "assistant":
        raise Unusable(f"{key} does not end with the assistant")
    return turns[:-1], turns[-1]["content"]


def _begun_alike(texts: list[str], row: dict, beside: Beside) -> Talk:
    """Two texts that begin with the same prompt, which ends at a space; a column more may be the real prompt."""
    if names := sorted({*row, *beside.names} - {*COLUMNS, *(name for pair in SCORES for name in pair)}):
        raise Unusable(
            f"chosen and rejected without their prompt ({beside.key}.columns can say which of {', '.join(names)} it is)"
        )
    shared = shared_beginning(*texts)
    prompt = shared[: max((space.end() for space in re.finditer(r"\s+", shared)), default=0)]
    if not prompt.strip():
        raise Unusable("chosen and rejected without a prompt or a shared beginning")
    asked = [{"role": "user", "content": prompt.strip()}]
    return Talk(asked, _two(*(text[len(prompt) :] for text in texts)))


def _two(chosen: str, rejected: str) -> list[dict]:
    return [{"answer": chosen, "rank": 1}, {"answer": rejected, "rank": 2}]


def _single(key: str) -> Callable[[dict, Beside], Talk]:
    """Make the reader of a prompt with one answer in column `key`: text as it stands, or messages that end with it."""

    def read(row: dict, beside: Beside) -> Talk:
        own, answer = _side(row[key], key, False)
        return Talk(context.of_row(row, own), [{"answer": answer, "rank": 1}])

    return read


def _conversation(row: dict, beside: Beside) -> Talk:
    """A conversation: its last turn, if the assistant's, is the answer; else what a column beside it responds."""
    last = messages.read(row["messages"])[-1:] if row["messages"] is not None else []
    said = [{"answer": turn["content"], "rank": 1} for turn in last if turn["role"] == "assistant"]
    beside_it = next((key for key in ("response", "completion") if row.get(key)), "")
    if beside_it and not said:
        return _single(beside_it)(row, beside)
    return Talk(context.of_row(row, []), said)


def _prompt(row: dict, beside: Beside) -> Talk:
    return Talk(context.of_row(row, []), [])


FORMS = (
    Form("ranked answers to a prompt, as in Nectar", ("prompt",), ("answers",), _ranked),
    Form("ranked answers to messages", ("messages",), ("answers",), _ranked),
    Form("pairs beside prompt and messages, as in UltraFeedback", ("prompt", "messages"), PAIR, _pair),
    Form("pairs beside a prompt", ("prompt",), PAIR, _pair),
    Form("pairs beside messages", ("messages",), PAIR, _pair),
    Form("pairs with a shared beginning, as in HH-RLHF", (), PAIR, _pair),
    Form("preferred and non-preferred outputs, as OpenAI has them", ("input",), PREFERRED, _preferred),
    Form("prompts with a response", ("prompt",), ("response",), _single("response")),
    Form("prompts with a completion", ("prompt",), ("completion",), _single("completion")),
    Form("conversations", ("messages",), (), _conversation),
    Form("prompts", ("prompt",), (), _prompt),
)


def find(row: dict, beside: Beside = Beside(), *, answers: bool = True) -> tuple[Form, dict]:
    """Return a row's form, and the columns that it is read from. Raises UserError for a row of no known form.

    row: column -> value.
    beside: the data's columns, as far as they are known beside the row's own.
    answers: False where only prompts are wanted: columns of answers need not be there, or right.
    """
    if "conversations" in row and "messages" not in row:  # ShareGPT's name
        row = {**row, "messages": row["conversations"]}
    known = row if answers else {key: value for key, value in row.items() if key not in ANSWERS}
    alone = [key for key in PAIR if key in row]
    if answers and len(alone) == 1 and "answers" not in row:
        raise UserError(f"`{alone[0]}` alone; a pair needs `chosen` and `rejected`, and mostly a `prompt`")
    matching = [form for form in FORMS if {*form.asked, *form.answered} <= known.keys()]
    if not matching:
        names = ", ".join(sorted(map(str, {*row, *beside.names}))) or "nothing"
        raise UserError(
            f"neither `prompt` nor `messages` (it has {names}); every row needs one of them, or `chosen` and "
            f"`rejected`; {beside.key}.columns can say which column is which"
        )
    filled = (form for form in matching if any(known[key] is not None for key in form.answered or form.asked))
    return next(filled, matching[0]), known


def read(row: dict, beside: Beside = Beside(), *, answers: bool = True) -> Talk:
    """Read a row by its form; parameters as in `find`. Raises Unusable for a row to drop, UserError for a wrong one."""
    form, known = find(row, beside, answers=answers)
    return form.read(known, beside)


def unread(names: Collection[str], found: Collection[str]) -> list[str]:
    """List the columns whose names say that they belong in front of the answers, and that no row's form reads.

    names: of all columns of the data.
    found: the names of the forms of its rows.
    """
    read_by = {"prompt", "messages", "system"} | {
        name for form in FORMS if form.name in found for name in (*form.asked, *form.answered)
    }
    if "messages" not in names:
        read_by.add("conversations")
    return [name for name in LIKE_CONTEXT if name in names and name not in read_by]
