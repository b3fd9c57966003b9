"""Perplexity of a language model on given text.

Documents come from a file. `.jsonl` has one a line: {"text": ...} as it stands, or a conversation ({"messages"}, or
{"prompt", "response"}) in the chat template; a preference ({"prompt", "chosen", "rejected"}, or ranked answers) is
the prompt with its best answer. Nectar (its parquet, a directory, a hub id) is read as the latter. Any other file is
one document of plain text, blank lines included.

A document's tokens begin with BOS where the tokenizer has one, and are cut into windows. Each window begins with the
last token of the window before it, so that every token but a document's first is predicted exactly once, whatever the
window, from at most window - 1 tokens before it. With BOS, the first token is BOS itself, which is not part of the
text. In a conversation only the assistant's tokens count, each answer's end of turn included, as in training; the
others are context.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from starling_train.config.fields import UserError, given, named_in_errors
from starling_train.config.ppo import PpoConfig
from starling_train.config.sections import PerplexityConfig
from starling_train.data import conversations, preferences, row_files
from starling_train.data.chat import Chat
from starling_train.evals.subjects import Subjects
from starling_train.evals.suite import ResultLine, Say, Skill, Suite, about, complete, data_of
from starling_train.models.budget import Budget
from starling_train.models.causal_lm import CausalLM
from starling_train.models.sequence_logprobs import sequence_logprobs
from starling_train.run.runtime import Runtime

WINDOWS_AT_A_TIME = 64

Document = str | list[dict]  # plain text, or the messages of a conversation


@dataclass(frozen=True)
class TextPerplexity:
    """A measured perplexity. nats: mean negative log-likelihood of a token; tokens: how many were predicted."""

    nats: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(nats); infinite where a float cannot hold it."""
        return math.exp(self.nats) if self.nats < 700 else math.inf


def load(path: str | Path) -> list[Document]:
    """Load the documents behind a path. Raises UserError that names the file, and the line where it has several."""
    local = Path(path).expanduser()
    on_hub = not local.exists() and local.suffix not in (".txt", ".jsonl") and row_files.HUB_ID.fullmatch(str(path))
    if on_hub or local.is_dir() or local.suffix == ".parquet":
        return [_best(row) for row in preferences.load(path)]
    if not local.is_file():
        raise UserError(f"{local}: no such file; give plain text, JSONL with `text` or `messages`, or Nectar's parquet")
    if local.suffix == ".jsonl":
        documents = [_of_row(raw, where) for where, raw in row_files.jsonl_rows(local)]
    else:
        documents = [_text(local)]
    documents = [document for document in documents if not isinstance(document, str) or document.strip()]
    if not documents:
        raise UserError(f"{local}: no text in it; give a file that holds some")
    return documents


def _best(row: preferences.Comparison) -> Document:
    return row.conversations[row.ranks.index(min(row.ranks))]


def _of_row(raw: dict[str, Any], where: str) -> Document:
    with named_in_errors(where):
        if "text" in raw:
            if not isinstance(raw["text"], str):
                raise UserError("`text` is not a string; give the document's text")
            return raw["text"]
        if "chosen" in raw or "answers" in raw:
            return _best(preferences.comparison(raw))
        return conversations.of_row(raw, allow_empty=True)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8") from error


def encode(document: Document, chat: Chat) -> list[tuple[list[int], list[int]]]:
    """Return (a document's token ids, positions of those that count); its text never becomes a special token.

    There are several where a chat template changes earlier turns: each answer is read behind what it was given behind.
    """
    if isinstance(document, str):
        ids = chat.plain(document)
        return [(ids, list(range(1, len(ids))))]
    parts: list[tuple[list[int], list[int]]] = [([], [])]
    for turn, message in enumerate(document):
        if message["role"] == "assistant":
            prompt, answer = chat.answered(document[: turn + 1])
            before, counted = parts[-1]
            whole = prompt + answer
            answered = range(len(prompt), len(whole))
            if whole[: len(before)] == before:
                parts[-1] = whole, [*counted, *answered]
            else:
                parts.append((whole, list(answered)))
    return parts


@dataclass(frozen=True)
class Window:
    """Token ids that go through the model together, and the positions, 1 or more, of the tokens to predict."""

    ids: list[int]
    predicted: list[int]


def windows(ids: Sequence[int], counted: Iterable[int], size: int) -> list[Window]:
    """Cut a document's ids into windows of at most `size` (2 or more), each from the last token of the previous one.

    counted: positions of the tokens that count, except for the first token. A window without any is left out.
    """
    assert size >= 2, "a window of one token predicts nothing"
    chosen = set(counted)
    cuts = []
    for first in range(0, len(ids) - 1, size - 1):
        part = list(ids[first : first + size])
        cuts.append(Window(part, [position for position in range(1, len(part)) if first + position in chosen]))
    return [window for window in cuts if window.predicted]


