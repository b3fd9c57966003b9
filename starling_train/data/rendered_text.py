"""Rendered text -> conversation, for OpenRLHF's remote reward request, which carries text and no messages.

OpenRLHF's trainer posts {"query": [...], "prompts": [...], "labels": [...]}: a query is prompt and response as the
policy read and wrote them, special tokens included, in the policy's own template. How it becomes a conversation:

1. Special tokens at both ends (BOS, end of turn, padding) are removed.
2. The response is what a query has after its prompt; without prompts, after the last mark of an assistant's turn.
3. The prompt is cut at the marks of the first template that it has: Openchat's, ChatML, Llama-2's, Nectar's.
   A prompt without marks is one message of the user.

Text cannot tell whether a mark is the template's or somebody typed it: the answer is what follows the prompt, whatever
it contains, but in a prompt every mark starts a turn. `POST /score` has no such ambiguity. labels are not used.
"""

import re
from dataclasses import dataclass

from starling_train.config.fields import UserError
from starling_train.data.conversations import with_answer

ENDS = (
    "<s>", "</s>", "<unk>", "<pad>", "<bos>", "<eos>", "<|end_of_turn|>", "<|pad_0|>", "<|im_end|>", "<|endoftext|>",
    "<|begin_of_text|>", "<|eot_id|>",
)  # fmt: skip
_END = "|".join(map(re.escape, ENDS))
LEADING = re.compile(rf"\A(?:\s*(?:{_END}))+")
TRAILING = re.compile(rf"(?:(?:{_END})\s*)+\Z")


@dataclass(frozen=True)
class Style:
    """One template. start: a turn's mark, whose group `role` names the speaker; text before the first is a system's."""

    start: re.Pattern
    users: tuple[str, ...]
    assistants: tuple[str, ...]

    def role(self, mark: re.Match) -> str:
        named = mark["role"].strip()
        return "user" if named in self.users else "assistant" if named in self.assistants else "system"


STYLES = (
    Style(
        re.compile(r"(?:GPT4 Correct |Code |Math Correct )(?P<role>User|Assistant): ?"),
        users=("User",),
        assistants=("Assistant",),
    ),
    Style(re.compile(r"<\|im_start\|>(?P<role>system|user|assistant)\n"), users=("user",), assistants=("assistant",)),
    Style(re.compile(r"(?P<role>\[INST\]|\[/INST\]) ?"), users=("[INST]",), assistants=("[/INST]",)),
    Style(re.compile(r"(?:\A|\n\n)(?P<role>Human|Assistant): ?"), users=("Human",), assistants=("Assistant",)),
)


def to_conversation(query: str, prompt: str | None = None) -> list[dict]:
    """Parse a query into a conversation, the response last. Raises UserError if the two cannot be told apart."""
    query = without_ends(query)
    if prompt is None:
        turns = parse_turns(query)
        if turns is None or turns[-1]["role"] != "assistant":
            raise UserError("a query in no known template; send prompts as well, or use POST /score")
        return turns
    start = LEADING.sub("", prompt)
    if not query.startswith(start.rstrip()):
        raise UserError("a query that does not begin with its prompt; send prompts as they stand in the queries")
    response = query[len(start) :] if query.startswith(start) else query[len(start.rstrip()) :]
    return with_answer(_prompt_turns(start), response.strip())


def without_ends(text: str) -> str:
    """Return the text without special tokens at both ends."""
    return TRAILING.sub("", LEADING.sub("", text))


def parse_turns(text: str) -> list[dict] | None:
    """Parse rendered text into turns, empty ones included; None if it has no known mark of a user's turn."""
    for style in STYLES:
        marks = list(style.start.finditer(text))
        if not any(style.role(mark) == "user" for mark in marks):
            continue
        ends = [mark.start() for mark in marks[1:]] + [len(text)]
        turns = [(style.role(mark), text[mark.end() : end]) for mark, end in zip(marks, ends, strict=True)]
        if before := _content(text[: marks[0].start()]):
            turns.insert(0, ("system", before))
        return [{"role": role, "content": _content(content)} for role, content in turns]
    return None


def _prompt_turns(prompt: str) -> list[dict]:
    """Return the messages of a prompt, without the empty turn that waits for the response."""
    turns = parse_turns(prompt)
    if turns is None:
        return [{"role": "user", "content": without_ends(prompt).strip()}]
    return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns


def _content(text: str) -> str:
    return without_ends(text).strip()
