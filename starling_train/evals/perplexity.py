"""Perplexity of a language model on given text.

Documents come from a file. Rows of a data set (`data/rows`) are a document each: `text` as it stands, or a conversation
in the policy's template; of pairs and ranked answers, the prompt with its best answer. A file of another kind is one
document of plain text, blank lines included.

A document's tokens begin with BOS where the tokenizer has one, and are cut into windows. Each window begins with the
last token of the window before it, so that every token but a document's first is predicted exactly once, whatever the
window, from at most window - 1 tokens before it. With BOS, the first token is BOS itself, which is not part of the
text. In a conversation only the assistant's tokens count, each answer's end of turn included, as in training; the
others are context.

Beside one text (`path`) there may be named ones (`texts`), each with a perplexity of its own. A file of Python's
standard library, which every machine has, is `stdlib:FILE`.
"""

import math
import sysconfig
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from starling_train.config.fields import UserError, given, named_in_errors
from starling_train.config.ppo import PpoConfig
from starling_train.config.sections import PerplexityConfig
from starling_train.data import nectar
from starling_train.data.chat import Chat
from starling_train.data.conversations import with_answer
from starling_train.data.rows import forms, source
from starling_train.data.rows.dropped import Dropped
from starling_train.data.rows.table import Table
from starling_train.evals.subjects import Subjects
from starling_train.evals.suite import ResultLine, Say, Skill, Suite, about, complete, data_of
from starling_train.models.budget import Budget
from starling_train.models.causal_lm import CausalLM
from starling_train.models.sequence_logprobs import sequence_logprobs
from starling_train.run.runtime import Runtime
from starling_train.training.measured import CaseValue, Measured

WINDOWS_AT_A_TIME = 64
STDLIB = "stdlib:"  # before the path of a file in Python's standard library
LABEL = "label"  # KTO's: whether the answer of a prompt with one answer is a good one

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


def load(
    path: str | Path,
    *,
    subset: str | None = None,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    dropped: Dropped | None = None,
    key: str = "perplexity",
) -> list[Document]:
    """Load the documents behind a path. Raises UserError that names the file, and the line where it has several.

    path: of plain text, or of rows as in `nectar.load`.
    subset, split, columns: of rows, likewise.
    dropped: takes the rows that hold no document.
    key: the section of the configuration that names the path, for messages.
    """
    local = Path(path).expanduser()
    if local.is_dir() or source.suffix(local) or source.is_on_hub(path):
        reader = nectar.Reader(key=key)
        table = Table(path, {*reader.wanted(), "text", LABEL}, subset=subset, split=split, columns=columns, key=key)
        found = [_document(reader, where, raw, table.columns) for where, raw in table]
        if dropped is not None:
            reader.dropped.notes += nectar.odd(reader.noted, forms.unread(table.columns, reader.forms))
            dropped.update(reader.dropped)
    elif local.is_file():
        found = [_text(local)]
    else:
        raise UserError(f"{local}: no such file; give plain text, or rows with `text`, conversations or preferences")
    documents = [document for document in found if document is not None and _holds_text(document)]
    if not documents:
        why = f" ({dropped})" if dropped is not None and dropped.counts else ""
        raise UserError(f"{local}: no text in it{why}; give a file that holds some")
    return documents


def _holds_text(document: Document) -> bool:
    return not isinstance(document, str) or bool(document.strip())


def _document(reader: nectar.Reader, where: str, raw: dict[str, Any], names: Collection[str]) -> Document | None:
    """Return a row's text, or its conversation with the best answer; None for a row that is dropped, and counted."""
    if raw.get("text") is not None:
        if not isinstance(raw["text"], str):
            raise UserError(f"{where}: `text` is not a string; give the document's text")
        if not raw["text"].strip():
            reader.dropped.add("empty text", where)
        return raw["text"]
    if raw.keys().isdisjoint(forms.COLUMNS):
        listed = ", ".join(sorted(names)) or "nothing"
        raise UserError(f"{where}: no conversation and no `text` (it has {listed}); {reader.key}.columns can name them")
    row = reader.row(where, raw, names)
    if row is None:
        return None
    if _is_undesirable(raw):
        reader.dropped.add("labelled undesirable", where)
        return None
    if not row.answers:
        reader.dropped.add("without an answer", where)
        return None
    return with_answer(row.messages, row.answers[0].text)


