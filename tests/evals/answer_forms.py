"""The forms in which models write calls: more than a hundred, each made by program from the right calls.

A form takes the calls and a case's declarations by name, and returns an answer; whether that is right is not said here.
"""

import json
from collections.abc import Callable
from typing import Any

from starling_train.evals.function_calling import Call, Case, answer_text

Declared = dict[str, dict]
Form = Callable[[list[Call], Declared], str]
FENCE = "```"
SAMPLES = {
    "string": "some text",
    "integer": 7,
    "float": 2.5,
    "boolean": True,
    "array": ["some text"],
    "tuple": (1.5, 2.5),
    "dict": {"key": 1},
    "any": "some text",
}


def first_value(value: Any) -> Any:
    """One concrete value: in a dict, the first allowed one of each key that may not be left out."""
    if isinstance(value, dict):
        return {key: first_value(allowed[0]) for key, allowed in value.items() if "" not in allowed}
    return [first_value(item) for item in value] if isinstance(value, list) else value


def calls_of(case: Case) -> list[Call]:
    """The right calls; where none is right, one that fits the first function's declaration."""
    if case.ground_truth is None:
        parameters = case.functions[0]["parameters"]
        names = parameters.get("required") or list(parameters["properties"])[:1]
        kinds = {name: parameters["properties"][name]["type"] for name in names}
        return [Call(case.functions[0]["name"], {name: SAMPLES[kind] for name, kind in kinds.items()})]
    return [
        Call(name, {key: first_value(next((v for v in values if v != ""), "")) for key, values in allowed.items()})
        for truth in case.ground_truth
        for name, allowed in truth.items()
    ]


def written(call: Call, value: Callable[[Any], str] | None = None, equals: str = "=") -> str:
    """A call as text. value: writes an argument's value."""
    value = value or repr
    return f"{call.name}({', '.join(f'{key}{equals}{value(item)}' for key, item in call.arguments.items())})"


def each(write: Callable[[Call], str], around: str = "[{}]", between: str = ", ") -> Form:
    return lambda calls, declared: around.replace("{}", between.join(map(write, calls)))


def around(text: str, between: str = ", ") -> Form:
    return each(written, text, between)


def whole(change: Callable[[str], str]) -> Form:
    """A form that changes the plain answer's text."""
    return lambda calls, declared: change(answer_text(calls))


def values(write: Callable[[Any], str]) -> Form:
    """A form that writes scalars in another way, wherever they stand."""

    def deep(value: Any) -> str:
        match value:
            case dict():
                return "{" + ", ".join(f"{key!r}: {deep(item)}" for key, item in value.items()) + "}"
            case list():
                return "[" + ", ".join(map(deep, value)) + "]"
            case tuple():
                return "(" + "".join(f"{deep(item)}, " for item in value) + ")"
        return write(value)

    return each(lambda call: written(call, deep))


