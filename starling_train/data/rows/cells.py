"""Messages and ranked answers that a file holds as text: CSV has nothing else, and other files are made from CSV."""

import ast
import json
import re
from typing import Any

from starling_train.data.rows.messages import Unusable

MESSAGES, RANKED = (("role", "content"), ("from", "value")), (("answer", "rank"),)
# What a column may hold besides text, by the keys of its objects.
OBJECTS = {
    **dict.fromkeys(("prompt", "chosen", "rejected", "response", "completion"), MESSAGES),
    **dict.fromkeys(("messages", "conversations", "preferred_output", "non_preferred_output"), MESSAGES),
    "answers": RANKED,
    "input": (("messages",),),
}
ARRAY = re.compile(r"\s*\[\s*\{\s*['\"](role|content|from|value)['\"]\s*:\s*['\"\[]")


def parsed(row: dict) -> dict:
    """Return a row with the objects that its known columns hold as text, in JSON or as Python prints them.

    Other text stays text, an answer that is JSON of something else too; one message alone becomes a list of it. Raises
    Unusable for messages in a form that neither reads (numpy's arrays as printed, cells that were cut off).
    """
    found = {name: _parsed(row[name], name) for name in OBJECTS if isinstance(row.get(name), str)}
    row = row | found
    alone = {name: [row[name]] for name in OBJECTS if OBJECTS[name] is MESSAGES and isinstance(row.get(name), dict)}
    return row | alone


def _parsed(text: str, name: str) -> Any:
    if not text.lstrip().startswith(("[", "{")):
        return text
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return value if _is_of(value, OBJECTS[name]) else text
    if OBJECTS[name] is MESSAGES and ARRAY.match(text):
        raise Unusable(f"{name} is messages as text that is no JSON")
    return text


def _is_of(value: Any, wanted: tuple[tuple[str, ...], ...]) -> bool:
    """Return whether a value is an object with one of the sets of keys, or an array of such objects."""
    objects = value if isinstance(value, list) else [value]
    return bool(objects) and all(
        isinstance(one, dict) and any(one.keys() >= set(keys) for keys in wanted) for one in objects
    )
