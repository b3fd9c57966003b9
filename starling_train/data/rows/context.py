"""The messages in front of a row's answers, agreed on by all columns that say something of them.

One fact in several columns is where context is lost: TRL and UltraFeedback have a `prompt` beside conversations that
repeat it. All are read, and a row whose columns contradict each other is not used.
"""

from itertools import pairwise
from typing import Any

from starling_train.config.fields import UserError
from starling_train.data.rows import marked_text, messages
from starling_train.data.rows.messages import Unusable, same


def of_row(row: dict, own: list[dict], whole: bool = False) -> list[dict]:
    """Return the context of a row's answers.

    row: its columns `prompt` (text, marked text or messages), `messages` (whose last answer is left out) and `system`
        (text) are read, as far as they are there.
    own: the messages that the answers bring along; [] where they are answers alone.
    whole: `messages` is the context as it stands, to its end.

    Raises Unusable where they contradict each other.
    """
    prompt = _prompt(row.get("prompt"))
    if own and own[0]["role"] == "assistant":  # the answers are several turns that follow the prompt
        own, prompt = [*prompt, *own], []
    said = messages.read(row["messages"]) if row.get("messages") is not None else []
    if not whole and said and said[-1]["role"] == "assistant":
        said = said[:-1]
    if _is_asked(row.get("prompt"), own or said):
        prompt = []
    context, name = own, "chosen"
    for other, key in ((said, "messages"), (prompt, "prompt")):
        context, name = _agreed(context, name, other, key), name if context else key
    if not context and "prompt" in row and not str(row["prompt"] or "").strip():
        context = [{"role": "user", "content": ""}]
    return _with_system(row.get("system"), context)


def why_unusable(context: list[dict]) -> str:
    """Return why no answer can follow the messages; "" where one can: user and assistant alternate, a user is last."""
    turns = context[1:] if context and context[0]["role"] == "system" else context
    roles = [message["role"] for message in turns]
    if "system" in roles:
        return "system message after the first turn"
    if not roles or roles[0] != "user":
        return "does not begin with a user turn"
    repeated = [first for first, second in pairwise(roles) if first == second]
    if repeated:
        return f"two {repeated[0]} turns in a row"
    if roles[-1] != "user":
        return "does not end with a user turn"
    return "" if all(message["content"].strip() for message in turns) else "empty turn"


def _prompt(prompt: Any) -> list[dict]:
    if isinstance(prompt, list):
        return messages.read(prompt, "prompt")
    if not isinstance(prompt, str | None):
        raise UserError(f"`prompt` is a {type(prompt).__name__}; it must be text")
    return marked_text.parse_prompt(prompt) if prompt and prompt.strip() else []


def _agreed(context: list[dict], name: str, other: list[dict], key: str) -> list[dict]:
    """Return the one of two contexts that says more. Raises Unusable if they contradict each other."""
    if not context or not other:
        return context or other
    for more, less in ((context, other), (other, context)):
        if same(more, less) or (more[0]["role"] == "system" and same(more[1:], less)):
            return more
    if key == "prompt" and len(other) == 1 and _is_asked(other[0]["content"], context):
        return context
    raise Unusable(f"{key} and {name} contradict each other")


def _is_asked(text: Any, context: list[dict]) -> bool:
    """Return whether text is what the user says first or last: UltraFeedback's `prompt`, whatever marks it holds."""
    asked = [message["content"].strip() for message in context if message["role"] == "user"]
    return isinstance(text, str) and bool(asked) and text.strip() in (asked[0], asked[-1])


def _with_system(system: Any, context: list[dict]) -> list[dict]:
    if not isinstance(system, str | None):
        raise UserError(f"`system` is a {type(system).__name__}; it must be text")
    if not system or not system.strip():
        return context
    if context and context[0]["role"] == "system":
        if context[0]["content"].strip() != system.strip():
            raise Unusable("system and the messages contradict each other")
        return context
    return [{"role": "system", "content": system}, *context]
