"""Prompts and ranked answers, from data as people publish it; and Nectar's own schema, read and written.

`rows/forms.py` has the forms. Nectar's is the oldest here: a prompt is `\\n\\nHuman: ` and `\\n\\nAssistant: ` turns in
alternation and ends in an empty Assistant turn; rank 1 is the best answer (the berkeley-nest/Nectar data set card).

A row is dropped (and counted in `Nectar.dropped`) for a conversation that does not begin and end with a user turn, two
turns of one speaker in a row, an empty turn, columns that contradict each other, tools or content other than text, an
excluded prompt, or, on request, a prompt not marked good-natured. Answers are left out (and counted in
`Nectar.answers_changed`) if they are empty, without a rank, or repeat a better-ranked answer, because a pair of equal
texts has no order to learn. An answer that goes on to write `\\n\\nHuman:` is kept and counted: raters ranked it like
that, some of them first.
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starling_train.config.fields import UserError, named_in_errors
from starling_train.config.sections import RowsConfig
from starling_train.data.rows import context, forms, marked_text
from starling_train.data.rows.dropped import Dropped
from starling_train.data.rows.marks import Marks
from starling_train.data.rows.messages import Unusable
from starling_train.data.rows.table import Table

UNRENDERED = ("tools", "images", "image")  # TRL's columns of what no message has, and no prompt here says
QUESTIONS = ("turns", "question")  # columns of benchmarks, whose prompts are excluded


@dataclass(frozen=True)
class Answer:
    text: str
    model: str
    rank: float


@dataclass(frozen=True)
class RankedRow:
    """A conversation that ends with a user turn, and its answers, best first; there may be none.

    columns: the values of the columns that `load` was asked to keep, by name.
    where: the file and line or row that it is from.
    """

    messages: list[dict]
    answers: list[Answer] = field(default_factory=list)
    source: list[str] = field(default_factory=list)
    good_natured: bool = True
    columns: dict[str, Any] = field(default_factory=dict)
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Nectar:
    """Rows in file order; `dropped` counts rows by reason, `answers_changed` counts answers by what was odd.

    first: for each reason, the first row that was dropped.
    forms: rows by the name of their form.
    noted: rows that are used as they are, by what is odd about them.
    unread: columns that look like messages in front of the answers, and are not read.
    """

    rows: list[RankedRow]
    dropped: dict[str, int]
    answers_changed: dict[str, int]
    first: dict[str, str] = field(default_factory=dict, compare=False)
    forms: dict[str, int] = field(default_factory=dict, compare=False)
    noted: Dropped = field(default_factory=Dropped, compare=False)
    unread: list[str] = field(default_factory=list, compare=False)

    def read(self) -> str:
        """Describe what was read: `206 rows read (ranked answers to a prompt, as in Nectar)`, and what is odd in it."""
        return "; ".join([reading(self.forms), *self.notes()])

    def notes(self) -> list[str]:
        """Return what is odd in the rows that are used, and in the columns that are not."""
        return odd(self.noted, self.unread)

    def drops(self) -> Dropped:
        """Return what was dropped, to add to it."""
        dropped = Dropped()
        dropped.counts, dropped.first, dropped.notes = dict(self.dropped), dict(self.first), self.notes()
        return dropped


def odd(noted: Dropped, unread: Sequence[str]) -> list[str]:
    """Return a clause on the rows that are odd and used, and one on columns; see `Nectar`."""
    notes = [f"columns not read: {', '.join(unread)}"] if unread else []
    return notes + ([f"used as they are: {noted}"] if noted.counts else [])


def lost(rows: Iterable["RankedRow"], kept: Iterable[Any]) -> list[str]:
    """Return the places of the rows that are not among `kept`, which have the rows' own messages."""
    remaining = {id(item.messages) for item in kept}
    return [row.where for row in rows if id(row.messages) not in remaining]


def reading(by_form: Mapping[str, int]) -> str:
    """Describe rows, counted by form: in one form, or in several with their counts."""
    total = sum(by_form.values())
    names = list(by_form) if len(by_form) == 1 else [f"{count} {name}" for name, count in by_form.items()]
    return f"{total} rows read ({', '.join(names)})"