def windows_of(documents: Sequence[Document], chat: Chat, size: int) -> list[list[Window]]:
    """Return each document's windows. Raises UserError, without a file's name, for what the chat template refuses."""
    cuts = []
    for number, document in enumerate(documents, 1):
        with named_in_errors(f"text {number} of {len(documents)}"):
            parts = encode(document, chat)
        cuts.append([window for ids, counted in parts for window in windows(ids, counted, size)])
    return cuts


def cut(documents: Sequence[Document], chat: Chat, size: int) -> list[Window]:
    """Cut all documents into windows, in order. Raises UserError, without a file's name, if they predict nothing."""
    cuts = [window for group in windows_of(documents, chat, size) for window in group]
    if not cuts:
        raise UserError("no two tokens of text in a row, so that none can be predicted; give a longer text")
    return cuts


def evaluate(model: CausalLM, windows: Sequence[Window], budget: Budget) -> TextPerplexity:
    """Measure all windows together: every predicted token counts the same. Sums are in float64.

    The forward pass is in the model's dtype, log-probabilities are float32. budget: tokens per forward pass.
    """
    ids, predicted = [window.ids for window in windows], [window.predicted for window in windows]
    sums = [float(part.sum(dtype=torch.float64)) for part in sequence_logprobs(model, ids, budget, predicted)]
    tokens = sum(map(len, predicted))
    return TextPerplexity(-math.fsum(sums) / tokens, tokens)


def read(how: PerplexityConfig, chat: Chat) -> list[Window]:
    """Read the windows of the text that `how` names, up to `tokens` predicted tokens. Raises UserError."""
    chosen: list[Window] = []
    left = how.tokens
    for window in cut(load(given(how.path)), chat, how.window):
        if left is not None:
            window = Window(window.ids, window.predicted[:left])
            left -= len(window.predicted)
        if window.predicted:
            chosen.append(window)
    return chosen


def shared(
    windows: Sequence[Window],
    policy: CausalLM,
    slots: Budget,
    tokens: Budget,
    runtime: Runtime,
) -> dict[str, float]:
    """Measure `eval/perplexity` of windows that all processes share.

    windows: of the whole text.
    policy: the model.
    slots: not used; every skill has it.
    tokens: tokens per forward pass.
    runtime: the processes.
    """
    mine = runtime.shard(windows)
    part = evaluate(policy, mine, tokens) if mine else TextPerplexity(0.0, 0)
    nats, count = runtime.sum([part.nats * part.tokens, part.tokens])
    return {"eval/perplexity": TextPerplexity(nats / count, int(count)).perplexity}


def during_training(config: PpoConfig, chat: Chat) -> Skill:
    """Read the text that `evaluation.perplexity` names, and return the skill. Raises UserError."""
    with about("evaluation.perplexity.path"):
        return partial(shared, read(config.evaluation.perplexity, chat))


@dataclass
class Perplexity(Suite):
    """The suite: exp of the mean negative log-likelihood of a token of the text."""

    windows: list[Window]

    name = "perplexity"
    during_training = staticmethod(during_training)

    @classmethod
    def find(cls, subjects: Subjects) -> "Perplexity":
        how = subjects.config.perplexity
        with about("perplexity.path"):
            windows = read(how, subjects.chat)
        data = data_of(given(how.path), ([window.ids, window.predicted] for window in windows))
        settings = {"window": how.window, **subjects.policy_settings()}
        return cls(subjects, subjects.identity_of(cls.name, data, settings), windows)

    def plan(self) -> str:
        tokens = sum(len(window.predicted) for window in self.windows)
        where = f"{self.identity['data']['path']} with {self.subjects.config.model.path}"
        return f"{tokens:,} tokens in {len(self.windows):,} windows of {where}"

    def check(self, dry_run: bool) -> None:
        super().check(dry_run)
        self.subjects.check_room(max(len(window.ids) for window in self.windows), "a window", "perplexity.window")

    def measure(self, folder: Path, say: Say) -> dict[str, Any]:
        budget = self.subjects.token_budget()
        starts = range(0, len(self.windows), WINDOWS_AT_A_TIME)
        groups = [self.windows[start : start + WINDOWS_AT_A_TIME] for start in starts]

        def make(indices: list[int]) -> Iterator[dict[str, Any]]:
            for index in indices:
                yield asdict(evaluate(self.subjects.policy(), groups[index], budget))

        with self.journal(folder, "windows") as journal:
            sizes = list(map(len, groups))
            rows = complete(journal, list(map(str, starts)), make, self.progress(say, "windows"), 1, sizes)
        tokens = sum(row["tokens"] for row in rows)
        whole = TextPerplexity(sum(row["nats"] * row["tokens"] for row in rows) / tokens, tokens)
        return {"nats": whole.nats, "perplexity": min(whole.perplexity, 1e300), "tokens": tokens}

    def lines(self, result: dict[str, Any]) -> list[ResultLine]:
        return [
            ResultLine("", f"{result['perplexity']:.5g}", result["tokens"]),
            ResultLine("nats a token", f"{result['nats']:.5g}", result["tokens"]),
        ]
