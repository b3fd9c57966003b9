"""Conversations as a reward model reads them: its template, its tokenizer, cut on the left where they are too long."""

from collections.abc import Sequence
from typing import Any

from starling_train.data import reward_templates
from starling_train.data.encoder_text import EncoderText


def cut_conversations(shortened: int, truncated: int, key: str, of: str = "") -> str:
    """Say how many conversations were scored without their beginning; "" where none was.

    shortened, truncated: as counted by a `Reader`.
    key: what sets the length.
    of: a word on which conversations they are, with a space behind it.
    """
    inside = f", {truncated:,} of them that of their answer" if truncated else ""
    return (
        f"{shortened:,} {of}conversations are longer than {key} and lose their beginning{inside}" if shortened else ""
    )


class Reader:
    """Encodes conversations for one reward model, and counts what it cuts.

    kind: whose template.
    tokenizer: the model's own.
    max_length: tokens of a conversation; a longer one loses its beginning, but not BOS.
    trailing_newline: starling_34b only.
    frame: of an encoder; None for a decoder.

    Attributes: `truncated`, answers that lost their beginning; `shortened`, all conversations that were cut.
    """

    def __init__(
        self,
        kind: str,
        tokenizer: Any,
        max_length: int,
        trailing_newline: bool = False,
        frame: EncoderText | None = None,
    ):
        self.kind, self.tokenizer, self.max_length = kind, tokenizer, max_length
        self.trailing_newline, self.frame = trailing_newline, frame
        self.truncated = self.shortened = 0

    def encode(self, messages: Sequence[dict]) -> list[int]:
        """Return token ids. Raises UserError for a conversation that the template cannot take."""
        if self.frame:
            framed, is_cut, lost = self.frame.encode(messages, self.max_length)
            self.shortened, self.truncated = self.shortened + is_cut, self.truncated + lost
            return framed
        ids = reward_templates.encode_conversation(
            self.kind, messages, self.tokenizer, trailing_newline=self.trailing_newline
        )
        surplus = len(ids) - self.max_length
        if surplus <= 0:
            return ids
        bos = int(ids[0] == self.tokenizer.bos_token_id)
        prompt = reward_templates.encode_prompt(self.kind, messages, self.tokenizer)
        self.shortened += 1
        self.truncated += bos + surplus > len(prompt)
        return ids[:bos] + ids[bos + surplus :]

    def check(self, messages: Sequence[dict]) -> None:
        """Render a conversation, without tokenising it. Raises UserError as `encode` does."""
        if not (self.frame and self.frame.is_pair):
            reward_templates.check_renders(self.kind, messages, self.tokenizer)
