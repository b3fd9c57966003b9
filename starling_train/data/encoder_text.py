"""A conversation as an encoder (BERT, RoBERTa, DeBERTa) reads it: framed by the special tokens of its tokenizer.

With a chat template, the rendered text is framed as one text. Without one, what stands before the answer and the answer
are framed as a pair, as OpenAssistant's reward-model-deberta and others were trained: tokenizer(question, answer).
"""

from collections.abc import Sequence
from typing import Any

from starling_train.config.fields import UserError
from starling_train.data import reward_templates

KIND = "sequence_classification"


class EncoderText:
    """The special tokens that a tokenizer puts around a text, or around and between two.

    before, between, behind: their ids. is_pair: whether two texts are framed. has_types: the second text is of another
    type for the model, which then wants to know.
    """

    def __init__(self, tokenizer: Any, inputs: Sequence[str]):
        """Find the frame. inputs: names of what the tokenizer gives a model, by its class or its files."""
        self._tokenizer = tokenizer
        self.is_pair = not tokenizer.chat_template
        self.has_types = self.is_pair and "token_type_ids" in inputs
        first, second = (self._plain(text) for text in ("a", "b"))
        framed = list(tokenizer("a", "b").input_ids if self.is_pair else tokenizer("a").input_ids)
        start = _find(framed, first, 0)
        end = start + len(first)
        self.before, self.between, self.behind = framed[:start], [], framed[end:]
        if self.is_pair:
            start = _find(framed, second, end)
            self.between, self.behind = framed[end:start], framed[start + len(second) :]

    def encode(self, messages: Sequence[dict], max_length: int) -> tuple[list[int], bool, bool]:
        """Return (token ids, whether the beginning was cut, whether of the answer too).

        Raises UserError for a conversation that the template refuses, or that does not end with an answer.
        """
        prompt, answer = self._parts(messages)
        surplus = len(self.before + prompt + self.between + answer + self.behind) - max_length
        if surplus > 0:
            of_prompt = min(surplus, len(prompt))
            prompt, answer = prompt[of_prompt:], answer[surplus - of_prompt :]
            return self.before + prompt + self.between + answer + self.behind, True, surplus > of_prompt
        return self.before + prompt + self.between + answer + self.behind, False, False

    def types(self, ids: Sequence[int]) -> list[int]:
        """Return the type of each token: 1 from the second text on."""
        second = _find(list(ids), self.between, len(self.before)) + len(self.between)
        return [int(index >= second) for index in range(len(ids))]

    def split(self, ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """Undo `encode` for a pair: the ids of the two texts."""
        end = _find(list(ids), self.between, len(self.before))
        return list(ids[len(self.before) : end]), list(ids[end + len(self.between) : len(ids) - len(self.behind)])

    def _parts(self, messages: Sequence[dict]) -> tuple[list[int], list[int]]:
        reward_templates.check_conversation(messages)
        if self.is_pair:
            before = "\n".join(message["content"] for message in messages[:-1])
            return self._plain(before), self._plain(messages[-1]["content"])
        ids = reward_templates.encode_conversation(KIND, messages, self._tokenizer)
        for frame, own in ((self.before, ids[: len(self.before)]), (self.behind, ids[len(ids) - len(self.behind) :])):
            if frame and frame == own:  # the template has it already
                ids = ids[len(frame) :] if frame is self.before else ids[: len(ids) - len(frame)]
        length = len(self._prompt(messages, ids))
        return ids[:length], ids[length:]

    def _prompt(self, messages: Sequence[dict], ids: list[int]) -> list[int]:
        """Return how the conversation's ids begin before the answer does."""
        try:
            prompt = reward_templates.encode_prompt(KIND, messages, self._tokenizer)
        except UserError:  # a template for whole conversations alone
            return ids[:0]
        skipped = len(self.before) if prompt[: len(self.before)] == self.before else 0
        return ids[: len(prompt) - skipped]

    def _plain(self, text: str) -> list[int]:
        """Tokenise text in which nothing is special."""
        return list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)


def _find(ids: list[int], part: list[int], start: int) -> int:
    """Return where a part begins, from `start` on."""
    places = (place for place in range(start, len(ids) + 1) if ids[place : place + len(part)] == part)
    return next(places, len(ids))
