"""Answers to calls and back; nothing that a model writes is evaluated, crashes or stalls."""

import random
import subprocess
import sys

import pytest

from starling_train.evals.function_calling.parser import MAX_BITS, MAX_CHARACTERS, Call, answer_text, parse_calls

F1 = Call("f", {"a": 1})


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("[f(a=1)]", [F1]),
        ("f(a=1)", [F1]),
        ("  [f(a=1)]\n", [F1]),
        ("`f(a=1)`", [F1]),
        ("```\n[f(a=1)]\n```", [F1]),
        ("```[f(a=1)]```", [F1]),
        ("```\n[f(a=1)]", [F1]),
        ("[f(a=1)]\n```", [F1]),
        ("[f(a=1)", [F1]),
        ("f(a=1)]", [F1]),
        ("[f(a=1), g(),", [F1, Call("g", {})]),
        ("(f(a=1))", [F1]),
        ("f(a=1),\ng()", [F1, Call("g", {})]),
        ("f (a = 1)", [F1]),
        ("", []),
        ("[f(a=1), g()]", [F1, Call("g", {})]),
        ("f(a=1), g()", [F1, Call("g", {})]),
        ("[\n  f(a=1),\n  g(),\n]", [F1, Call("g", {})]),
        ("[math.special.gamma(x=0.5)]", [Call("math.special.gamma", {"x": 0.5})]),
        ("f(1, *[2], a=1)", [F1]),  # positional arguments are passed over
        ("f(a=2, a=1)", [F1]),
        ("f(**b)", [Call("f", {"**": "b"})]),  # the name of no parameter
        ("ｆ(ａ=1)", [F1]),  # as Python reads identifiers
        ("'f'(a=1)", [Call("", {"a": 1})]),
        ("f[0](a=1)", [Call("", {"a": 1})]),
        ("f(a=1)(b=2)", [Call("", {"b": 2})]),
        ("f.g().h(a=1)", [Call("h", {"a": 1})]),
        ("print(f(a=1))", [Call("print", {})]),
        ("[]", []),
    ],
)
def test_accepted_forms(text, calls):
    assert parse_calls(text) == calls


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        ("-3", -3),
        ("+3", 3),
        ("-2.5e3", -2500.0),
        ("True", True),
        ("None", None),
        ("'it''s'", "its"),
        ('"don\'t"', "don't"),
        ("'\\u00e9 é 日本'", "é é 日本"),
        ("[]", []),
        ("[1, [2, -3]]", [1, [2, -3]]),
        ("(1, 'b')", (1, "b")),
        ("{'k': [1], 2: {'n': None}}", {"k": [1], 2: {"n": None}}),
        ("...", "..."),
        ("1j", 1j),
        ("b'x'", b"x"),
        ("name", "name"),
        ("true", "true"),
        ("[x, 1]", ["x", 1]),
        ("rows[0]", "rows[0]"),
        ("rows[ 'a' ][1:2]", "rows['a'][1:2]"),
        ("g( 1,2 )", "g(1, 2)"),
        ("g(1, k=x)", {"g": {"k": "x"}}),
        ("1 + 2 * 3", 7),
        ("7 // 2 - 2 ** 3", -5),
        ("-(1 + 1) * 2.5", -5.0),
        ("1 / 4", 0.25),
        ("'a' + 'b' * 2", "abb"),
        ("'%s!' % 'x'", "x!"),
        ("[1] + [2]", [1, 2]),
        ("5 + +5", 10),
        ("~3 & 12", 12),
        ("~3", -3),  # a sign before a number is a minus, whichever it is; but for +
        ("not True", -1),
        ("-True", -1),
    ],
)
def test_values(literal, value):
    parsed = parse_calls(f"[f(x={literal})]")[0].arguments["x"]
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "I cannot help with that.",
        "[f]",
        "f",
        "1",
        "```python\n[f(a=1)]\n```",
        "[[f(a=1)]]",
        "{f(a=1)}",
        "'f(a=1)'",
        "\t[f(a=1)]",
        "[f(a=1",
        "[f(a=1)]]",
        "[f(a=1)];",
        "[f(a=1)] is what you want",
        "f(a=1) is right",
        "Use [f(a=1)]",
        "[f(a=1); g()]",
        "x = f(a=1)",
        "import os",
        "f(a=b.c)",
        "f(a=not x)",
        "f(a=-x)",
        "f(a=--1)",
        "f(a=-'x')",
        "f(a=lambda: 0)",
        "f(a=1 if b else 2)",
        "f(a=b and c)",
        "f(a=1 < 2)",
        "f(a=b + 1)",
        "f(a=g() + 1)",
        "f(a='x'.upper() + 'y')",
        "f(a=1 / 0)",
        "f(a=1 @ 2)",
        "f(a='a' - 1)",
        "f(a={1, 2})",
        "f(a={[]: 1})",
        "f(a={**{}})",
        "f(a=[*b])",
        "f(a=f'{1}')",
        "f(a=[x for x in [1]])",
        "f(a=(b := 1))",
        "f(a=__import__('os').system)",
        "[f(a=1), 2]",
        "[f(a=1), [g()]]",
        "[*f(a=1)]",
        "await f(a=1)",
        "f(a=1) if True else g()",
        "f(a=1)\ng()",
        "{'f': {'a': 1}}",
        '[{"name": "f", "arguments": {"a": 1}}]',
    ],
)
def test_everything_else_is_no_call(text):
    assert parse_calls(text) is None


