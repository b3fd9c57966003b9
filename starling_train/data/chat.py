"""A policy's conversation: messages <-> token ids, which ids end an answer, and what a tokenizer is saved with.

Everything that makes prompts from messages, or text from answers, takes a `Chat` and knows no template. Today there
is one template, Openchat's.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from starling_train.config.fields import given
from starling_train.data import openchat

Messages = Sequence[dict]


class Chat:
    """A tokenizer and the template that it is used with.

    end_ids: every id that ends an assistant's turn. pad_id: never one of them.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    @classmethod
    def checked(cls, tokenizer: Any, source: str) -> "Chat":
        """Raise UserError, naming `source` (a key and a path), unless the tokenizer can speak the template."""
        openchat.check_tokenizer(tokenizer, source)
        return cls(tokenizer)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        return frozenset([openchat.end_of_turn_id(self.tokenizer)])

    @cached_property
    def pad_id(self) -> int:
        return given(openchat.pad_id(self.tokenizer))

    def prompt(self, messages: Messages) -> list[int]:
        """Return the token ids, BOS first, up to where the assistant answers."""
        return openchat.encode(messages, self.tokenizer)

    def answered(self, messages: Messages) -> tuple[list[int], list[int]]:
        """Split a conversation that ends with an answer into (prompt ids, answer ids); its end of turn is the last id.

        Where a tokenizer joins the prompt's last character with the answer's first, the answer begins there.
        """
        prompt = self.prompt(messages[:-1])
        whole = openchat.encode(messages, self.tokenizer, add_generation_prompt=False)
        first = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
        return whole[:first], whole[first:]

    def plain(self, text: str) -> list[int]:
        """Return the token ids of plain text, BOS first where the tokenizer has one; no string is special."""
        bos = self.tokenizer.bos_token_id
        return ([] if bos is None else [bos]) + openchat.text_ids(text, self.tokenizer)

    def text(self, answer_ids: Sequence[int], stop_strings: Sequence[str] = ()) -> str:
        """Return what the assistant said, cut before the first stop string (then without space at the end)."""
        text = openchat.decode(answer_ids, self.tokenizer)
        for stop in stop_strings:
            text = text.split(stop)[0]
        return text.rstrip() if stop_strings else text

    def save(self, directory: str | Path) -> None:
        """Write the tokenizer with its template, so that loading it gives the same ids."""
        openchat.save_tokenizer(self.tokenizer, directory)