def _is_undesirable(raw: dict[str, Any]) -> bool:
    """Return whether a row of KTO's form says that its answer is a bad one, which no text to measure is."""
    label = raw.get(LABEL)
    if not any(raw.get(key) is not None for key in ("completion", "response")):
        return False
    return label.strip().lower() in ("false", "0") if isinstance(label, str) else label in (False, 0)


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
    return _of_windows(windows, _logprobs(model, windows, budget))


def _logprobs(model: CausalLM, windows: Sequence[Window], budget: Budget) -> list[float]:
    """Return the log-probability of the predicted tokens of each window, nats."""
    ids, predicted = [window.ids for window in windows], [window.predicted for window in windows]
    return [float(part.sum(dtype=torch.float64)) for part in sequence_logprobs(model, ids, budget, predicted)]


def _of_windows(windows: Sequence[Window], logprobs: Sequence[float]) -> TextPerplexity:
    tokens = sum(len(window.predicted) for window in windows)
    return TextPerplexity(-math.fsum(logprobs) / tokens, tokens)


def read_all(
    how: PerplexityConfig, chat: Chat, dropped: Dropped | None = None, key: str = "perplexity"
) -> dict[str, list[Window]]:
    """Read the windows of the text at `path` ("") and of the named ones. Raises UserError that names the key.

    how, chat, dropped, key: as of `read`.
    """
    texts = {}
    if how.path:
        with about(f"{key}.path"):
            texts[""] = read(how.path, how, chat, dropped, key)
    for name, path in how.texts.items():
        with about(f"{key}.texts.{name}"):
            texts[name] = read(path, how, chat, dropped, key)
    return texts


def _local(path: str) -> str:
    if not path.startswith(STDLIB):
        return path
    return str(Path(sysconfig.get_path("stdlib")) / path.removeprefix(STDLIB))


def read(
    path: str, how: PerplexityConfig, chat: Chat, dropped: Dropped | None = None, key: str = "perplexity"
) -> list[Window]:
    """Read a text's windows, up to `tokens` predicted tokens. Raises UserError.

    path: the text's source.
    how: how it is read.
    chat: the policy's template.
    dropped: takes the rows that hold no document.
    key: the section of the configuration that `how` is.
    """
    documents = load(_local(path), subset=how.subset, split=how.split, columns=how.columns, dropped=dropped, key=key)
    chosen: list[Window] = []
    left = how.tokens
    for window in cut(documents, chat, how.window):
        if left is not None:
            window = Window(window.ids, window.predicted[:left])
            left -= len(window.predicted)
        if window.predicted:
            chosen.append(window)
    return chosen


def shared(
    texts: Mapping[str, Sequence[Window]],
    policy: CausalLM,
    slots: Budget,
    tokens: Budget,
    runtime: Runtime,
) -> Measured:
    """Measure `eval/perplexity` and `eval/perplexity_<name>` of windows that all processes share.

    texts: the windows of each, by name; `whole` says which are of `eval/perplexity`.
    policy: the model.
    slots: not used; every skill has it.
    tokens: tokens per forward pass.
    runtime: the processes.
    """
    parts: dict[str, TextPerplexity] = {}
    values: dict[str, dict[str, CaseValue]] = {}
    for name, windows in texts.items():
        mine = runtime.shard(windows)
        logprobs = _logprobs(policy, mine, tokens) if mine else []
        part = _of_windows(mine, logprobs) if mine else TextPerplexity(0.0, 0)
        nats, count = runtime.sum([part.nats * part.tokens, part.tokens])
        parts[name] = TextPerplexity(nats / count, int(count))
        values[name] = _values(name, windows, runtime.gather(logprobs))
    metrics = {"eval/perplexity": whole(parts).perplexity}
    metrics |= {f"eval/perplexity_{name}": part.perplexity for name, part in parts.items() if name}
    of_whole = values[""] if "" in values else {key: one for of_text in values.values() for key, one in of_text.items()}
    of_texts = {f"eval/perplexity_{name}": of_text for name, of_text in values.items() if name}
    return Measured(metrics, values={"eval/perplexity": of_whole, **of_texts})


def _values(name: str, windows: Sequence[Window], logprobs: Sequence[float]) -> dict[str, CaseValue]:
    """Return the windows of a text as a guard compares them: nats a token, by a key that depends on their tokens."""
    return {
        f"{name} {i} {zlib.crc32(repr(window).encode()):08x}": CaseValue(
            -logprob / len(window.predicted), len(window.predicted)
        )
        for i, (window, logprob) in enumerate(zip(windows, logprobs, strict=True))
    }