def arguments(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Form:
    """A form that changes the arguments of every call."""
    return lambda calls, declared: answer_text([Call(call.name, change(call.arguments)) for call in calls])


def those(kind: type, change: Callable[[Any], Any]) -> Form:
    """A form that changes the arguments of one type."""
    return arguments(lambda given: {key: change(v) if type(v) is kind else v for key, v in given.items()})


def optional(change: Callable[[Any], Any]) -> Form:
    """A form in which arguments that are not required have another value; ... leaves them out."""

    def form(calls: list[Call], declared: Declared) -> str:
        changed = []
        for call in calls:
            required = declared[call.name]["parameters"].get("required", [])
            given = {key: v if key in required else change(v) for key, v in call.arguments.items()}
            changed.append(Call(call.name, {key: v for key, v in given.items() if v is not ...}))
        return answer_text(changed)

    return form


def of(kind: type, write: Callable[[Any], str]) -> Callable[[Any], str]:
    """Write values of one type in a way of their own."""
    return lambda value: write(value) if type(value) is kind else repr(value)


def numbers(write: Callable[[Any], str]) -> Form:
    return values(lambda value: write(value) if type(value) in (int, float) else repr(value))


def fenced(label: str, closing: str = f"\n{FENCE}") -> Form:
    return around(f"{FENCE}{label}\n[{{}}]{closing}")


def as_json(calls: list[Call], declared: Declared) -> str:
    return json.dumps([{"name": call.name, "arguments": call.arguments} for call in calls])


def json_spelled(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


LAYOUT: dict[str, Form] = {
    "plain": whole(str),
    "without brackets": around("{}"),
    "one a line": around("[\n    {}\n]", ",\n    "),
    "bare on lines": around("{}", ",\n"),
    "lines without commas": around("{}", "\n"),
    "lists on lines": around("[{}]", "]\n["),
    "joined by and": around("{}", " and "),
    "joined by plus": around("{}", " + "),
    "numbered": around("1. {}", "\n2. "),
    "fence": fenced(""),
    "fence on one line": around(f"{FENCE}[{{}}]{FENCE}"),
    "single backticks": around("`{}`"),
    "double backticks": around("``[{}]``"),
    "label json": fenced("json"),
    "label python": fenced("python"),
    "label tool_code": fenced("tool_code"),
    "label after a space": fenced(" python"),
    "label without brackets": around(f"{FENCE}python\n{{}}\n{FENCE}"),
    "fence opened only": fenced("", ""),
    "fence closed only": around(f"[{{}}]\n{FENCE}"),
    "label, opened only": fenced("python", ""),
    "fence and prose": around(f"{FENCE}\n[{{}}]\n{FENCE}\nThis is the call."),
    "prose and fence": around(f"Here it is:\n{FENCE}\n[{{}}]\n{FENCE}"),
    "prose and labelled fence": around(f"Here it is:\n{FENCE}python\n[{{}}]\n{FENCE}"),
    "round brackets": around("({})"),
    "each in round brackets": each(lambda call: f"({written(call)})"),
    "braces": around("{{}}"),
    "double brackets": around("[[{}]]"),
    "list in round brackets": around("([{}])"),
    "no closing bracket": around("[{}"),
    "no opening bracket": around("{}]"),
    "one bracket too many": around("[{}]]"),
    "no last parenthesis": whole(lambda text: text[:-2]),
    "no last parenthesis, bracket": whole(lambda text: f"{text[:-2]}]"),
    "cut in the middle": whole(lambda text: text[: len(text) // 2]),
    "cut after the name": whole(lambda text: text[: text.index("(") + 1]),
    "cut after a comma": around("[{},"),
    "comma after the last": around("[{},]"),
    "comma behind": around("{},"),
    "spaces": each(lambda call: written(call, equals=" = "), "[ {} ]"),
    "space before the parenthesis": each(lambda call: written(call).replace("(", " (", 1)),
    "blank lines around": around("\n\n [{}] \n\n"),
    "tab in front": around("\t[{}]"),
    "no-break space in front": around("\u00a0[{}]"),
    "byte order mark": around("\ufeff[{}]"),
    "carriage returns": around("[\r\n{}\r\n]\r\n"),
    "null byte": around("[{}]\0"),
    "semicolon behind": around("{};"),
    "semicolon behind the list": around("[{}];"),
    "semicolons between": around("{}", "; "),
    "single quotes around": around("'{}'"),
    "double quotes around": around('"[{}]"'),
    "quoted calls": each(lambda call: repr(written(call))),
    "comment in front": around("# the call\n[{}]"),
    "comment behind": around("[{}] # the call"),
    "comment behind, bare": around("{} # the call]"),
}
WORDS: dict[str, Form] = {
    "empty": lambda calls, declared: "",
    "blank": lambda calls, declared: " \n ",
    "no calls": lambda calls, declared: "[]",
    "refusal": lambda calls, declared: "None of the functions fits this question.",
    "None": lambda calls, declared: "None",
    "one word": lambda calls, declared: "Sorry",
    "word with parentheses": lambda calls, declared: "Sorry(no function fits)",
    "name only": each(lambda call: call.name),
    "names with empty parentheses": each(lambda call: f"{call.name}()"),
    "word before": around("Answer: [{}]"),
    "line before": around("The call is:\n[{}]"),
    "words behind": around("[{}] is the call."),
    "words behind, bare": around("{} is the call."),
    "keyword and word behind": around("{} is right"),
    "line behind": around("[{}]\n\nThis calls what fits."),
    "full stop": around("[{}]."),
    "full stop, bare": around("{}."),
    "in a sentence": around("I would call {} here."),
    "sentence that begins with a call": each(lambda call: f"{call.name}(x) cannot answer this.", "{}"),
    "name and a remark": each(lambda call: f"{call.name} (not certain)", "{}"),
    "assigned": around("result = {}"),
    "printed": around("print({})"),
    "returned": around("return {}"),
    "awaited": each(lambda call: f"await {written(call)}"),
    "negated": around("not {}"),
    "in a condition": around("{} if True else None"),
    "tags": around("<tool_call>[{}]</tool_call>"),
    "tags in square brackets": around("[TOOL_CALLS] [{}]"),
    "reasoning before": around("<think>Which one?</think>\n[{}]"),
    "end mark": around("[{}]<|im_end|>"),
    "JSON": as_json,
    "JSON, fenced": lambda calls, declared: f"{FENCE}json\n{as_json(calls, declared)}\n{FENCE}",
    "JSON by name": lambda calls, declared: json.dumps([{call.name: call.arguments} for call in calls]),
    "XML": each(lambda call: f"<function={call.name}></function>", "{}"),
}  # fmt: skip
VALUES: dict[str, Form] = {
    "single quotes": values(repr),
    "JSON's words": values(json_spelled),
    "escapes": values(of(str, lambda text: json.dumps(text) if text else '"\\u0020"')),
    "hexadecimal escapes": values(of(str, lambda text: "'" + "".join(f"\\x{b:02x}" for b in text.encode()) + "'")),
    "raw strings": values(of(str, lambda text: f"r{text!r}")),
    "three quotes": values(of(str, lambda text: f"'''{text}'''")),
    "f-strings": values(of(str, lambda text: f"f{text!r}")),
    "byte strings": values(of(str, lambda text: repr(text.encode()))),
    "strings in parts": values(of(str, lambda text: f"{text[:2]!r} {text[2:]!r}")),
    "strings added up": values(of(str, lambda text: f"{text[:2]!r} + {text[2:]!r}")),
    "strings filled in": values(of(str, lambda text: f"'%s' % {text!r}")),
    "strings repeated": values(of(str, lambda text: f"{text!r} * 2")),
    "typographic quotes": values(of(str, lambda text: f"\u201c{text}\u201d")),
    "quotes within": values(of(str, lambda text: repr(f"'{text}'"))),
    "upper case": values(of(str, lambda text: repr(text.upper()))),
    "marks that do not count": values(of(str, lambda text: repr(f" {text.replace(' ', '-')}."))),
    "marks that count": values(of(str, lambda text: repr(f"{text}!"))),
    "line end in a string": values(of(str, lambda text: f"'{text}\n'")),
    "without quotes": values(of(str, str)),
    "as names": values(of(str, lambda text: text.replace(" ", "_"))),
    "subscripts": values(lambda value: "data[0]"),
    "subscripts of their own": values(of(str, lambda text: f"data[{text!r}]")),
    "attributes": values(lambda value: "data.value"),
    "dots": values(lambda value: "..."),
    "None for all": values(lambda value: "None"),
    "calls without names": values(lambda value: f"get({value!r})"),
    "calls with names": values(lambda value: f"get(value={value!r})"),
    "conversions": numbers(lambda value: f"{type(value).__name__}({value!r})"),
    "integers as floats": numbers(lambda value: repr(float(value))),
    "floats as integers": numbers(lambda value: repr(int(value))),
    "numbers as strings": numbers(lambda value: repr(str(value))),
    "numbers in sums": numbers(lambda value: f"{value - 1!r} + 1"),
    "numbers in products": numbers(lambda value: f"{value!r} * 1"),
    "numbers in quotients": numbers(lambda value: f"{value!r} / 1"),
    "numbers in powers": numbers(lambda value: f"({value!r}) ** 1"),
    "names in sums": numbers(lambda value: f"base + {value!r}"),
    "numbers with a minus": numbers(lambda value: f"-{abs(value)!r}"),
    "numbers with two": numbers(lambda value: f"--{abs(value)!r}"),
    "numbers inverted": numbers(lambda value: f"~{abs(int(value))!r}"),
    "numbers with underscores": numbers(lambda value: f"{value:_}"),
    "numbers with commas": numbers(lambda value: f"{value:,}"),
    "numbers with zeros in front": numbers(lambda value: f"00{value!r}"),
    "numbers with units": numbers(lambda value: f"{value!r} m"),
    "hexadecimal": values(of(int, hex)),
    "exponents": numbers(lambda value: f"{value:e}"),
    "complex": numbers(lambda value: f"{value!r}j"),
    "booleans as integers": values(of(bool, lambda value: str(int(value)))),
    "booleans as strings": values(of(bool, lambda value: repr(str(value)))),
    "booleans negated": values(of(bool, lambda value: f"not {not value}")),
    "integers as booleans": values(of(int, lambda value: str(bool(value)))),
    "lists as tuples": those(list, tuple),
    "tuples as lists": those(tuple, list),
    "lists as text": those(list, str),
    "lists as their first": those(list, lambda items: items[0] if items else None),
    "lists backwards": those(list, lambda items: items[::-1]),
    "lists without an item": those(list, lambda items: items[1:]),
    "lists within lists": those(list, lambda items: [items]),
    "strings as lists": those(str, lambda text: [text]),
    "integers as lists": those(int, lambda value: [value]),
    "dicts without a key": those(dict, lambda given: dict([*given.items()][1:])),
    "dicts with a key more": those(dict, lambda given: given | {"more": 1}),
    "dicts as lists": those(dict, list),
    "empty lists": those(list, lambda items: []),
    "empty strings": those(str, lambda text: ""),
}  # fmt: skip
ARGUMENTS: dict[str, Form] = {
    "optional left out": optional(lambda value: ...),
    "optional lists empty": optional(lambda value: [] if isinstance(value, list) else value),
    "optional all empty lists": optional(lambda value: []),
    "optional empty": optional(lambda value: ""),
    "optional None": optional(lambda value: None),
    "optional as text": optional(str),
    "in another order": arguments(lambda a: dict(reversed(a.items()))),
    "first left out": arguments(lambda a: dict([*a.items()][1:])),
    "one more": arguments(lambda a: a | {"one_more": 1}),
    "upper-case names": arguments(lambda a: {key.upper(): value for key, value in a.items()}),
    "positional": each(lambda call: f"{call.name}({', '.join(map(repr, call.arguments.values()))})"),
    "one positional more": each(lambda call: written(call).replace("(", "(0, ", 1)),
    "a list unpacked": each(lambda call: written(call).replace("(", "(*rest, ", 1)),
    "a dict unpacked": each(lambda call: f"{call.name}(**{call.arguments!r})"),
    "and an empty dict": each(lambda call: written(call)[:-1] + (", " if call.arguments else "") + "**{})"),
    "twice, the last counts": each(
        lambda call: f"{call.name}({''.join(f'{k}=0, ' for k in call.arguments)}{written(call).partition('(')[2]}"
    ),
    "colons": each(lambda call: written(call, equals=": ")),
    "quoted parameters": each(
        lambda call: f"{call.name}({', '.join(f'{k!r}={v!r}' for k, v in call.arguments.items())})"
    ),
    "as one dict": each(lambda call: f"{call.name}({call.arguments!r})"),
}
NAMES: dict[str, Form] = {
    "quoted name": each(lambda call: written(call).replace(call.name, f"'{call.name}'", 1)),
    "name in double quotes": each(lambda call: written(call).replace(call.name, f'"{call.name}"', 1)),
    "other name": each(lambda call: f"x_{written(call)}"),
    "name with a prefix": each(lambda call: f"functions.{written(call)}"),
    "name without its prefix": each(lambda call: written(call).split(".", 1)[-1]),
    "underscores for dots": each(lambda call: written(call).replace(".", "_", 1)),
    "full-width name": each(lambda call: chr(ord(call.name[0]) + 0xFEE0) + written(call)[1:]),
    "upper-case name": each(lambda call: call.name.upper() + written(call)[len(call.name) :]),
    "of a call": each(lambda call: f"api().{written(call)}"),
    "of a list": each(lambda call: f"[].{written(call)}", "{}"),
    "of a subscript": each(lambda call: written(call).replace("(", "[0](", 1)),
    "called again": each(lambda call: f"{written(call)}()"),
    "within another call": each(lambda call: f"run({written(call)})"),
    "as another's argument": each(lambda call: f"run(call={written(call)})"),
}
NUMBER: dict[str, Form] = {
    "backwards": lambda calls, declared: answer_text(calls[::-1]),
    "twice": lambda calls, declared: answer_text(calls * 2),
    "first twice": lambda calls, declared: answer_text([calls[0], *calls]),
    "without the first": lambda calls, declared: answer_text(calls[1:]),
    "first for all": lambda calls, declared: answer_text([calls[0]] * len(calls)),
    "one that is not on offer": lambda calls, declared: answer_text([*calls, Call("not_on_offer", {})]),
    "a number too": lambda calls, declared: f"{answer_text(calls)[:-1]}, 1]",
    "None too": lambda calls, declared: f"{answer_text(calls)[:-1]}, None]",
}
FORMS = LAYOUT | WORDS | VALUES | ARGUMENTS | NAMES | NUMBER

# Where the verdict differs on purpose; docs/evaluation.md says why.
SLIPS: dict[str, Form] = {
    "numbers with a plus": numbers(lambda value: f"+{abs(value)!r}"),
    "functions in sums": values(of(int, lambda value: f"abs({value!r}) + 0")),
}
