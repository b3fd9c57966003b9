"""The leaderboard's rules, one by one, on functions small enough to check by eye."""

from itertools import permutations

import pytest

from starling_train.evals.function_calling.checker import is_correct


def function(name: str, required: tuple[str, ...] = (), **properties: dict) -> dict:
    return {
        "name": name,
        "parameters": {"type": "dict", "properties": properties, "required": list(required)},
    }


def right(literal: str, kind: str | dict, allowed: list) -> bool:
    """Whether `f(x=<literal>)` is right where x has this type and these allowed values."""
    schema = kind if isinstance(kind, dict) else {"type": kind}
    return is_correct(f"[f(x={literal})]", [function("f", ("x",), x=schema)], [{"f": {"x": allowed}}])


AREA = function(
    "area", ("base", "height"), base={"type": "integer"}, height={"type": "integer"}, unit={"type": "string"}
)
AREA_TRUTH = [{"area": {"base": [10], "height": [5], "unit": ["units", ""]}}]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("[area(base=10, height=5)]", True),
        ("area(height=5, base=10)", True),
        ('[area(base=10, height=5, unit="units")]', True),
        ('[area(base=10, height=5, unit="")]', True),  # the string "" is in the list
        ('[area(base=10, height=5, unit="cm")]', False),
        ("[area(base=10)]", False),
        ("[area(base=10, height=6)]", False),
        ("[area(base=5, height=10)]", False),
        ("[area(base=10, height=5, depth=1)]", False),
        ("[area(10, 5)]", False),
        ("[Area(base=10, height=5)]", False),
        ("[m.area(base=10, height=5)]", False),
        ("[area(base=10, height=5), area(base=10, height=5)]", False),
        ("[]", False),
        ("", False),
        ("The area is 25.", False),
    ],
)
def test_names_parameters_and_count(answer, expected):
    assert is_correct(answer, [AREA], AREA_TRUTH) is expected


def test_a_required_parameter_is_required_whatever_the_truth_says():
    truth = [{"area": {"base": [10], "height": [5, ""]}}]
    assert is_correct("[area(base=10, height=5)]", [AREA], truth)
    assert not is_correct("[area(base=10)]", [AREA], truth)


def test_an_optional_parameter_without_the_mark_must_be_given():
    truth = [{"area": {"base": [10], "height": [5], "unit": ["cm"]}}]
    assert is_correct("[area(base=10, height=5, unit='cm')]", [AREA], truth)
    assert not is_correct("[area(base=10, height=5)]", [AREA], truth)


def test_a_declared_parameter_that_the_truth_lacks_is_wrong():
    assert not is_correct("[area(base=1, height=2, unit='cm')]", [AREA], [{"area": {"base": [1], "height": [2]}}])


@pytest.mark.parametrize(
    ("literal", "kind", "allowed", "expected"),
    [
        ("5", "integer", [5], True),
        ("6", "integer", [5, 6], True),
        ("5.0", "integer", [5], False),
        ('"5"', "integer", [5], False),
        ("True", "integer", [1], False),
        ("None", "integer", [0], False),
        ("[5]", "integer", [5], False),
        ('""', "integer", [5, ""], False),
        ("-5", "integer", [-5], True),
        ("5.5", "float", [5.5], True),
        ("5", "float", [5.0], True),
        ("5.0", "float", [5], True),
        ("5", "float", [5.5], False),
        ("True", "float", [1.0], False),
        ('"5.5"', "float", [5.5], False),
        ("1e999", "float", [5.5], False),
        ("0x" + "f" * 400, "float", [5.5], False),  # larger than any float
        ("True", "boolean", [True], True),
        ("False", "boolean", [True], False),
        ("1", "boolean", [True], False),
        ('"true"', "boolean", [True], False),
        ("7", "string", ["7"], False),
        ('"my_data"', "any", ["my_data"], True),
        ("[1]", "any", [[1]], True),
        ("7", "any", [7], True),
        ("7.0", "any", [7], False),
        ('"a"', "integer", ["a"], True),  # a wrong declaration: the truth's own type counts
        ("5", "no such type", [5], True),
    ],
)
def test_types_of_scalars(literal, kind, allowed, expected):
    assert right(literal, kind, allowed) is expected


