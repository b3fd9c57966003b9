"""JSON that somebody sent or wrote -> a conversation that a reward model can score, or one line on what is wrong.

For `score`'s lines and the server's requests: the messages name no file or line, the caller does.
"""

import json
from typing import Any

from starling_train.config.fields import UserError
from starling_train.data.reward_templates import check_conversation
from starling_train.data.rows import cells, forms, messages

ANSWERED = ("response", "completion")
READ = ("prompt", "messages", "conversations", "system", *ANSWERED)


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

    The forms are those of `rows/forms.py` that have one answer. allow_empty: an answer without text is an answer (a
    policy can give one), otherwise it raises UserError like everything else that cannot be scored.
    """
    if isinstance(row, list):
        return checked(row, allow_empty=allow_empty)
    given = {k: v for k, v in row.items() if v is not None and k in READ} if isinstance(row, dict) else {}
    given = cells.parsed(given)
    is_answered = "prompt" in given and any(key in given for key in ANSWERED)
    if not is_answered and not ("messages" in given or "conversations" in given):
        raise UserError('no conversation; give {"messages": [...]}, a list of messages, or {"prompt", "response"}')
    if not is_answered:
        checked(given.get("messages", given.get("conversations")), allow_empty=allow_empty)
    talk = forms.read(given)
    said = [with_answer(talk.context, answer["answer"]) for answer in talk.answers]
    return checked(said[0] if said else talk.context, allow_empty=allow_empty)


def with_answer(messages: list[dict], text: str) -> list[dict]:
    """Add an answer as the last turn of a conversation."""
    return [*messages, {"role": "assistant", "content": text}]


def checked(value: Any, *, allow_empty: bool = False) -> list[dict]:
    """Return the messages with role and content only. Raises UserError unless they end in an answer."""
    said = messages.read(value, allow_null=False)
    if said and said[-1]["role"] == "user":
        raise UserError("the conversation ends with the user; the assistant's answer to score must be last")
    check_conversation(said)
    if not allow_empty and not said[-1]["content"].strip():
        raise UserError("the answer is empty; there is nothing to score")
    return said