def whole(parts: Mapping[str, TextPerplexity]) -> TextPerplexity:
    """Return the perplexity of the text at `path` or, without one, of all named texts together."""
    return parts.get("") or together(list(parts.values()))


def together(parts: Sequence[TextPerplexity]) -> TextPerplexity:
    """Return the perplexity of several texts, every token counted the same."""
    tokens = sum(part.tokens for part in parts)
    return TextPerplexity(sum(part.nats * part.tokens for part in parts) / tokens, tokens)


def during_training(config: PpoConfig, chat: Chat) -> Skill:
    """Read the texts that `evaluation.perplexity` names, and return the skill. Raises UserError."""
    return partial(shared, read_all(config.evaluation.perplexity, chat, key="evaluation.perplexity"))


@dataclass
class Perplexity(Suite):
    """The suite: exp of the mean negative log-likelihood of a token of each text.

    texts: the windows of each, by name; "" is that of `path`.
    """

    texts: dict[str, list[Window]]
    dropped: Dropped

    name = "perplexity"
    during_training = staticmethod(during_training)

    @property
    def windows(self) -> list[Window]:
        """The windows of all texts."""
        return [window for windows in self.texts.values() for window in windows]

    @classmethod
    def find(cls, subjects: Subjects) -> "Perplexity":
        how, dropped = subjects.config.perplexity, Dropped()
        texts = read_all(how, subjects.chat, dropped)
        paths = {"": given(how.path)} if "" in texts else {}
        read = {
            name: data_of(path, ([window.ids, window.predicted] for window in texts[name]))
            for name, path in (paths | how.texts).items()
        }
        data: dict[str, Any] = read.pop("", {})
        if read:
            data = data | {"texts": read}
        settings = {"window": how.window, **subjects.policy_settings()}
        return cls(subjects, subjects.identity_of(cls.name, data, settings), texts, dropped)

    def plan(self) -> str:
        tokens = sum(len(window.predicted) for window in self.windows)
        data = self.identity["data"]
        paths = [data["path"]] if "path" in data else []
        paths += [text["path"] for text in data.get("texts", {}).values()]
        where = f"{', '.join(paths)} with {self.subjects.config.model.path}"
        return f"{tokens:,} tokens in {len(self.windows):,} windows of {where}{self.dropped.told()}"

    def check(self, dry_run: bool) -> None:
        super().check(dry_run)
        self.subjects.check_room(max(len(window.ids) for window in self.windows), "a window", "perplexity.window")

    def measure(self, folder: Path, say: Say) -> dict[str, Any]:
        budget = self.subjects.token_budget()
        groups = {  # by key of the journal
            f"{name} {start}".lstrip(): windows[start : start + WINDOWS_AT_A_TIME]
            for name, windows in self.texts.items()
            for start in range(0, len(windows), WINDOWS_AT_A_TIME)
        }
        keys = list(groups)

        def make(indices: list[int]) -> Iterator[dict[str, Any]]:
            for index in indices:
                yield asdict(evaluate(self.subjects.policy(), groups[keys[index]], budget))

        with self.journal(folder, "windows") as journal:
            sizes = [len(group) for group in groups.values()]
            rows = complete(journal, keys, make, self.progress(say, "windows"), 1, sizes)
        parts: dict[str, list[TextPerplexity]] = {name: [] for name in self.texts}
        for key, row in zip(keys, rows, strict=True):
            parts[key.rpartition(" ")[0]].append(TextPerplexity(row["nats"], row["tokens"]))
        by_name = {name: together(part) for name, part in parts.items()}
        texts = [{"name": name, **_as_json(part)} for name, part in by_name.items() if name]
        return _as_json(whole(by_name)) | ({"texts": texts} if texts else {})

    def lines(self, result: dict[str, Any]) -> list[ResultLine]:
        return [
            ResultLine("", f"{result['perplexity']:.5g}", result["tokens"]),
            ResultLine("nats a token", f"{result['nats']:.5g}", result["tokens"]),
            *(
                ResultLine(text["name"], f"{text['perplexity']:.5g}", text["tokens"])
                for text in result.get("texts", [])
            ),
        ]


def _as_json(part: TextPerplexity) -> dict[str, Any]:
    return {"nats": part.nats, "perplexity": min(part.perplexity, 1e300), "tokens": part.tokens}
