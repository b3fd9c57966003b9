"""A policy's conversation: messages <-> token ids, which ids end an answer, and what a tokenizer is saved with.

Everything that makes prompts from messages, or text from answers, takes a `Chat` and knows no template. Openchat's is
in `openchat.py`; `jinja_chat.py` takes the tokenizer's own, or one in a file.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from starling_train.config.fields import UserError
from starling_train.data import openchat
from starling_train.data.jinja_chat import JinjaTemplate
from starling_train.data.openchat import OpenchatTemplate

Messages = Sequence[dict]
Row = TypeVar("Row")
REFUSED = "refused by the chat template"
PROBES = tuple(
    [{"role": role, "content": content} for role, content in talk]
    for talk in (
        (("user", "What is 1 and 1?"),),
        (("user", "What is 1 and 1?"), ("assistant", "2."), ("user", " And  2\nand 2?")),
        (("system", "Be brief."), ("user", "What is 1 and 1?")),
    )
)


class Template(Protocol):
    """How one template makes ids of messages, and text of ids.

    end_of_turn: the id that training puts behind an answer. end_ids: every id that ends one. pad_id: none of them.
    stop_strings: strings that end an answer unless the configuration has its own.
    takes_system: whether a conversation may begin with a system message.
    keeps_reasoning: whether all of an answer that reasons is rendered.
    text: in Jinja, as it is rendered; empty where the template is code.
    """

    @property
    def end_of_turn(self) -> int: ...
    @property
    def end_ids(self) -> frozenset[int]: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def stop_strings(self) -> tuple[str, ...]: ...
    @property
    def takes_system(self) -> bool: ...
    @property
    def keeps_reasoning(self) -> bool: ...
    @property
    def text(self) -> str: ...
    def prompt(self, messages: Messages) -> list[int]: ...
    def answered(self, messages: Messages) -> tuple[list[int], list[int]]: ...
    def plain(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def refusal(self, messages: Messages) -> str | None: ...
    def save(self, directory: str | Path) -> None: ...
    def identity(self) -> dict[str, str]: ...
    def described(self) -> str: ...


class Chat:
    """A tokenizer and the template that it is used with; without a template, Openchat's."""

    def __init__(self, tokenizer: Any, template: Template | None = None):
        self.tokenizer = tokenizer
        self.template = template or OpenchatTemplate(tokenizer)
        self._without_token: dict[int, tuple[int, ...]] = {}

    @classmethod
    def checked(
        cls,
        tokenizer: Any,
        source: str,
        template: str = "auto",
        values: dict[str, Any] | None = None,
        ends: Iterable[int] = (),
    ) -> "Chat":
        """Return the tokenizer with the template that a configuration names. Raises UserError where they do not fit.

        tokenizer: the policy's.
        source: a key and a path, for messages.
        template: auto, openchat, own, or a file's path.
        values: for the template's variables, `model.template_kwargs`.
        ends: ids that end an answer by the model's generation_config.json.
        """
        if template == "openchat" or (template == "auto" and _speaks_openchat(tokenizer)):
            openchat.check_tokenizer(tokenizer, source)
            if values:
                raise UserError("model.template_kwargs: Openchat's template has no variables to set; leave it out")
            if not openchat.renders_alike(tokenizer, openchat.WITHOUT_SYSTEM):
                tokenizer.chat_template = openchat.CHAT_TEMPLATE
            return cls(tokenizer)
        if template not in ("auto", "own"):
            text, source = _read(template), f"model.template: {template}"
        elif (own := _own_template(tokenizer)) is None:
            raise UserError(
                f"{source}: the tokenizer has no chat template and no {openchat.END_OF_TURN} token; give a template: "
                "model.template=FILE.jinja"
            )
        else:
            text = own
        return cls(tokenizer, JinjaTemplate(tokenizer, text, values or {}, ends, source))

    @property
    def end_ids(self) -> frozenset[int]:
        """Every id that ends an assistant's turn."""
        return self.template.end_ids

    @property
    def end_of_turn(self) -> int:
        """The one of them that training puts behind an answer."""
        return self.template.end_of_turn

    @property
    def end_strings(self) -> list[str]:
        """The text of `end_ids`, as it would stand in data that the template has rendered before."""
        return [string for string in map(self.tokenizer.convert_ids_to_tokens, sorted(self.end_ids)) if string]

    @property
    def pad_id(self) -> int:
        """The id that fills up shorter sequences: never one of `end_ids`."""
        return self.template.pad_id

    def prompt(self, messages: Messages) -> list[int]:
        """Return the token ids up to where the assistant answers. Raises UserError for what the template refuses."""
        return self.template.prompt(messages)

    def answered(self, messages: Messages) -> tuple[list[int], list[int]]:
        """Split a conversation that ends with an answer into (prompt ids, answer ids); its end of turn is the last id.

        Raises UserError for what the template refuses.
        """
        return self.template.answered(messages)

    def plain(self, text: str) -> list[int]:
        """Return the token ids of plain text, behind BOS where plain text has one; no string is special."""
        return self.template.plain(text)

    def ids_without_token(self, vocabulary: int) -> tuple[int, ...]:
        """Return the ids below `vocabulary` that the tokenizer has no token for; reserved ones are tokens."""
        if vocabulary not in self._without_token:
            others = set(range(vocabulary)).difference(self.tokenizer.get_vocab().values())
            self._without_token[vocabulary] = tuple(i for i in sorted(others) if not _is_token(self.tokenizer, i))
        return self._without_token[vocabulary]

    def text(self, answer_ids: Sequence[int], stop_strings: Sequence[str] = (), floor: int = 0) -> str:
        """Return what the assistant said, cut before the first stop string (then without space at the end).

        floor: the first tokens, within which a stop string is text like any other.
        """
        text = self.template.decode(answer_ids)
        begun = len(self.template.decode(answer_ids[:floor])) if floor and stop_strings else 0
        for stop in stop_strings:
            if (start := begin_of(stop, text, begun)) >= 0:
                text = text[:start]
        return text.rstrip() if stop_strings else text

    def stop_strings(self, chosen: Sequence[str] | None) -> list[str]:
        """Return the strings that end an answer: `rollout.stop_strings`, or the template's own where that is null."""
        return list(self.template.stop_strings if chosen is None else chosen)

    def accepted(
        self, rows: Sequence[Row], conversations: Callable[[Row], Sequence[Messages]], named: Callable[[Row], str]
    ) -> tuple[list[Row], dict[str, int], list[str]]:
        """Split off the rows that the template refuses: (the others, how many were refused by reason, a line on them).

        rows: of the data.
        conversations: what is rendered of a row.
        named: the row's name in the line.

        Raises UserError if all rows are refused.
        """
        refused: list[tuple[Row, str]] = []
        kept = []
        for row in rows:
            reasons = (self.template.refusal(messages) for messages in conversations(row))
            reason = next((reason for reason in reasons if reason), None)
            if reason is None:
                kept.append(row)
            else:
                refused.append((row, reason))
        if not refused:
            return kept, {}, []
        first, reason = refused[0]
        if not kept:
            raise UserError(
                f"data.path: all {len(rows)} rows are {REFUSED}, {named(first)} first: {reason}; give other rows, or "
                "another model.template"
            )
        return kept, {REFUSED: len(refused)}, [f"{len(refused)} rows {REFUSED}, {named(first)} first: {reason}"]

    def adapted(self, messages: Messages) -> list[dict]:
        """Return a conversation whose system message, where the template refuses such, begins the first user's turn."""
        if self.template.takes_system or messages[0]["role"] != "system":
            return list(messages)
        system, first, *others = messages
        return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *others]

    def probes(self) -> list[tuple[list[dict], list[int]]]:
        """Return conversations that wait for an answer, those of `PROBES` that the template takes, with their ids.

        A directory that was written gives the same ids, by `apply_chat_template(messages, add_generation_prompt=True)`.
        """
        return [(messages, self.prompt(messages)) for messages in PROBES if self.template.refusal(messages) is None]

    def lines(self) -> list[str]:
        """Return a line on what ends an answer and what else the template does; none for Openchat's."""
        described = self.template.described()
        return [f"chat template: {described}"] if described else []

    def save(self, directory: str | Path) -> None:
        """Write the tokenizer with its template, so that loading it gives the same ids."""
        self.template.save(directory)


