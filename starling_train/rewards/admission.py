"""What the reward side says of the prompts before a run's first step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from starling_train.config.fields import UserError
from starling_train.data.conversations import with_answer
from starling_train.models.reward.reading import Reader

ANSWER = "Yes."
OF_A_TURN, OF_TEMPLATE = 16, 64  # tokens that a template may add
MEASURED = 4096  # conversations that are tokenised before a run: a second or two


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


def by_reader(reader: Reader, prompts: Sequence[list[dict]], source: str) -> Admission:
    """Refuse the prompts that a reward model's template refuses, and count what its max_length cuts.

    Only what could be too long is tokenised, and of that at most MEASURED, evenly spread. source: a key and what it
    names, for messages. Raises UserError if all are refused.
    """
    refused = refusals(prompts, reader.check, source)
    taken = (with_answer(messages, ANSWER) for index, messages in enumerate(prompts) if index not in refused)
    # a token is a byte of text or more; what the template adds is a few tokens a turn
    long = [
        conversation
        for conversation in taken
        if sum(len(m["content"].encode()) + OF_A_TURN for m in conversation) + OF_TEMPLATE > reader.max_length
    ]
    measured = long[:: -(-len(long) // MEASURED)] if long else []
    for conversation in measured:
        reader.encode(conversation)
    cut = round(reader.shortened * len(long) / len(measured)) if measured else 0
    if not cut:
        return Admission(refused)
    about = "" if len(measured) == len(long) else "about "
    line = (
        f"{about}{cut} of {len(prompts)} prompts are longer than reward.max_length={reader.max_length}, even with an "
        "answer of a word, and are scored without their beginning (reward/truncated_prompts); raise it"
    )
    return Admission(refused, [line])


def first_words(messages: Sequence[dict], count: int = 60) -> str:
    """Return the beginning of the first user's turn, for people to find a conversation by."""
    text = next((message["content"] for message in messages if message["role"] == "user"), "")
    text = " ".join(str(text).split())
    return repr(text if len(text) <= count else f"{text[:count]}...")