def load(
    path: str | Path,
    *,
    subset: str | None = None,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    good_natured_only: bool = False,
    exclude: Sequence[str | Path] = (),
    answers: bool = True,
    keep: Sequence[str] = (),
    marks: Sequence[str] = (),
    key: str = "data",
) -> Nectar:
    """Load rows with messages and ranked answers, and count what was dropped and why.

    path: a file (.parquet, .jsonl, .json, .csv), a directory (with `*.parquet` or `data/*.parquet`, or laid out as on
        the hub) or a hub id through `datasets`; `rows/forms.py` says which columns are known.
    subset: of a data set that has several.
    split: of the data set; a file is all of `train`.
    columns: our name of a column -> its name in the data, for example {"prompt": "question"}.
    good_natured_only: drop prompts that are not marked good-natured.
    exclude: files whose prompts are dropped wherever a user turn says the same (letters and digits compared, case
        ignored): rows in any form, or with `turns` or `question`, or .txt with a prompt a line.
    answers: False leaves the answers unread, for callers that need prompts only.
    keep: names of columns to keep in `RankedRow.columns`, for reward functions, where there are such; None where a row
        lacks one that others have.
    marks: strings of the tokenizer that end turns, which are counted where they are written as text.
    key: the section of the configuration that names the path, for messages.

    Raises UserError naming file, column or line.
    """
    excluded = {normalise(text) for file in exclude for text in _excluded_prompts(Path(file).expanduser())}
    reader = Reader(
        answers=answers, keep=keep, good_natured_only=good_natured_only, excluded=excluded, marks=marks, key=key
    )
    _check_names(columns or {}, keep, key)
    table = Table(path, reader.wanted(), subset=subset, split=split, columns=columns, key=key)
    rows = [row for where, raw in table if (row := reader.row(where, raw, table.columns)) is not None]
    if not rows:
        raise UserError(
            f"{path}: no usable row is left ({reader.dropped if reader.dropped.counts else 'it is empty'}); check the "
            f"file, {f'{key}.split={split}, ' if '[' in split else ''}{key}.columns and data.exclude"
        )
    for name in (name for name in keep if name not in table.columns):
        for row in rows:
            del row.columns[name]
    dropped, forms_found = reader.dropped, dict(reader.forms)
    unread = [name for name in forms.unread(table.columns, forms_found) if name not in keep]
    return Nectar(rows, dropped.counts, dict(reader.changed), dropped.first, forms_found, reader.noted, unread)


def load_section(
    data: RowsConfig, *, answers: bool = True, keep: Sequence[str] = (), marks: Sequence[str] = ()
) -> Nectar:
    """Load the rows that a run's section `data` asks for; see `load`."""
    return load(
        data.path,
        subset=data.subset,
        split=data.split,
        columns=data.columns,
        good_natured_only=data.good_natured_only,
        exclude=data.exclude,
        answers=answers,
        keep=keep,
        marks=marks,
    )


class Reader:
    """Turns raw rows into ranked rows, and counts what it drops.

    dropped: rows that were. noted: rows that are odd and used. changed: answers, by what was odd. forms: all rows, by
    the name of their form. key: the section that names the data.
    """

    def __init__(
        self,
        *,
        answers: bool = True,
        keep: Sequence[str] = (),
        good_natured_only: bool = False,
        excluded: set[str] | None = None,
        marks: Sequence[str] = (),
        key: str = "data",
    ):
        """Parameters are those of `load`; excluded: normalised texts."""
        self.dropped, self.noted, self.key = Dropped(), Dropped(), key
        self.changed, self.forms = Counter[str](), Counter[str]()
        self._marks = Marks(marks)
        self._answers, self._keep = answers, keep
        self._good_natured_only, self._excluded = good_natured_only, excluded or set()

    def wanted(self) -> set[str]:
        """Return the columns that are worth reading."""
        unread = () if self._answers else forms.ANSWERS
        scores = {name for pair in forms.SCORES for name in pair} if self._answers else ()
        return {*forms.COLUMNS, *UNRENDERED, *scores, "source", "good_natured"} - {*unread} | {*self._keep}

    def row(self, where: str, raw: dict, names: Collection[str] = ()) -> RankedRow | None:
        """Return a row, or None if it is dropped. Raises UserError that begins with `where`.

        where: file and line or row.
        raw: the row's columns.
        names: of all columns of the data, as far as they are known.
        """
        with named_in_errors(where):
            try:
                return self._usable(where, raw, names)
            except Unusable as reason:
                self.dropped.add(str(reason), where)
                return None

    def _usable(self, where: str, raw: dict, names: Collection[str]) -> RankedRow:
        beside = forms.Beside(names, self.key)
        form, known = forms.find(raw, beside, answers=self._answers)
        self.forms[form.name] += 1
        talk = form.read(known, beside)
        reason = context.why_unusable(talk.context) or self._why_unwanted(raw, talk.context)
        if reason:
            raise Unusable(reason)
        ranked = _ranked(talk.answers, self.changed) if self._answers else []
        self._note(where, raw, talk.context, ranked)
        source = raw.get("source")
        source = list(source) if isinstance(source, list) else []
        kept = {name: raw.get(name) for name in self._keep}
        return RankedRow(talk.context, ranked, source, _flag(raw) is not False, kept, where)

    def _note(self, where: str, raw: dict, said: list[dict], ranked: list[Answer]) -> None:
        """Count what usually is a mistake in the data, which only its owner can know."""
        for what, mark in self._marks.of([m["content"] for m in said], [answer.text for answer in ranked]):
            self.noted.add(what, f"{where}: {mark!r}")
        if self._answers and (order := _order_of_scores(raw)):
            self.noted.add(order, where)
        asked = said[-1]["content"].strip()
        if ranked and all(answer.text.strip().startswith(asked) for answer in ranked):
            self.noted.add("rows whose answers all begin with the whole prompt", where)

    def _why_unwanted(self, raw: dict, said: list[dict]) -> str:
        if beside := next((name for name in UNRENDERED if raw.get(name) not in (None, "", "[]", [], {})), ""):
            return f"with {beside} beside the text"
        if self._good_natured_only and not _flag(raw):
            return "not good-natured"
        if not self._excluded:
            return ""
        user_texts = {normalise(message["content"]) for message in said if message["role"] == "user"} - {""}
        return "" if self._excluded.isdisjoint(user_texts) else "in an excluded file"


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
        "prompt": marked_text.render_prompt(row.messages),
        "answers": [{"answer": a.text, "model": a.model, "rank": a.rank} for a in row.answers],
        "turns": sum(message["role"] == "user" for message in row.messages),
        "num_responses": len(row.answers),
        "source": row.source,
        "good_natured": row.good_natured,
    }


