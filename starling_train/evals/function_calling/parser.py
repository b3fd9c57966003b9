"""Function calls as text: the Python-syntax answer `[f(a=1, b="x"), g()]`, read and written.

An answer is read as the Berkeley Function-Calling Leaderboard's default decoder reads it, so that an answer is a call
here exactly when it is one there; docs/evaluation.md lists what differs on purpose.
"""

import ast
import json
import math
import operator
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# A list of calls takes a few hundred characters; the bound keeps a runaway generation from costing time.
MAX_CHARACTERS = 32_768
MAX_BITS = 8 * MAX_CHARACTERS

UNPACKED = "**"  # the name of an argument that is unpacked, which no parameter can have

_AROUND = "` \n"  # what may stand around the calls: a fence without a label
_FENCE = re.compile(r"```(?:[^\S\n]*\w+[^\S\n]*\n)?(.*?)(?:```|\Z)", re.DOTALL)
_OPERATORS: dict[type[ast.operator | ast.unaryop], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.BitAnd: operator.and_,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Invert: operator.invert,
    ast.Not: operator.not_,
}
_WIDE_FORMAT = re.compile(r"\d{3}|\*")  # `"%999d" % 1` makes text out of nothing


@dataclass(frozen=True)
class Call:
    """One function call: a possibly dotted name and its keyword arguments, plain Python values.

    The name of what is called without a name (`"f"(a=1)`, `f[0]()`) is empty.
    """

    name: str
    arguments: dict[str, Any]


def parse_calls(text: str) -> list[Call] | None:
    """Return the calls that an answer consists of, in order; None where the answer is anything but calls.

    Around the calls, backticks, spaces, line ends and either square bracket may stand or be missing, and nothing else:
    no label of a fence, no prose. Positional arguments are passed over; of two arguments of one name the last counts.
    Values are literals, arithmetic of literals, and names, subscripts and calls, which stand for their text (a call
    with keyword arguments: for a dict). No function is run and no name is looked up. What Python's parser refuses
    (too deep, too many digits, null bytes) is None, and so is what is longer than MAX_CHARACTERS.
    """
    text = text.strip(_AROUND)
    if len(text) > MAX_CHARACTERS:
        return None
    text = ("" if text.startswith("[") else "[") + text
    text = text + ("" if text.endswith("]") else "]")
    try:
        return [_call(node) for node in _elements(_parsed(text))]
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError):
        # A model wrote the text: these are all the ways in which Python refuses one.
        return None


def in_fence(text: str) -> str:
    """Return what stands in an answer's first code fence, without its label; the answer where it has no fence."""
    fence = _FENCE.search(text)
    return fence[1] if fence else text


def answer_text(calls: list[Call]) -> str:
    """Return calls in the answer format, `[name(a=1, b="x")]`; `parse_calls` reads the same calls back."""
    return "[" + ", ".join(f"{call.name}({_rendered_arguments(call)})" for call in calls) + "]"


def _parsed(text: str) -> ast.expr:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an odd escape in an answer must not reach the user's terminal
        return ast.parse(text, mode="eval").body


def _elements(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, ast.List | ast.Tuple) else [node]


def _call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call):
        raise ValueError("not a call")
    return Call(_dotted_name(node.func), {keyword.arg or UNPACKED: _value(keyword.value) for keyword in node.keywords})


def _dotted_name(node: ast.expr) -> str:
    """Return the attributes that lead to what is called, and the name before them if there is one."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([*([node.id] if isinstance(node, ast.Name) else []), *reversed(parts)])


def _value(node: ast.expr | None) -> Any:
    match node:
        case ast.Constant(value=value):
            return "..." if value is ... else value
        case ast.Name(id=name):
            return name
        case ast.UnaryOp(op=op, operand=ast.Constant(value=value)):
            # The leaderboard takes every sign for a minus; of `+` that is a slip.
            return _OPERATORS[ast.UAdd if isinstance(op, ast.UAdd) else ast.USub](value)
        case ast.BinOp():
            return _computed(node)
        case ast.List(elts=elements):
            return [_value(element) for element in elements]
        case ast.Tuple(elts=elements):
            return tuple(_value(element) for element in elements)
        case ast.Dict(keys=keys, values=values):
            return {_value(key): _value(value) for key, value in zip(keys, values, strict=True)}
        case ast.Subscript(value=whole, slice=part):
            return f"{ast.unparse(whole)}[{ast.unparse(part)}]"
        case ast.Call(keywords=[]):
            return ast.unparse(node)
        case ast.Call():
            call = _call(node)
            return {call.name: call.arguments}
    raise ValueError("not a value")


def _computed(node: ast.expr | None) -> Any:
    """Compute arithmetic of literals. Raises ValueError for anything else, and for what would take long."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.List(elts=elements):
            return [_computed(element) for element in elements]
        case ast.Tuple(elts=elements):
            return tuple(_computed(element) for element in elements)
        case ast.Dict(keys=keys, values=values):
            return {_computed(key): _computed(value) for key, value in zip(keys, values, strict=True)}
        case ast.UnaryOp(op=op, operand=operand):
            return _OPERATORS[type(op)](_computed(operand))
        case ast.BinOp(left=first, op=op, right=second) if type(op) in _OPERATORS:
            left, right = _computed(first), _computed(second)
            if _is_large(op, left, right):
                raise ValueError("too large a number or text")
            return _OPERATORS[type(op)](left, right)
    raise ValueError("not arithmetic of literals")


def _is_large(op: ast.operator, left: Any, right: Any) -> bool:
    """Whether an operation makes something that is large beside its operands."""
    sizes = [value.bit_length() if isinstance(value, int) else 0 for value in (left, right)]
    match op:
        case ast.Pow() if isinstance(left, int) and isinstance(right, int):
            return sizes[0] * right > MAX_BITS
        case ast.LShift() if isinstance(left, int) and isinstance(right, int):
            return sizes[0] + right > MAX_BITS
        case ast.Mult() if isinstance(left, int) and isinstance(right, int):
            return sum(sizes) > MAX_BITS
        case ast.Mult():
            sequence, times = (right, left) if isinstance(left, int) else (left, right)
            return isinstance(times, int) and hasattr(sequence, "__len__") and len(sequence) * times > MAX_CHARACTERS
        case ast.Mod():
            return isinstance(left, bytes) or (isinstance(left, str) and bool(_WIDE_FORMAT.search(left)))
        case ast.Add():
            return hasattr(left, "__len__") and hasattr(right, "__len__") and len(left) + len(right) > MAX_CHARACTERS
    return False


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
