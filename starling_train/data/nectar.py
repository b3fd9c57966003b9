"""Nectar's rows: a conversation that waits for an answer, and ranked answers to it.

Source: the berkeley-nest/Nectar data set card. A prompt is `\\n\\nHuman: ` and `\\n\\nAssistant: ` turns in
alternation and ends in an empty Assistant turn; rank 1 is the best answer.

A row is dropped (and counted in `Nectar.dropped`) for a conversation that does not begin and end with a user turn, two
turns of one speaker in a row, an empty turn, an excluded prompt, or, on request, a prompt not marked good-natured.
Answers are left out (and counted in `Nectar.answers_changed`) if they are empty, without a rank, or repeat a
better-ranked answer, because a pair of equal texts has no order to learn. An answer that goes on to write
`\\n\\nHuman:` is kept and counted: raters ranked it like that, some of them first.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from starling_train.config.fields import UserError
from starling_train.data import row_files

SPEAKER = re.compile(r"\n\n(Human|Assistant):(?: |(?=\n)|\Z)")
ROLE_OF = {"Human": "user", "Assistant": "assistant"}
SPEAKER_OF = {"user": "Human", "assistant": "Assistant"}


@dataclass(frozen=True)
class Answer:
    text: str
    model: str
    rank: float


@dataclass(frozen=True)
class RankedRow:
    """A conversation that ends with a user turn, and its answers, best first; there may be none.

    columns: the values of the columns that `load` was asked to keep, by name.
    """

    messages: list[dict]
    answers: list[Answer] = field(default_factory=list)
    source: list[str] = field(default_factory=list)
    good_natured: bool = True
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Nectar:
    """Rows in file order; `dropped` counts rows by reason, `answers_changed` counts answers by what was odd."""

    rows: list[RankedRow]
    dropped: dict[str, int]
    answers_changed: dict[str, int]


def load(
    path: str | Path,
    *,
    good_natured_only: bool = False,
    exclude: Sequence[str | Path] = (),
    answers: bool = True,
    keep: Sequence[str] = (),
) -> Nectar:
    """Load rows with messages and ranked answers, and count what was dropped and why.

    path: a directory with data/*.parquet, a .parquet file, a .jsonl file with `prompt` (Nectar's text, plain text as
        one user turn, or a list of messages) or `messages`, and optionally `answers`, or `chosen` and `rejected`
        (texts, or lists of messages that end with the answer), or a hub id through `datasets`.
    good_natured_only: drop prompts that are not marked good-natured.
    exclude: files whose prompts are dropped wherever a user turn says the same (letters and digits compared, case
        ignored): JSONL with `turns`, `messages`, `prompt` or `question`, or .txt with a prompt a line.
    answers: False leaves the answers unread, for callers that need prompts only.
    keep: names of columns to keep in `RankedRow.columns`, for reward functions, where there are such; None where a row
        lacks one that others have.

    Raises UserError naming file, column or line.
    """
    columns = ["prompt", *(["answers"] if answers else []), *(["good_natured"] if good_natured_only else [])]
    excluded = {normalise(text) for file in exclude for text in _excluded_prompts(Path(file).expanduser())}
    rows: list[RankedRow] = []
    dropped: Counter[str] = Counter()
    changed: Counter[str] = Counter()
    present: set[str] = set()
    for where, raw in row_files.read(path, columns, keep):
        present |= raw.keys()
        messages = _messages(raw, where)
        reason = _why_unusable(messages) or _why_unwanted(raw, messages, good_natured_only, excluded)
        if reason:
            dropped[reason] += 1
            continue
        ranked = _answers(raw, where, changed) if answers else []
        source = raw.get("source")
        source = list(source) if isinstance(source, list) else []
        rows.append(
            RankedRow(
                messages, ranked, source, raw.get("good_natured") is not False, {name: raw.get(name) for name in keep}
            )
        )
    if not rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "it is empty"
        raise UserError(f"{path}: no usable row is left ({reasons}); check the file and data.exclude")
    for name in (name for name in keep if name not in present):
        for row in rows:
            del row.columns[name]
    return Nectar(rows, dict(dropped), dict(changed))


def parse_prompt(text: str) -> list[dict]:
    """Parse prompt text into messages, without the empty Assistant turn at its end; outer space of turns is stripped.

    Text without any `\\n\\nHuman:` or `\\n\\nAssistant:` is one user turn, unchanged; text that has one but does not
    begin with it is neither: [].
    """
    before, *alternating = SPEAKER.split(text)
    if not alternating:
        return [{"role": "user", "content": text}]
    names, contents = alternating[::2], alternating[1::2]
    turns = [{"role": ROLE_OF[n], "content": content.strip()} for n, content in zip(names, contents, strict=True)]
    # an empty turn after another Assistant turn stays, so that the row counts as having two of them in a row
    if turns[-1] == {"role": "assistant", "content": ""} and names[-2:-1] != ["Assistant"]:
        turns.pop()
    return [] if before.strip() else turns


def prompt_text(messages: Sequence[dict]) -> str:
    """Render messages (user and assistant turns) as Nectar's prompt text."""
    turns = [f"\n\n{SPEAKER_OF[message['role']]}: {message['content']}" for message in messages]
    return "".join(turns) + "\n\nAssistant: "


def normalise(text: str) -> str:
    """Reduce text to lower-case letters and digits, one space between words: so prompts are compared."""
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


def write_parquet(rows: Iterable[RankedRow], path: str | Path) -> None:
    """Write rows in exactly Nectar's schema (`turns` counts user turns)."""
    import pyarrow
    import pyarrow.parquet

    text, integer = pyarrow.string(), pyarrow.int64()
    answer = pyarrow.struct({"answer": text, "model": text, "rank": pyarrow.float64()})
    schema = pyarrow.schema(
        {
            "prompt": text,
            "answers": pyarrow.list_(answer),
            "turns": integer,
            "num_responses": integer,
            "source": pyarrow.list_(text),
            "good_natured": pyarrow.bool_(),
        }
    )
    table = pyarrow.Table.from_pylist([_parquet_row(row) for row in rows], schema)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path)


def _parquet_row(row: RankedRow) -> dict:
    return {
        "prompt": prompt_text(row.messages),
        "answers": [{"answer": a.text, "model": a.model, "rank": a.rank} for a in row.answers],
        "turns": sum(message["role"] == "user" for message in row.messages),
        "num_responses": len(row.answers),
        "source": row.source,
        "good_natured": row.good_natured,
    }


def _messages(raw: dict, where: str) -> list[dict]:
    if "messages" in raw:
        return _checked_messages(raw["messages"], where)
    if "prompt" not in raw:
        raise UserError(f"{where}: neither `prompt` nor `messages`; every row needs one of them")
    if isinstance(raw["prompt"], list):
        return _checked_messages(raw["prompt"], where)
    if not isinstance(raw["prompt"], str | None):
        raise UserError(f"{where}: `prompt` is a {type(raw['prompt']).__name__}; it must be text")
    return parse_prompt(raw["prompt"] or "")


def _checked_messages(messages, where: str) -> list[dict]:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise UserError(f"{where}: `messages` must be a list of objects with `role` and `content`")
    for message in messages:
        if message.get("role") not in ("system", *SPEAKER_OF):
            raise UserError(f"{where}: role {message.get('role')!r}; use system, user or assistant")
        if not isinstance(message.get("content"), str):
            raise UserError(f"{where}: `content` of a {message['role']} message must be text")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _why_unusable(messages: list[dict]) -> str:
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    roles = [message["role"] for message in turns]
    if "system" in roles:
        return "system message after the first turn"
    if not roles or roles[0] != "user":
        return "does not begin with a user turn"
    repeated = [first for first, second in pairwise(roles) if first == second]
    if repeated:
        return f"two {repeated[0]} turns in a row"
    if roles[-1] != "user":
        return "does not end with a user turn"
    return "" if all(message["content"].strip() for message in turns) else "empty turn"


def _why_unwanted(raw: dict, messages: list[dict], good_natured_only: bool, excluded: set[str]) -> str:
    if good_natured_only and not raw.get("good_natured"):
        return "not good-natured"
    user_texts = {normalise(message["content"]) for message in messages if message["role"] == "user"} - {""}
    return "" if excluded.isdisjoint(user_texts) else "in an excluded file"


def _answers(raw: dict, where: str, changed: Counter) -> list[Answer]:
    items = raw.get("answers") or _pair(raw, where)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise UserError(f"{where}: `answers` must be a list of objects with `answer`, `model` and `rank`")
    ranks = [_rank(item, where) for item in items]
    answers: list[Answer] = []
    seen: set[str] = set()
    for index in sorted(range(len(items)), key=lambda index: (ranks[index] is None, ranks[index] or 0.0)):
        item, rank = items[index], ranks[index]
        text = item.get("answer") or ""
        if not isinstance(text, str):
            raise UserError(f"{where}: an `answer` is a {type(text).__name__}; it must be text")
        oddity = _oddity(text, rank, seen)
        if oddity or rank is None:
            changed[oddity] += 1
            continue
        if "\n\nHuman:" in text:
            changed["kept: goes on to write a Human turn"] += 1
        seen.add(text.strip())
        answers.append(Answer(text, item.get("model") or "", rank))
    return answers


def _pair(raw: dict, where: str) -> list[dict]:
    """Return `chosen` and `rejected` as two ranked answers; none where a row has neither."""
    keys = [key for key in ("chosen", "rejected") if key in raw]
    if len(keys) == 1:
        raise UserError(f"{where}: `{keys[0]}` alone; a pair needs `prompt`, `chosen` and `rejected`")
    return [{"answer": _last(raw[key], key, where), "rank": rank} for rank, key in enumerate(keys, start=1)]


def _last(answer, key: str, where: str) -> str:
    """Return the text of an answer that may be given as the messages of a conversation."""
    if isinstance(answer, list):
        messages = _checked_messages(answer, where)
        answer = messages[-1]["content"] if messages and messages[-1]["role"] == "assistant" else None
    if not isinstance(answer, str):
        raise UserError(f"{where}: `{key}` is not an answer; give text, or messages that end with the assistant's")
    return answer


def _rank(item: dict, where: str) -> float | None:
    """Return the rank of an answer; None where there is none (NaN is how tables write that)."""
    rank = item.get("rank")
    if rank is None or rank != rank:
        return None
    if not isinstance(rank, int | float) or isinstance(rank, bool) or abs(rank) > 1e9:
        raise UserError(f"{where}: a `rank` is {repr(rank)[:40]}; it must be a number, 1 for the best answer")
    return float(rank)


def _oddity(text: str, rank: float | None, seen: set[str]) -> str:
    if not text.strip():
        return "left out: empty"
    if rank is None:
        return "left out: no rank"
    return "left out: repeats a better-ranked answer" if text.strip() in seen else ""


def _excluded_prompts(file: Path) -> Iterable[str]:
    if not file.is_file():
        raise UserError(f"{file}: no such file; check data.exclude")
    if file.suffix == ".txt":
        try:
            return [line for line in file.read_text("utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise UserError(f"{file}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    prompts = []
    for where, raw in row_files.jsonl_rows(file):
        prompts += _excluded_turns(raw, where)
    return prompts


def _excluded_turns(raw: dict, where: str) -> list[str]:
    if "messages" in raw:
        return [m["content"] for m in _checked_messages(raw["messages"], where) if m["role"] == "user"]
    turns = raw.get("turns") or raw.get("prompt") or raw.get("question")
    texts = [turns] if isinstance(turns, str) else turns
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: no `turns`, `messages`, `prompt` or `question` with text; see data.exclude")
    return texts
