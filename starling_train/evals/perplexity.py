"""Perplexity of a language model on given text.

Documents come from a file. `.jsonl` has one a line: {"text": ...} as it stands, or a conversation ({"messages"}, or
{"prompt", "response"}) in Openchat's template; a preference ({"prompt", "chosen", "rejected"}, or ranked answers) is
the prompt with its best answer. Nectar (its parquet, a directory, a hub id) is read as the latter. Any other file is
one document of plain text, blank lines included.

A document's tokens begin with BOS where the tokenizer has one, and are cut into windows. A window begins with the last
token of the one before it, so that every token but a document's first is predicted exactly once, whatever the window,
from at most window - 1 tokens before it. With BOS, the first is BOS itself, which is no token of the text. Of a
conversation the assistant's tokens count, each answer's end of turn among them, as in training; the others are read.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from starling_train.config.fields import UserError
from starling_train.config.sections import PerplexityConfig
from starling_train.data import conversations, openchat, preferences, row_files
from starling_train.evals.subjects import Subjects
from starling_train.evals.suite import Line, Progress, Say, about, digest, named
from starling_train.files.journal import Journal
from starling_train.models.budget import Budget
from starling_train.models.sequence_logprobs import sequence_logprobs

Document = str | list[dict]  # plain text, or the messages of a conversation


@dataclass(frozen=True)
class TextPerplexity:
    """nats: mean negative log-likelihood of a token; tokens: how many were predicted."""

    nats: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(nats); infinite where that is no number a float can hold."""
        return math.exp(self.nats) if self.nats < 700 else math.inf


def load(path: str | Path) -> list[Document]:
    """The documents behind a path. Raises UserError that names the file, and the line where there are several."""
    local = Path(path).expanduser()
    on_hub = not local.exists() and local.suffix not in (".txt", ".jsonl") and row_files.HUB_ID.fullmatch(str(path))
    if on_hub or local.is_dir() or local.suffix == ".parquet":
        return [_best(row) for row in preferences.load(path)]
    if not local.is_file():
        raise UserError(f"{local}: no such file; give plain text, JSONL with `text` or `messages`, or Nectar's parquet")
    if local.suffix == ".jsonl":
        found = [_of_row(raw, place) for place, raw in row_files.jsonl_rows(local)]
    else:
        found = [_text(local)]
    found = [document for document in found if not isinstance(document, str) or document.strip()]
    if not found:
        raise UserError(f"{local}: no text in it; give a file that holds some")
    return found


def _best(row: preferences.Comparison) -> Document:
    return row.conversations[row.ranks.index(min(row.ranks))]


def _of_row(raw: dict[str, Any], place: str) -> Document:
    try:
        if "text" in raw:
            if not isinstance(raw["text"], str):
                raise UserError("`text` is no string; give the document's text")
            return raw["text"]
        if "chosen" in raw or "answers" in raw:
            return _best(preferences.comparison(raw))
        return conversations.of_row(raw, allow_empty=True)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8") from error


def encode(document: Document, tokenizer: Any) -> tuple[list[int], list[int]]:
    """(token ids of a document, the places of those that count); no string of its text becomes a special token."""
    if isinstance(document, str):
        bos = tokenizer.bos_token_id
        ids = ([] if bos is None else [bos]) + openchat.text_ids(document, tokenizer)
        return ids, list(range(1, len(ids)))
    counted: list[int] = []
    for turn, message in enumerate(document):
        if message["role"] == "assistant":
            before = openchat.encode(document[:turn], tokenizer)
            after = openchat.encode(document[: turn + 1], tokenizer, add_generation_prompt=False)
            counted += range(len(before), len(after))
    return openchat.encode(document, tokenizer, add_generation_prompt=False), counted


@dataclass(frozen=True)
class Window:
    """Token ids that go through the model together, and the places, 1 or more, of those that are to be predicted."""

    ids: list[int]
    predicted: list[int]


def windows(ids: Sequence[int], counted: Iterable[int], size: int) -> list[Window]:
    """A document's ids in windows of at most `size` (2 or more), each one from the last token of the one before it.

    counted: places of the tokens that count, the first's apart. A window without any is left out.
    """
    assert size >= 2, "a window of one token predicts nothing"
    chosen = set(counted)
    found = []
    for first in range(0, len(ids) - 1, size - 1):
        part = list(ids[first : first + size])
        found.append(Window(part, [place for place in range(1, len(part)) if first + place in chosen]))
    return [window for window in found if window.predicted]