@pytest.mark.parametrize(
    ("given", "allowed", "expected"),
    [
        ("New York", "new york", True),
        ("April 1, 2024", "April 1 2024", True),
        ("April-1_2024", "april/1.2024", True),
        ("x^2 * 3", "X23", True),
        ("it's", 'it"s', True),
        ("a\tb", "ab", False),  # only the space is ignored
        ("a+b", "ab", False),
        ("New York", "New Yorks", False),
        ("É", "é", True),
        ("a", "а", False),  # Latin and Cyrillic
    ],
)
def test_strings_are_compared_normalised(given, allowed, expected):
    assert right(repr(given), "string", [allowed]) is expected


INTEGERS = {"type": "array", "items": {"type": "integer"}}
FLOATS = {"type": "array", "items": {"type": "float"}}
STRINGS = {"type": "array", "items": {"type": "string"}}
ROWS = {"type": "array", "items": INTEGERS}
POINT = {"type": "tuple", "items": {"type": "float"}}


@pytest.mark.parametrize(
    ("literal", "kind", "allowed", "expected"),
    [
        ("[1, 2]", INTEGERS, [[1, 2]], True),
        ("[1, 2]", INTEGERS, [[3], [1, 2]], True),
        ("[2, 1]", INTEGERS, [[1, 2]], False),
        ("[1]", INTEGERS, [[1, 2]], False),
        ("[1, 2, 3]", INTEGERS, [[1, 2]], False),
        ("[]", INTEGERS, [[1, 2]], False),
        ("[]", INTEGERS, [[1, 2], ""], True),  # what may be left out may be empty
        ("[]", INTEGERS, [[]], True),
        ("(1, 2)", INTEGERS, [[1, 2]], False),
        ("1", INTEGERS, [[1]], False),
        ("[1.0, 2]", INTEGERS, [[1, 2]], False),
        ("[True, 2]", INTEGERS, [[1, 2]], False),
        ('["1", 2]', INTEGERS, [[1, 2]], False),
        ("[1.0, 2.5]", FLOATS, [[1.0, 2.5]], True),
        ("[1, 2.5]", FLOATS, [[1, 2.5]], True),
        ("[1, 2.5]", FLOATS, [[1.0, 2.5]], False),
        ('["a b", "C"]', STRINGS, [["A-B", "c"]], True),
        ('["c", "a b"]', STRINGS, [["A-B", "c"]], False),
        ('"a"', STRINGS, [["a"]], False),
        ('[["a"], ["b"]]', STRINGS, [["a", "b"], [["a"], ["b"]]], True),
        ("[[1, 2], [3, 4]]", ROWS, [[[1, 2], [3, 4]]], True),
        ("[[1, 2], [3, 5]]", ROWS, [[[1, 2], [3, 4]]], False),
        ("[[1, 2], [3, 4.0]]", ROWS, [[[1, 2], [3, 4]]], True),  # types one level deep, then values
        ("[1, 2, 3, 4]", ROWS, [[[1, 2], [3, 4]]], False),
        ("(1.5, -2.5)", POINT, [[1.5, -2.5]], True),
        ("[1.5, -2.5]", POINT, [[1.5, -2.5]], True),
        ("(1.5, 2.5)", POINT, [[1.5, -2.5]], False),
        ('("1.5", -2.5)', POINT, [[1.5, -2.5]], False),
    ],
)
def test_lists_and_tuples(literal, kind, allowed, expected):
    assert right(literal, kind, allowed) is expected


ROOM = [{"min": [1, 2], "name": ["Big Room", ""]}]
ROOMS = {"type": "array", "items": {"type": "dict"}}


