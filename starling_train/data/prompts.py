"""From conversations to prompts that fit, a held-out part, and an endless order that needs no memory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch

from starling_train.config.fields import UserError
from starling_train.data.chat import Chat


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends with a user's turn, and its token ids up to where the answer begins.

    columns: what a reward function is given of its row of the data, by name.
    """

    messages: list[dict]
    ids: list[int]
    columns: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """Return the last user turn, for people to read."""
        return self.messages[-1]["content"]


class Conversation(Protocol):
    """Anything with messages."""

    @property
    def messages(self) -> list[dict]: ...


Item = TypeVar("Item", bound=Conversation)
Element = TypeVar("Element")


def tokenise(
    conversations: Sequence[list[dict]],
    chat: Chat,
    max_tokens: int,
    columns: Sequence[dict[str, Any]] | None = None,
) -> tuple[list[Prompt], int]:
    """Tokenise conversations: the prompts of at most `max_tokens` tokens, in order, and how many were longer.

    conversations: each ends with a user's turn.
    chat: the policy's template and tokenizer.
    max_tokens: of a prompt.
    columns: what a reward function is given of each conversation's row; None: nothing.

    Raises UserError, naming `data.max_prompt_tokens`, if none fits.
    """
    rows = columns or [{} for _ in conversations]
    prompts = [Prompt(messages, chat.prompt(messages), row) for messages, row in zip(conversations, rows, strict=True)]
    fitting = [prompt for prompt in prompts if len(prompt.ids) <= max_tokens]
    if prompts and not fitting:
        shortest = min(len(prompt.ids) for prompt in prompts)
        raise UserError(
            f"data.max_prompt_tokens: {max_tokens} is less than the shortest of {len(prompts)} prompts "
            f"({shortest} tokens); raise it to {shortest} or more"
        )
    return fitting, len(prompts) - len(fitting)


def hold_out(prompts: Sequence[Item], count: int, seed: int) -> tuple[list[Item], list[Item]]:
    """Split into (training, held-out): `count` distinct conversations drawn by the seed, with all their duplicates.

    Raises UserError, naming `data.eval_prompts`, if nothing would be left to train on.
    """
    distinct = list(dict.fromkeys(_key(prompt) for prompt in prompts))
    if len(distinct) <= count:
        raise UserError(
            f"data.eval_prompts: {count} held-out prompts leave none of {len(distinct)} distinct usable prompts to "
            f"train on; give more data or lower it"
        )
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed)).tolist()
    held = dict.fromkeys(distinct[i] for i in order[:count])
    first: dict[tuple, Item] = {}
    for prompt in prompts:
        first.setdefault(_key(prompt), prompt)
    training = [prompt for prompt in prompts if _key(prompt) not in held]
    return training, [first[key] for key in held]


def _key(prompt: Conversation) -> tuple:
    return tuple((message["role"], message["content"]) for message in prompt.messages)


def steps(items: int, batch: int, epochs: float) -> int:
    """Count the batches of `batch` that `epochs` passes over the items take, at least one."""
    return max(1, math.ceil(epochs * items / batch))


class Stream(Generic[Element]):
    """Batches of prompts, each epoch in its own order. Batch k depends on the seed and k only: nothing to save."""

    def __init__(self, prompts: Sequence[Element], batch: int, seed: int):
        self._prompts, self._batch, self._seed = prompts, batch, seed

    def batch(self, step: int) -> list[Element]:
        """Return the prompts of one step, counted from 1."""
        first = (step - 1) * self._batch
        return [self._at(position) for position in range(first, first + self._batch)]

    def _at(self, position: int) -> Element:
        epoch, index = divmod(position, len(self._prompts))
        return self._prompts[self._order(epoch)[index]]

    def _order(self, epoch: int) -> list[int]:
        if getattr(self, "_cached", (None,))[0] != epoch:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            self._cached = (epoch, torch.randperm(len(self._prompts), generator=generator).tolist())
        return self._cached[1]


def counts(counted: dict[str, int]) -> str:
    """Render counts as `3 empty, 1 too long`; `none` where nothing was counted."""
    return ", ".join(f"{count} {what}" for what, count in counted.items() if count) or "none"