def _flag(raw: dict) -> Any:
    """Return a row's `good_natured`, which is a word in CSV."""
    value = raw.get("good_natured")
    return value.strip().lower() == "true" if isinstance(value, str) else value


def _check_names(columns: Mapping[str, str], keep: Sequence[str], key: str) -> None:
    known = [*forms.COLUMNS, "source", "good_natured", *keep]
    for name in columns:
        if name not in known:
            raise UserError(f"{key}.columns: {name!r} is not a column that is read; use some of: {', '.join(known)}")


def _ranked(items: list[dict], changed: Counter) -> list[Answer]:
    """Return the answers worth learning from, best first."""
    ranks = [_rank(item) for item in items]
    answers: list[Answer] = []
    seen: set[str] = set()
    for index in sorted(range(len(items)), key=lambda index: (ranks[index] is None, ranks[index] or 0.0)):
        item, rank = items[index], ranks[index]
        text = item.get("answer") or ""
        if not isinstance(text, str):
            raise UserError(f"an `answer` is a {type(text).__name__}; it must be text")
        oddity = _oddity(text, rank, seen)
        if oddity or rank is None:
            changed[oddity] += 1
            continue
        if "\n\nHuman:" in text:
            changed["kept: goes on to write a Human turn"] += 1
        seen.add(text.strip())
        answers.append(Answer(text, item.get("model") or "", rank))
    return answers


def _order_of_scores(raw: dict) -> str:
    """Return what is odd about the scores of a row's two answers; "" for none, or without numbers."""
    for names in forms.SCORES:
        better, worse = (_number(raw.get(name)) for name in names)
        if better is not None and worse is not None and better <= worse:
            return "chosen and rejected of one score" if better == worse else "chosen scored below rejected"
    return ""


def _number(value: Any) -> float | None:
    """Return a number, or one that is written as text in CSV; None for all else, nan too."""
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number


def _rank(item: dict) -> float | None:
    """Return the rank of an answer; None where there is none (NaN is how tables write that)."""
    rank = item.get("rank")
    if rank is None or rank != rank:
        return None
    if not isinstance(rank, int | float) or isinstance(rank, bool) or abs(rank) > 1e9:
        raise UserError(f"a `rank` is {repr(rank)[:40]}; it must be a number, 1 for the best answer")
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
    table = Table(file, {*forms.COLUMNS, *QUESTIONS})
    return [text for where, raw in table for text in _excluded_turns(raw, where, table.columns)]


def _excluded_turns(raw: dict, where: str, names: Collection[str]) -> list[str]:
    """Return what users say in a row: `turns` or `question` (text or a list of texts), or a prompt in any form."""
    said = next((raw[key] for key in QUESTIONS if raw.get(key) and isinstance(raw[key], str | list)), None)
    if said is not None:
        texts = [said] if isinstance(said, str) else said
        if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
            return texts
    with named_in_errors(where):
        if said is not None or raw.keys().isdisjoint(forms.COLUMNS):
            raise UserError("no `turns`, `messages`, `prompt` or `question` with text; see data.exclude")
        asked = forms.read(raw, forms.Beside(names), answers=False).context
        return [message["content"] for message in asked if message["role"] == "user"]