def cut(documents: Sequence[Document], tokenizer: Any, size: int) -> list[Window]:
    """The windows of all documents, in order. Raises UserError, without a file's name, if nothing can be predicted."""
    found = [window for document in documents for window in windows(*encode(document, tokenizer), size)]
    if not found:
        raise UserError("no two tokens of text in a row, so that none can be predicted; give a longer text")
    return found


def evaluate(model: nn.Module, windows: Sequence[Window], budget: Budget) -> TextPerplexity:
    """Of the windows together: every predicted token counts the same. Sums are in float64.

    The model's forward is that of its dtype, log-probabilities are float32. budget: of tokens at a time.
    """
    ids, predicted = [window.ids for window in windows], [window.predicted for window in windows]
    sums = [float(part.sum(dtype=torch.float64)) for part in sequence_logprobs(model, ids, budget, predicted)]
    tokens = sum(map(len, predicted))
    return TextPerplexity(-math.fsum(sums) / tokens, tokens)


WINDOWS_AT_A_TIME = 64


@dataclass
class Perplexity:
    """exp of the mean negative log-likelihood of a token of the text."""

    subjects: Subjects
    windows: list[Window]
    identity: dict[str, Any]
    name: str = "perplexity"

    @classmethod
    def find(cls, subjects: Subjects) -> "Perplexity":
        """Read the text and look up the policy. Raises UserError."""
        how = subjects.config.perplexity
        with about("perplexity.path"):
            windows = read(how, subjects.tokenizer)
        identity = {
            "suite": cls.name,
            "model": subjects.policy_identity(),
            "data": {"path": named(how.path)} | digest([window.ids, window.predicted] for window in windows),
            "settings": {"window": how.window, **subjects.policy_settings()},
        }
        return cls(subjects, windows, identity)

    def plan(self) -> str:
        tokens = sum(len(window.predicted) for window in self.windows)
        where = f"{self.identity['data']['path']} with {self.subjects.config.model.path}"
        return f"{tokens:,} tokens in {len(self.windows):,} windows of {where}"

    def check(self, dry_run: bool) -> None:
        self.subjects.check_policy()
        self.subjects.check_room(max(len(window.ids) for window in self.windows), "a window", "perplexity.window")

    def measure(self, folder: Path, say: Say) -> dict[str, Any]:
        amount = self.subjects.config.algorithm.tokens_per_microbatch
        budget = Budget("algorithm.tokens_per_microbatch", amount)
        starts = range(0, len(self.windows), WINDOWS_AT_A_TIME)
        with Journal(folder, f"{self.name}.windows", self.identity) as journal:
            done = WINDOWS_AT_A_TIME * len(journal.rows)
            progress = Progress(say, self.name, "windows", len(self.windows), min(done, len(self.windows)))
            for start in starts:
                if str(start) in journal:
                    continue
                group = self.windows[start : start + WINDOWS_AT_A_TIME]
                part = evaluate(self.subjects.policy(), group, budget)
                journal.add(str(start), {"nats": part.nats, "tokens": part.tokens})
                progress.step(len(group))
            rows = [journal.rows[str(start)] for start in starts]
        tokens = sum(row["tokens"] for row in rows)
        found = TextPerplexity(sum(row["nats"] * row["tokens"] for row in rows) / tokens, tokens)
        return {"nats": found.nats, "perplexity": min(found.perplexity, 1e300), "tokens": tokens}

    def lines(self, result: dict[str, Any]) -> list[Line]:
        return [
            Line("", f"{result['perplexity']:.5g}", result["tokens"]),
            Line("nats a token", f"{result['nats']:.5g}", result["tokens"]),
        ]

    def notes(self, result: dict[str, Any]) -> list[str]:
        return []


def read(how: PerplexityConfig, tokenizer: Any) -> list[Window]:
    """Windows of the text that is named, until `tokens` tokens of it are predicted. Raises UserError."""
    kept: list[Window] = []
    left = how.tokens
    for window in cut(load(how.path), tokenizer, how.window):
        if left is not None:
            window = Window(window.ids, window.predicted[:left])
            left -= len(window.predicted)
        if window.predicted:
            kept.append(window)
    return kept
