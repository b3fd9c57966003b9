"""Is a function call right? The verdict of the Berkeley Function-Calling Leaderboard, Python subsets.

Rules: https://github.com/ShishirPatil/gorilla, berkeley-function-call-leaderboard, 'AST evaluation'. The verdicts are
those of its package `bfcl-eval`, also where they look odd; tests/evals/test_bfcl_eval.py runs both.
"""

import re
from collections.abc import Sequence
from typing import Any

from starling_train.evals.function_calling.parser import Call, parse_calls

PYTHON_TYPES: dict[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,  # JSON has no tuples, so the ground truth holds lists
    "dict": dict,
    "any": str,
}

_IGNORED_IN_STRINGS = re.compile(r"[ ,./\-_*^]")


def is_correct(answer_text: str, functions: Sequence[dict], ground_truth: Sequence[dict] | None) -> bool:
    """Whether an answer makes exactly the calls of the ground truth, in any order.

    `functions` are the leaderboard's declarations ({"name", "parameters": {"properties", "required"}});
    `ground_truth` is a list of `{name: {parameter: [allowed values]}}`. None or an empty list means that no
    function fits, and then an answer is right when it makes no call. Never raises, whatever the answer is.

    Calls of the ground truth take the first answered call that fits, one after the other, as on the leaderboard.
    """
    calls = parse_calls(answer_text)
    if not ground_truth:
        return not calls
    if calls is None or len(calls) != len(ground_truth):
        return False
    left = list(calls)
    for truth in ground_truth:
        fitting = next((index for index, call in enumerate(left) if _is_right_call(call, functions, truth)), None)
        if fitting is None:
            return False
        del left[fitting]
    return True


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
    """Whether one argument has the declared type, or else the ground truth's, and one of the allowed values.

    A value of the declared type is compared leniently (strings normalised); where the ground truth is of another type
    than the declaration (a variable's name, say), a value of either must be equal to an allowed one.
    """
    declared = schema.get("type") or ""
    kind = PYTHON_TYPES.get(declared)
    if declared == "tuple" and isinstance(value, tuple):
        value = list(value)
    if declared == "float" and type(value) is int:
        value = _as_float(value)
    item_kind = _item_kind(schema) if declared in ("array", "tuple") else None
    if type(value) is kind:
        if item_kind and not any(_items_fit(value, option, item_kind) for option in allowed):
            return False
        if type(value) is (_true_type(allowed) or kind):
            return _is_equal(value, allowed, item_kind)
    elif type(value) is not _true_type(allowed):
        return False
    return value in allowed


def _as_float(value: int) -> float | int:
    try:
        return float(value)
    except OverflowError:  # as an integer it is of the wrong type
        return value


def _item_kind(schema: dict) -> type | None:
    return PYTHON_TYPES.get(schema.get("items", {}).get("type") or "")


def _true_type(allowed: Sequence) -> type | None:
    """Return the type of the first allowed value; "" is none: it marks an argument that may be left out."""
    return next((type(option) for option in allowed if option != ""), None)


def _items_fit(value: Any, option: Any, kind: type) -> bool:
    """Whether all items have the declared type, or that of the option's first item. Anything fits an option "".

    One level deep: what lists in a list hold is compared by value alone.
    """
    return not isinstance(option, list) or all(type(item) in (kind, _true_type(option)) for item in value)


def _is_equal(value: Any, allowed: Sequence, item_kind: type | None) -> bool:
    """Whether a value equals one of the allowed ones. Strings are compared normalised, also as items of a list or dict.

    An option "" (may be left out) stands for a list without items as well.
    """
    match value:
        case dict():
            return any(_is_equal_dict(value, option) for option in allowed if option != "")
        case list() if item_kind is dict:
            return any(
                len(value) == len(option) and all(map(_is_equal_dict, value, option))
                for option in allowed
                if hasattr(option, "__len__")
            )
    options = [list(option) if isinstance(value, list) and option == "" else option for option in allowed]
    return _normalised(value) in map(_normalised, options)


def _is_equal_dict(value: Any, truth: Any) -> bool:
    """Whether a dict has only keys of the ground truth's, which lists the allowed values of each, and all it needs."""
    if not isinstance(value, dict) or not isinstance(truth, dict):
        return False
    options = {key: allowed if isinstance(allowed, list) else [allowed] for key, allowed in truth.items()}
    if any("" not in allowed for key, allowed in options.items() if key not in value):
        return False
    return all(
        key in options and _normalised_text(item) in map(_normalised_text, options[key]) for key, item in value.items()
    )


def _normalised(value: Any) -> Any:
    return [_normalised_text(item) for item in value] if isinstance(value, list) else _normalised_text(value)


def _normalised_text(value: Any) -> Any:
    """Return a string without what does not count, in one case and with one kind of quotes; other values unchanged."""
    return _IGNORED_IN_STRINGS.sub("", value).lower().replace("'", '"') if isinstance(value, str) else value
