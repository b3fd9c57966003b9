"""Is a function call right? The rules of the Berkeley Function-Calling Leaderboard, Python subsets.

Rules: https://github.com/ShishirPatil/gorilla, berkeley-function-call-leaderboard, 'AST evaluation'.
"""

import re
from collections.abc import Sequence
from typing import Any

from starling_train.evals.function_calling.parser import Call, attempts_call, parse_calls

PYTHON_TYPES = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,  # JSON has no tuples, so the ground truth holds lists
    "dict": dict,
}

_IGNORED_IN_STRINGS = re.compile(r"[ ,./\-_*^]")


def is_correct(answer_text: str, functions: Sequence[dict], ground_truth: Sequence[dict] | None) -> bool:
    """Whether an answer makes exactly the calls of the ground truth, in any order.

    `functions` are the leaderboard's declarations ({"name", "parameters": {"properties", "required"}});
    `ground_truth` is a list of `{name: {parameter: [allowed values]}}`. None or an empty list means that no
    function fits, and then an answer is right when it makes no call. Never raises, whatever the answer is.

    Stricter than the leaderboard's code: literals only, no variables or arithmetic as values; no positional
    arguments (theirs are ignored); brackets must pair; True is not 1 inside lists and dicts either; items of
    an optional list are held to their type too; a malformed call is a call where no call is right.
    More lenient: parallel calls are matched to the ground truth as well as possible, not greedily.
    """
    calls = parse_calls(answer_text)
    if not ground_truth:
        return not calls and not attempts_call(answer_text)
    if calls is None or len(calls) != len(ground_truth):
        return False
    accepts = [[_is_right_call(call, functions, truth) for truth in ground_truth] for call in calls]
    return has_perfect_matching(accepts)


def has_perfect_matching(accepts: list[list[bool]]) -> bool:
    """Whether rows and columns of a square table can be paired off along True entries (Kuhn's algorithm)."""
    row_of_column: dict[int, int] = {}

    def match_row(row: int, tried: set[int]) -> bool:
        for column, accepted in enumerate(accepts[row]):
            if accepted and column not in tried:
                tried.add(column)
                if column not in row_of_column or match_row(row_of_column[column], tried):
                    row_of_column[column] = row
                    return True
        return False

    return all(match_row(row, set()) for row in range(len(accepts)))


def _is_right_call(call: Call, functions: Sequence[dict], truth: dict) -> bool:
    ((name, allowed_values),) = truth.items()
    function = next((function for function in functions if function["name"] == name), None)
    if call.name != name or function is None:
        return False
    properties = function["parameters"]["properties"]
    if any(required not in call.arguments for required in function["parameters"].get("required", [])):
        return False
    if any("" not in allowed for key, allowed in allowed_values.items() if key not in call.arguments):
        return False
    return all(
        key in properties and key in allowed_values and _is_allowed(value, allowed_values[key], properties[key])
        for key, value in call.arguments.items()
    )


def _is_allowed(value: Any, allowed: Sequence, schema: dict) -> bool:
    """Whether one argument has the declared type and one of the allowed values."""
    kind = schema.get("type")
    if kind == "tuple" and isinstance(value, tuple):
        value = list(value)
    if kind == "float" and type(value) is int:
        return any(_equal(value, truth) for truth in allowed)
    # "" marks an argument that may be left out; as a value it is only ever right for a string.
    truths = allowed if kind == "string" else [truth for truth in allowed if truth != ""]
    return any(_has_type(value, truth, schema) and _equal(value, truth) for truth in truths)


def _has_type(value: Any, truth: Any, schema: dict) -> bool:
    """Whether a value has the declared type, or else the ground truth's (for `any` and wrong declarations).

    List items are held to the type of `items`; there an int passes for a float only if the truth has an int.
    What is inside a dict is compared by value alone.
    """
    if type(value) is not PYTHON_TYPES.get(schema.get("type", "")) and type(value) is not type(truth):
        return False
    if not isinstance(value, list) or not isinstance(truth, list):
        return True
    items = schema.get("items", {})
    return all(_has_type(item, true_item, items) for item, true_item in zip(value, truth, strict=False))


def _equal(value: Any, truth: Any) -> bool:
    """Whether a value equals one ground-truth value; in a dict each key lists its allowed values."""
    match value, truth:
        case str(), str():
            return _normalised(value) == _normalised(truth)
        case list(), list():
            return len(value) == len(truth) and all(map(_equal, value, truth))
        case dict(), dict():
            return _equal_dicts(value, truth)
    return isinstance(value, bool) == isinstance(truth, bool) and value == truth


def _equal_dicts(value: dict, truth: dict) -> bool:
    # A dict inside a dict holds plain values in the leaderboard's data, not lists of allowed ones.
    options = {key: allowed if isinstance(allowed, list) else [allowed] for key, allowed in truth.items()}
    if not value.keys() <= options.keys():
        return False
    if any("" not in allowed for key, allowed in options.items() if key not in value):
        return False
    return all(any(_equal(item, option) for option in options[key]) for key, item in value.items())


def _normalised(text: str) -> str:
    return _IGNORED_IN_STRINGS.sub("", text).lower().replace("'", '"')
