"""JSON that somebody sent or wrote -> a conversation that a reward model can score, or one line on what is wrong.

For `score`'s lines, the server's requests and preference sets: the messages name no file or line, the caller does.
"""

import json
from typing import Any

from starling_train.config.fields import UserError
from starling_train.data.reward_templates import check_conversation

ROLES = ("system", "user", "assistant")


def parse(text: bytes) -> Any:
    """Parse a JSON value in UTF-8. Raises UserError."""
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8") from error
    except RecursionError as error:
        raise UserError("not JSON that can be read: nested too deep") from error
    except ValueError as error:  # also a number of thousands of digits
        raise UserError(f"not JSON ({error})") from error


def of_row(row: Any, *, allow_empty: bool = False) -> list[dict]:
    """Return the conversation in {"messages": [...]}, a list of messages, or {"prompt", "response"}.

    prompt: the user's text, or a list of messages. allow_empty: an answer without text is an answer (a policy can give
    one), otherwise it raises UserError like everything else that cannot be scored.
    """
    if isinstance(row, dict) and "messages" in row:
        return checked(row["messages"], allow_empty=allow_empty)
    if isinstance(row, dict) and {"prompt", "response"} <= row.keys():
        return checked(with_answer(of_prompt(row["prompt"]), row["response"]), allow_empty=allow_empty)
    if isinstance(row, list):
        return checked(row, allow_empty=allow_empty)
    raise UserError('no conversation; give {"messages": [...]}, a list of messages, or {"prompt", "response"}')


def with_answer(messages: list[dict], text: str) -> list[dict]:
    """Add an answer as the last turn of a conversation."""
    return [*messages, _message("assistant", text)]


def of_prompt(prompt: Any) -> list[dict]:
    """Return the messages in front of an answer: the user's text, or a list of messages."""
    return prompt if isinstance(prompt, list) else [_message("user", prompt)]


def checked(messages: Any, *, allow_empty: bool = False) -> list[dict]:
    """Return the messages with role and content only. Raises UserError unless they end in an answer."""
    if not isinstance(messages, list):
        raise UserError("the messages are not a list; give [{role, content}, ...]")
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise UserError(f"a message without a role; each has a role ({', '.join(ROLES)}) and a content")
        if not isinstance(message.get("content"), str):
            raise UserError(f"the {message['role']}'s content is not text; give a string")
        if not _is_text(message["content"]):
            raise UserError(f"the {message['role']}'s content has half a surrogate pair, which is not Unicode text")
    if messages and messages[-1]["role"] == "user":
        raise UserError("the conversation ends with the user; the assistant's answer to score must be last")
    check_conversation(messages)
    if not allow_empty and not messages[-1]["content"].strip():
        raise UserError("the answer is empty; there is nothing to score")
    return [_message(message["role"], message["content"]) for message in messages]


def _message(role: str, content: Any) -> dict:
    return {"role": role, "content": content}


def _is_text(content: str) -> bool:
    """Return whether text is Unicode: JSON can write half a surrogate pair ("\\ud800"), which no tokenizer takes."""
    try:
        content.encode()
    except UnicodeEncodeError:
        return False
    return True
