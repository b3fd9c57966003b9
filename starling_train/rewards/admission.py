"""What the reward side says of the prompts before a run's first step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from starling_train.config.fields import UserError
from starling_train.data.conversations import with_answer

ANSWER = "Yes."


@dataclass(frozen=True)
class Admission:
    """Which prompts the reward side takes. refused: the reason by index. lines: what else is told at the start."""

    refused: dict[int, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def described(self, prompts: Sequence[list[dict]]) -> list[str]:
        """Return a line on the first prompt that is refused, if there is one. prompts: those that were asked about."""
        if not self.refused:
            return []
        first = min(self.refused)
        return [f"first refused by the reward side: {first_words(prompts[first])}: {self.refused[first]}"]


def refusals(prompts: Sequence[list[dict]], attempt: Callable[[list[dict]], object], source: str) -> dict[int, str]:
    """Try every prompt with a made-up answer of a word: the reasons of those that `attempt` refuses, by index.

    source: a key and what it names, for messages. Raises UserError if all are refused.
    """
    refused: dict[int, str] = {}
    for index, messages in enumerate(prompts):
        try:
            attempt(with_answer(messages, ANSWER))
        except UserError as error:
            refused[index] = str(error)
    if prompts and len(refused) == len(prompts):
        raise UserError(f"{source} refuses all {len(prompts)} prompts: {refused[0]}")
    return refused


def first_words(messages: Sequence[dict], count: int = 60) -> str:
    """Return the beginning of the first user's turn, for people to find a conversation by."""
    text = next((message["content"] for message in messages if message["role"] == "user"), "")
    text = " ".join(str(text).split())
    return repr(text if len(text) <= count else f"{text[:count]}...")
