"""A conversation as one text: turns after `\\n\\nHuman: ` and `\\n\\nAssistant: `, as HH-RLHF and Nectar write it."""

import re
from collections.abc import Sequence

SPEAKER = re.compile(r"\n\n(Human|Assistant):(?: |(?=\n)|\Z)")
ROLE_OF = {"Human": "user", "Assistant": "assistant"}
SPEAKER_OF = {"user": "Human", "assistant": "Assistant"}


def begins_with_a_turn(text: str) -> bool:
    text = _from_its_mark(text)
    mark = SPEAKER.search(text)
    return mark is not None and not text[: mark.start()].strip()


def _from_its_mark(text: str) -> str:
    """Put back the blank line that stripping took from before the first mark; a mark alone may be anybody's words."""
    whole = f"\n\n{text.lstrip()}"
    return whole if SPEAKER.match(whole) and SPEAKER.search(text) else text


def parse_turns(text: str) -> list[dict]:
    """Parse text into messages, outer space of turns stripped.

    Text without any mark is one user turn, unchanged; text that has one but does not begin with it is neither: [].
    The blank line may be missing before the first of several marks.
    """
    before, *alternating = SPEAKER.split(_from_its_mark(text))
    if not alternating:
        return [{"role": "user", "content": text}]
    pairs = zip(alternating[::2], alternating[1::2], strict=True)
    return [] if before.strip() else [{"role": ROLE_OF[name], "content": content.strip()} for name, content in pairs]


def parse_prompt(text: str) -> list[dict]:
    """Parse a prompt as `parse_turns`, without the empty Assistant turn at its end that waits for the answer."""
    turns = parse_turns(text)
    # an empty turn after another Assistant turn stays, so that the row counts as having two of them in a row
    if turns[-1:] == [{"role": "assistant", "content": ""}] and [turn["role"] for turn in turns[-2:-1]] != [
        "assistant"
    ]:
        turns.pop()
    return turns


def render_prompt(messages: Sequence[dict]) -> str:
    """Render messages (user and assistant turns) as a prompt that ends in an empty Assistant turn."""
    turns = [f"\n\n{SPEAKER_OF[message['role']]}: {message['content']}" for message in messages]
    return "".join(turns) + "\n\nAssistant: "