@pytest.mark.parametrize(
    "literal",
    [
        "9 ** 999_999_999",
        "1 << 999_999_999",
        "'x' * 999_999_999",
        "999_999_999 * [1]",
        "(9 ** 50_000) * (9 ** 50_000)",
        "'%999999999d' % 1",
        "'%*d' % (999999999, 1)",
        "b'%999999999d' % 1",
        "('x' * 30_000) + ('x' * 30_000)",
    ],
)
def test_large_results_are_not_computed(literal):
    assert parse_calls(f"f(a={literal})") is None


def test_results_up_to_the_bounds_are_computed():
    assert parse_calls("f(a=2 ** 65_536)")[0].arguments["a"].bit_length() <= MAX_BITS
    assert parse_calls(f"f(a='x' * {MAX_CHARACTERS})")[0].arguments["a"] == "x" * MAX_CHARACTERS


HOSTILE = {
    "open brackets": "[" * 30_000,
    "closed brackets": "[f(a=" + "[" * 15_000 + "]" * 15_000 + ")]",
    "as deep as the parser goes": "[f(a=" + "[" * 190 + "]" * 190 + ")]",
    "open calls": "f(a=" * 7_000,
    "nested calls": "f(a=" * 90 + "1" + ")" * 90,
    "nested dicts with an error": "f(a=" + "{1:" * 90 + "1 1" + "}" * 90 + ")",
    "mixed nesting with an error": "f(a=[{1:(" * 45 + "1 1" + ")}])" * 45,
    "minus signs": "f(a=" + "-" * 30_000 + "1)",
    "some minus signs": "f(a=" + "-" * 900 + "1)",
    "dots": "a" + ".a" * 15_000 + "()",
    "chained calls": "a" + "()" * 15_000,
    "subscripts": "a" + "[0]" * 10_000 + "()",
    "sum": "f(a=" + "1+" * 15_000 + "1)",
    "powers": "f(a=" + "9**" * 9_000 + "9)",
    "not": "f(a=" + "not " * 7_000 + "1)",
    "lambdas": "f(a=" + "lambda:" * 4_000 + "1)",
    "conditionals": "f(a=" + "1 if 1 else " * 2_500 + "1)",
    "escaped quotes": 'f(a="' + '\\"' * 15_000,
    "f-strings": "f(a=f'" + "{" * 15_000 + "')",
    "digits": "f(a=" + "9" * 30_000 + ")",
    "exponent": "f(a=1e" + "9" * 5_000 + ")",
    "null byte": "f(a=1)\x00",
    "null byte in a string": "f(a='\x00')",
    "lone surrogate": "f(a='\ud800')",
    "backticks": "`" * 30_000,
    "a million characters": "f(a='" + "x" * 1_000_000 + "')",
    "control characters": "".join(map(chr, range(32))) * 900,
    "right-to-left": "f(a=\u202e1)",
    "prose": "f " * 15_000,
}


