"""What a conversation is sent as: messages, the text that OpenRLHF would send, token ids, or plain text.

Token ids and texts are made by the reward model's own tokenizer and template, as for a reward model in this process:
the same ids, cut on the left at `reward.max_length`, with special strings in messages kept as text.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from starling_train.config.fields import UserError, given
from starling_train.config.sections import ScorerConfig
from starling_train.data.jinja_chat import FAILURES, PROBE
from starling_train.models.reward.reading import Reader
from starling_train.models.reward.source import CLASSIFIER, RewardSource
from starling_train.models.source import ModelSource
from starling_train.rewards.admission import first_words


class Writer(Protocol):
    """Makes items of conversations. truncated, shortened: as in `scorer.Scorer`, as far as they are cut here."""

    @property
    def truncated(self) -> int: ...
    @property
    def shortened(self) -> int: ...

    def item(self, messages: Sequence[dict]) -> Any:
        """Return what is sent for a conversation. Raises UserError for one that cannot be sent."""


class Messages:
    """Conversations as they are: the server has the template."""

    truncated = shortened = 0

    def item(self, messages: Sequence[dict]) -> Any:
        return list(messages)


class OpenRlhfText:
    """What OpenRLHF's trainer sends: the policy's ids decoded, special tokens included; and the prompt as rendered.

    tokenizer: whose chat template makes both.
    """

    truncated = shortened = 0

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.content.strip()]

    def item(self, messages: Sequence[dict]) -> tuple[str, str]:
        """Return (query, prompt). Raises UserError for a conversation that the template refuses."""
        from jinja2 import TemplateError

        probe = [*messages[:-1], {**messages[-1], "content": PROBE}]
        try:
            prompt = self._rendered(messages[:-1], add_generation_prompt=True)
            whole, probed = self._rendered(messages), self._rendered(probe)
        except (TemplateError, *FAILURES) as error:
            raise UserError(
                f"reward.tokenizer: its chat template refuses {first_words(messages)} ({error}); leave such rows out"
            ) from error
        before, _, behind = probed.rpartition(PROBE)
        begins = len(prompt if whole.startswith(prompt) else before)
        query = prompt + whole[begins:].removesuffix(behind) + self._end(behind)
        ids = self._tokenizer(query, add_special_tokens=False).input_ids
        return self._tokenizer.decode(ids, skip_special_tokens=False), prompt

    def _end(self, behind: str) -> str:
        """Return what a policy says behind its answer: the first token that the template has there, or eos."""
        ends = [(behind.index(token), -len(token), token) for token in self._added if token in behind]
        return min(ends)[2] if ends else self._tokenizer.eos_token or ""

    def _rendered(self, messages: Sequence[dict], **how: bool) -> str:
        return self._tokenizer.apply_chat_template(list(messages), tokenize=False, **how)


class _Reading:
    """What a reader encodes and cuts."""

    def __init__(self, reader: Reader):
        self._reader = reader

    @property
    def truncated(self) -> int:
        return self._reader.truncated

    @property
    def shortened(self) -> int:
        return self._reader.shortened


class TokenIds(_Reading):
    """The ids that a classifier in this process would read, up to the one that its head reads.

    skipped_id: the config's pad token, which transformers' classifiers skip at the end even where a turn ends with it,
    and servers do not.
    """

    def __init__(self, reader: Reader, skipped_id: int | None = None):
        super().__init__(reader)
        self._skipped_id = skipped_id

    def item(self, messages: Sequence[dict]) -> list[int]:
        ids = self._reader.encode(messages)
        while len(ids) > 1 and ids[-1] == self._skipped_id:
            ids = ids[:-1]
        return ids


class PlainText(_Reading):
    """A text, or two for an encoder of pairs, that a server tokenises to the ids that a classifier here would read.

    What no text gives, such as a special token's string inside a message, is not sent: its score would be another one.
    """

    def item(self, messages: Sequence[dict]) -> list[str]:
        """Return one text or two. Raises UserError where the server would read something else."""
        ids = self._reader.encode(messages)
        tokenizer = self._reader.tokenizer
        for texts in self._candidates(messages, ids):
            if _read_elsewhere(tokenizer, texts) == ids:
                return texts
        raise UserError(
            f"conversation: no text gives the ids of {first_words(messages)} (a special token's string in a message, "
            "or a cut within a word); reward.protocol=tei sends text: use vllm or sglang, which take ids"
        )

    def _candidates(self, messages: Sequence[dict], ids: list[int]) -> list[list[str]]:
        tokenizer, frame = self._reader.tokenizer, self._reader.frame
        if frame and frame.is_pair:
            contents = [message["content"] for message in messages]
            first, second = frame.split(ids)
            return [["\n".join(contents[:-1]), contents[-1]], [self._decoded(first), self._decoded(second)]]
        whole = self._decoded(ids)
        rendered = tokenizer.apply_chat_template(list(messages), tokenize=False)  # as the reader has just done
        texts = []
        for text in (rendered, whole):
            texts.append([text])
            start = next((s for s in (tokenizer.bos_token, tokenizer.cls_token) if s and text.startswith(s)), "")
            stop = next((s for s in (tokenizer.eos_token, tokenizer.sep_token) if s and text.endswith(s)), "")
            texts += [[text.removeprefix(start)], [text.removeprefix(start).removesuffix(stop)]]
        return texts

    def _decoded(self, ids: list[int]) -> str:
        return self._reader.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _read_elsewhere(tokenizer: Any, texts: list[str]) -> list[int]:
    """Tokenise as a server that has the tokenizer but not transformers, which drops an empty second text."""
    if not tokenizer.is_fast:
        return list(tokenizer(*texts).input_ids)
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = False  # transformers sets it anew with every call
    return backend.encode(*texts).ids


def writer(config: ScorerConfig) -> Writer:
    """Return what makes the items of `reward.protocol`. Raises UserError for a tokenizer that cannot."""
    if config.protocol == "starling":
        return Messages()
    if config.protocol == "openrlhf":
        return OpenRlhfText(_tokenizer(config))
    reader = reader_of(config)
    if config.protocol == "tei":
        return PlainText(reader)
    if reader.frame and reader.frame.has_types:
        raise UserError(
            f"reward.protocol: {config.protocol} takes ids without the types of an encoder of pairs; serve "
            f"{config.tokenizer} with text-embeddings-inference (reward.protocol=tei)"
        )
    tokens = _tokens(config)
    is_decoder = tokens.has_config and reader.frame is None
    return TokenIds(reader, tokens.config.get_text_config().pad_token_id if is_decoder else None)


def reader_of(config: ScorerConfig) -> Reader:
    """Return what makes ids for a served classifier. Raises UserError."""
    tokens = _tokens(config)
    source = RewardSource(CLASSIFIER, tokens, tokens, tokens.key)
    # a tokenizer without its model's config.json is a decoder's: an encoder's frame is known from there
    frame = source.frame if tokens.has_config else None
    tokenizer = source.tokenizer if tokens.has_config else tokens.load_tokenizer(as_written=True)
    if not tokenizer.chat_template and frame is None:
        raise UserError(
            f"{tokens.key}: {tokens.directory} has no chat template, which makes what is sent; add chat_template.jinja"
        )
    return Reader(CLASSIFIER, tokenizer, config.max_length, frame=frame)


def _tokens(config: ScorerConfig) -> ModelSource:
    return ModelSource.open_tokenizer(given(config.tokenizer), "reward.tokenizer")


def _tokenizer(config: ScorerConfig) -> Any:
    """Load the tokenizer whose chat template makes the text for OpenRLHF's protocol. Raises UserError."""
    source = _tokens(config)
    if not source.tokenizer.chat_template:
        raise UserError(
            f"reward.tokenizer: {source.directory} has no chat template, which makes the text for "
            "reward.protocol=openrlhf; add chat_template.jinja to it"
        )
    return source.tokenizer
