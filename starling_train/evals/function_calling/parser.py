"""Function calls as text: the Python-syntax answer `[f(a=1, b="x"), g()]`, read and written."""

import ast
import json
import math
import re
import warnings
from dataclasses import dataclass
from typing import Any

# A list of calls takes a few hundred characters; the bound keeps a runaway generation from costing time.
MAX_CHARACTERS = 32_768

_FENCED = re.compile(r"(```|`)(?:\w+\n)?(.*)\1", re.DOTALL)
_CALL_START = re.compile(r"[\[(\s]*[^\W\d][\w.]*\(")


@dataclass(frozen=True)
class Call:
    """One function call: a possibly dotted name and its keyword arguments, plain Python values."""

    name: str
    arguments: dict[str, Any]


def parse_calls(text: str) -> list[Call] | None:
    """Return the calls that an answer consists of, in order; None where the answer is anything but calls.

    Accepted: calls with keyword arguments whose values are literals (str, int, float, bool, None, and lists,
    tuples and dicts of them), separated by commas, with or without brackets around, in a code fence or not.
    Nothing is evaluated: names, operators, positional arguments, `**`, nested calls and text around the calls
    all give None, and so does everything that Python's parser refuses (too deep, too many digits, null bytes).
    """
    text = _unfenced(text)
    if len(text) > MAX_CHARACTERS:
        return None
    try:
        calls = [_call(node) for node in _elements(_parsed(text))]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # A model wrote the text: these are all the ways in which Python's parser refuses one.
        return None
    # Python reads a full-width letter in an identifier as the plain one; a call must spell the plain one.
    identifiers = (part for call in calls for part in [*call.name.split("."), *call.arguments])
    return calls if all(part in text for part in identifiers) else None


def attempts_call(text: str) -> bool:
    """Whether an answer opens like a call, well-formed or not: `name(` without a space between."""
    return _CALL_START.match(_unfenced(text)) is not None


def answer_text(calls: list[Call]) -> str:
    """Return calls in the answer format, `[name(a=1, b="x")]`; `parse_calls` reads the same calls back."""
    return "[" + ", ".join(f"{call.name}({_rendered_arguments(call)})" for call in calls) + "]"


def _unfenced(text: str) -> str:
    text = text.strip()
    fenced = _FENCED.fullmatch(text)
    return fenced.group(2).strip() if fenced else text


def _parsed(text: str) -> ast.expr:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an odd escape in an answer must not reach the user's terminal
        return ast.parse(text, mode="eval").body


def _elements(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, ast.List | ast.Tuple) else [node]


def _call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("not a call with keyword arguments only")
    arguments = {keyword.arg: _literal(keyword.value) for keyword in node.keywords}
    named = {name: value for name, value in arguments.items() if name is not None}
    # Two arguments of one name are an error of Python's compiler, not of its parser; `**x` has the name None.
    if len(named) < len(node.keywords):
        raise ValueError("an argument is repeated or unpacked")
    return Call(_dotted_name(node.func), named)


def _dotted_name(node: ast.expr) -> str:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise ValueError("not a dotted name")
    return ".".join([node.id, *reversed(parts)])


def _literal(node: ast.expr | None) -> Any:
    match node:
        case ast.Constant(value=str() | int() | float() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as n)) if type(n) is not bool:
            return -n
        case ast.UnaryOp(op=ast.UAdd(), operand=ast.Constant(value=value)) if type(value) in (int, float):
            return value
        case ast.List(elts=elements):
            return [_literal(element) for element in elements]
        case ast.Tuple(elts=elements):
            return tuple(_literal(element) for element in elements)
        case ast.Dict(keys=keys, values=values):
            # A key that is not a constant (or a negative number) is unhashable, or None for `**x`: neither is data.
            if not all(isinstance(key, ast.Constant | ast.UnaryOp) for key in keys):
                raise ValueError("a key is not a constant")
            return {_literal(key): _literal(value) for key, value in zip(keys, values, strict=True)}
    raise ValueError("not a literal")


def _rendered_arguments(call: Call) -> str:
    return ", ".join(f"{name}={_rendered(value)}" for name, value in call.arguments.items())


def _rendered(value: Any) -> str:
    match value:
        case str():
            return json.dumps(value, ensure_ascii=False)  # JSON's escapes are Python's, save surrogate pairs
        case list():
            return "[" + ", ".join(map(_rendered, value)) + "]"
        case tuple():
            return "(" + ", ".join(map(_rendered, value)) + ("," if len(value) == 1 else "") + ")"
        case dict():
            return "{" + ", ".join(f"{_rendered(key)}: {_rendered(x)}" for key, x in value.items()) + "}"
        case float():
            assert math.isfinite(value), "infinity and NaN have no literal"
    return repr(value)