def lines_run(function, *arguments) -> tuple[int, object]:
    """How many lines of Python a call runs, and its result: work that does not depend on the machine."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        result = function(*arguments)
    finally:
        sys.settrace(before)
    return count, result


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_answers_end_quickly(text):
    work, calls = lines_run(parse_calls, text)
    assert work < 20 * MAX_CHARACTERS  # grows with the length, not with its square
    assert calls is None or (len(text) <= MAX_CHARACTERS and all(isinstance(call, Call) for call in calls))


def test_long_literals_are_read_as_data():
    text = "x" * (MAX_CHARACTERS - 9)
    assert parse_calls(f"[f(a='{text}')]") == [Call("f", {"a": text})]
    assert parse_calls(f"[f(a='{text}x')]") is None
    assert parse_calls("f(a=0x" + "f" * 20_000 + ")")[0].arguments["a"] == 16**20_000 - 1


def test_random_token_soup_ends_quickly():
    rng = random.Random(0)
    tokens = [
        *"[](){},:=.-+*'\"\\\n` ",
        "f",
        "a=",
        "1",
        "1.5",
        "f(a=",
        ")]",
        "lambda ",
        "if ",
        "f'{",
        "not ",
        "é",
        "\0",
    ]
    for _ in range(100):
        text = "".join(rng.choices(tokens, k=rng.randrange(1, 4_000)))
        assert lines_run(parse_calls, text)[0] < 50 * len(text) + 1000


def test_nothing_is_evaluated_or_printed(tmp_path):
    """In a fresh process: no file appears, and no warning about an odd escape reaches the terminal."""
    marker = tmp_path / "marker"
    script = (
        "from starling_train.evals.function_calling.parser import parse_calls\n"
        f"parse_calls('''f(a=open({str(marker)!r}, 'w'))''')\n"
        f"parse_calls('''[open({str(marker)!r}, 'w')]''')\n"
        f"parse_calls('''open(file={str(marker)!r}, mode='w')''')\n"
        "assert parse_calls(r'f(a=\"\\d\")') is not None\n"
    )
    run = subprocess.run([sys.executable, "-W", "always", "-c", script], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert not marker.exists()


def test_answer_text_by_hand():
    calls = [
        Call("f", {"a": 1, "b": "x"}),
        Call("m.g", {"c": [1.5, -2], "d": {"k": ("é", None)}, "e": True, "t": (1,), "u": ()}),
    ]
    assert answer_text(calls) == ('[f(a=1, b="x"), m.g(c=[1.5, -2], d={"k": ("é", None)}, e=True, t=(1,), u=())]')
    assert answer_text([]) == "[]"


def test_round_trip_of_random_calls():
    rng = random.Random(0)
    strings = [
        "",
        "a b",
        'say "hi"',
        "it's",
        "back\\slash",
        "new\nline\ttab",
        "日本",
        "😀",
        "\x00\x1b",
        "\u2028",
        "{x}",
    ]

    def value(depth: int):
        scalars = [rng.choice(strings), rng.randrange(-9, 10**20), rng.uniform(-1e9, 1e9), 1e-300, True, None]
        if depth == 0 or rng.random() < 0.6:
            return rng.choice(scalars)
        items = [value(depth - 1) for _ in range(rng.randrange(3))]
        return rng.choice([items, tuple(items), {rng.choice(strings): item for item in items}])

    for _ in range(300):
        calls = [Call("a.b", {f"p{i}": value(3) for i in range(3)}) for _ in range(rng.randrange(3))]
        assert parse_calls(answer_text(calls)) == calls