@pytest.mark.parametrize(
    ("literal", "kind", "allowed", "expected"),
    [
        ('{"min": 1, "name": "big room"}', "dict", ROOM, True),
        ('{"name": "big room", "min": 2}', "dict", ROOM, True),
        ('{"min": 2}', "dict", ROOM, True),
        ('{"min": 3}', "dict", ROOM, False),
        ('{"name": "big room"}', "dict", ROOM, False),
        ('{"min": 1, "max": 2}', "dict", ROOM, False),
        ('{"min": "1"}', "dict", ROOM, False),
        ('{"min": True}', "dict", ROOM, True),  # no types in a dict, and True is 1
        ("{}", "dict", ROOM, False),
        ('["min"]', "dict", ROOM, False),
        ('{"a": {"b": 1.5, "c": "x y"}}', "dict", [{"a": [{"b": 1.5, "c": "x y"}]}], True),
        ('{"a": {"b": 1.5, "c": "X Y"}}', "dict", [{"a": [{"b": 1.5, "c": "x y"}]}], False),  # not normalised there
        ('{"a": {"b": 1.5}}', "dict", [{"a": [{"b": 1.5, "c": "x y"}]}], False),
        ('{"a": ["x", "y"]}', "dict", [{"a": [["x", "y"]]}], True),
        ('{"a": ["X", "y"]}', "dict", [{"a": [["x", "y"]]}], False),
        ('[{"min": 1}, {"min": 2}]', ROOMS, [ROOM * 2], True),
        ('[{"min": 1}]', ROOMS, [ROOM * 2], False),
        ('[{"min": 1}, {"min": 3}]', ROOMS, [ROOM * 2], False),
        ('[{"min": 1}, 2]', ROOMS, [ROOM * 2], False),
    ],
)
def test_dicts(literal, kind, allowed, expected):
    assert right(literal, kind, allowed) is expected


def test_the_function_is_chosen_by_name_among_several():
    functions = [function("f", ("x",), x={"type": "string"}), function("g", ("x",), x={"type": "integer"})]
    assert is_correct("[g(x=1)]", functions, [{"g": {"x": [1]}}])
    assert not is_correct("[f(x=1)]", functions, [{"g": {"x": [1]}}])
    assert not is_correct("[h(x=1)]", functions, [{"h": {"x": [1]}}])


def test_parallel_calls_come_in_any_order():
    functions = [function("f", ("x",), x={"type": "integer"}), function("g")]
    truth = [{"f": {"x": [1]}}, {"f": {"x": [2]}}, {"g": {}}]
    for order in permutations(["f(x=1)", "f(x=2)", "g()"]):
        assert is_correct(f"[{', '.join(order)}]", functions, truth)
    assert not is_correct("[f(x=1), f(x=1), g()]", functions, truth)
    assert not is_correct("[f(x=1), f(x=2)]", functions, truth)
    assert not is_correct("[f(x=1), f(x=2), g(), g()]", functions, truth)


def test_a_true_call_takes_the_first_answer_that_fits():
    """f(x=1) fits both truths. Answered first, it goes to the first of them, and f(x=2) is left without a partner."""
    functions = [function("f", ("x",), x={"type": "integer"})]
    truth = [{"f": {"x": [1, 2]}}, {"f": {"x": [1]}}]
    assert not is_correct("[f(x=1), f(x=2)]", functions, truth)
    assert is_correct("[f(x=2), f(x=1)]", functions, truth)
    assert is_correct("[f(x=1), f(x=2)]", functions, truth[::-1])
    assert not is_correct("[f(x=2), f(x=2)]", functions, truth)


@pytest.mark.parametrize("truth", [None, []])
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("None of the functions fits.", True),
        ("No function (area) fits: f(a=1) is not on offer.", True),
        ("", True),
        ("[]", True),
        ("[area(base=1, height=2)]", False),
        ("anything(x=1)", False),
        ("Nothing(x)", False),
        ("[area(1, 2)]", False),
        ("[area(base=compute(x=1))]", False),
        ("```\n[area(base=1, height=2)]\n```", False),
        # what is no call to the leaderboard's decoder
        ("```python\n[area(base=1, height=2)]\n```", True),
        ("[area(base=1, height=2)];", True),
        ("area(base=1, height=2) is the area.", True),
        ("[area(base=", True),
    ],
)
def test_irrelevance_wants_no_call(answer, expected, truth):
    assert is_correct(answer, [AREA], truth) is expected
