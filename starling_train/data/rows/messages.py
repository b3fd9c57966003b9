"""Messages as people publish them -> `[{"role", "content"}, ...]` of text.

Read are OpenAI's objects of `role` and `content` (role `developer` is a system message), content as a list of parts
(`{"type": "text", "text": ...}`, joined as they stand), and ShareGPT's objects of `from` and `value`. Roles are read
however they are capitalised.
"""

from typing import Any

from starling_train.config.fields import UserError

ROLES = ("system", "user", "assistant")
ALIASES = {"developer": "system", "human": "user", "gpt": "assistant"}
TOOLS = ("tool", "function", "ipython")


class Unusable(UserError):
    """A row of a known form from which nothing can be learned; its text is the reason.

    Where a file is read, the row is dropped and counted; where one conversation was sent, it is an error like others.
    """


def read(value: Any, name: str = "messages", *, allow_null: bool = True) -> list[dict]:
    """Return messages with role and text content only.

    value: what a row has.
    name: its column, for messages.
    allow_null: content that is null is empty text; otherwise it raises UserError.

    Raises Unusable for tools' messages and calls and for content other than text, UserError for all else.
    """
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise UserError(f"`{name}` must be a list of objects with `role` and `content`")
    return [_message(message, allow_null) for message in value]


def same(first: list[dict], second: list[dict]) -> bool:
    """Return whether two conversations say the same; space around a turn does not count."""
    return len(first) == len(second) and all(
        a["role"] == b["role"] and a["content"].strip() == b["content"].strip()
        for a, b in zip(first, second, strict=True)
    )


def _message(message: dict, allow_null: bool) -> dict:
    role = message.get("role", message.get("from"))
    if _role(role) in TOOLS or message.get("tool_calls") or message.get("function_call"):
        raise Unusable("a tool's message or call")
    if not isinstance(role, str):
        raise UserError(f"role {repr(role)[:40]}; use system, user or assistant")
    if (known := _role(role)) is None:
        raise Unusable(f"role {repr(role)[:40]}, not system, user or assistant")
    role = known
    content = message.get("content", message.get("value"))
    return {"role": role, "content": _text("" if content is None and allow_null else content, role)}


def _role(role: Any) -> str | None:
    """Return our name of a role, however it is capitalised; a tool's as it is, None for an unknown one."""
    name = role.strip().lower() if isinstance(role, str) else ""
    name = ALIASES.get(name, name)
    return name if name in (*ROLES, *TOOLS) else None


def _text(content: Any, role: str) -> str:
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise Unusable("content that is not text")
        if any(part.get("type", "text") != "text" for part in content):
            raise Unusable("content that is not text")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise UserError(f"`content` of {'an' if role == 'assistant' else 'a'} {role} message must be text")
    try:
        content.encode()
    except UnicodeEncodeError as error:  # JSON can write half a surrogate pair, which no tokenizer takes
        raise UserError(
            f"`content` of a {role} message has half a surrogate pair, which is not Unicode text"
        ) from error
    return content