def begin_of(stop: str, text: str, begun: int = 0) -> int:
    """Return where a stop string that ends behind the first `begun` characters begins in a text; -1 without one."""
    return text.find(stop, max(0, begun - len(stop) + 1))


def _is_token(tokenizer: Any, index: int) -> bool:
    """Whether an id that is not in the vocabulary by name is a token all the same, another of one name."""
    try:
        name = tokenizer.convert_ids_to_tokens(index)
    except (IndexError, KeyError, OverflowError):  # of sentencepiece's and of Python's tokenizers
        return False
    return bool(name) and name != tokenizer.unk_token


def _speaks_openchat(tokenizer: Any) -> bool:
    """Whether `auto` means Openchat's template: its end of turn is special, and no other template is there."""
    index = tokenizer.get_vocab().get(openchat.END_OF_TURN)
    if _own_template(tokenizer) is None:
        return index is not None  # what is wrong with the token is said by the check of the tokenizer
    token = tokenizer.added_tokens_decoder.get(index)
    return bool(token and token.special) and openchat.renders_alike(tokenizer, openchat.WITHOUT_SYSTEM)


def _own_template(tokenizer: Any) -> str | None:
    """Return the tokenizer's chat template, of several the default one; None without one."""
    own = getattr(tokenizer, "chat_template", None)
    return (own.get("default") if isinstance(own, dict) else own) or None


def _read(path: str) -> str:
    """Read a template's file. Raises UserError, naming `model.template`."""
    file = Path(path).expanduser()
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"model.template: {file}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"model.template: {file} cannot be read ({error.strerror}); give a chat template") from error
