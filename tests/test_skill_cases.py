"""`benchmarks/skill/cases.py`: cases of function calling of our own, in the leaderboard's files."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

from starling_train.evals.function_calling import is_correct, load_cases, parse_calls

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks" / "skill"))
import cases
import functions


@pytest.fixture(scope="module")
def splits() -> dict[str, list[cases.OwnCase]]:
    return {"training": cases.draw_cases("training", 600), "held_out": cases.draw_cases("held_out", 200)}


def names(drawn: list[cases.OwnCase]) -> set[str]:
    """Functions' names, however they are spelled."""
    return {re.sub("[^a-z]", "", function["name"].lower()) for case in drawn for function in case.functions}


def test_answers_are_right_and_no_other_function_is(splits):
    for case in (case for drawn in splits.values() for case in drawn):
        assert is_correct(case.answer, case.functions, [case.truth]), case
        (call,) = parse_calls(case.answer)
        for other in case.functions:
            if other["name"] != call.name:
                assert not is_correct(case.answer.replace(call.name, other["name"]), case.functions, [case.truth])


def test_requests_say_all_values(splits):
    """Strings, numbers and items of lists stand in the request; small numbers may be words."""
    for case in splits["held_out"]:
        (call,) = parse_calls(case.answer)
        for value in call.arguments.values():
            for item in value if isinstance(value, list) else [value]:
                if not isinstance(item, bool):
                    text = f"{item:g}" if isinstance(item, float) else str(item)
                    word = cases.NUMBERS[item] if type(item) is int and item < len(cases.NUMBERS) else text
                    assert text in case.request or word in case.request, (case.request, case.answer)


def test_functions_of_held_out_cases_never_occur_in_training(splits):
    assert len(names(splits["held_out"])) > 50
    assert not names(splits["held_out"]) & names(splits["training"])
    kept = {f.description for f in functions.functions() if f.field in functions.HELD_OUT}
    assert not kept & {function["description"] for case in splits["training"] for function in case.functions}


def test_drawn_by_seed(splits):
    """The same again, the first ones whatever the count, others with another seed."""
    again = cases.draw_cases("held_out", 20)
    assert [again[0], again[10]] == [splits["held_out"][0], splits["held_out"][100]]
    assert again != cases.draw_cases("held_out", 20, seed=1)


def test_kinds_and_types(splits):
    drawn = splits["training"]
    assert [sum(case.kind == kind for case in drawn) for kind in cases.KINDS] == [360, 240]
    assert all((len(case.functions) > 1) == (case.kind == "multiple") for case in drawn)
    properties = [p for case in drawn for f in case.functions for p in f["parameters"]["properties"].values()]
    assert {p["type"] for p in properties} == {"string", "integer", "float", "boolean", "array"}
    assert any("enum" in p for p in properties) and any("default" in p for p in properties)
    left_out = [case for case in drawn if any("" in allowed for allowed in next(iter(case.truth.values())).values())]
    assert 100 < len(left_out) < 500


def test_a_case_by_hand():
    """`book_ferry` has an optional vehicle; without it the default is right as well."""
    by_name = {function.name: function for function in functions.functions()}
    ferry = by_name["book_ferry"]
    assert ferry.parameters == ["origin", "destination", "date", "people"] and ferry.optional == {"vehicle": "car"}
    schema = cases.declare(ferry, cases.random.Random(0)).schema
    *required, vehicle = schema["parameters"]["properties"].items()
    assert [kind["type"] for _, kind in required] == ["string", "string", "string", "integer"]
    assert schema["parameters"]["required"] == [name for name, _ in required]
    assert vehicle[1]["enum"] == ["car", "van", "bicycle", "motorcycle", "truck"] and vehicle[1]["default"] == "car"


def test_written_files_are_the_leaderboards(splits, tmp_path):
    cases.write(tmp_path, splits["held_out"])
    read = load_cases(tmp_path)
    assert [case.category for case in read] == ["simple_python"] * 100 + ["multiple"] * 100
    assert [case.ground_truth for case in read] == [[case.truth] for case in splits["held_out"]]
    assert read[0].messages == [{"role": "user", "content": splits["held_out"][0].request}]


def test_nothing_is_the_leaderboards(splits):
    """No function's name and no request of its rows."""
    if not (data := os.environ.get("STARLING_DATA")):
        pytest.skip("STARLING_DATA is not set: no rows of the leaderboard to compare with")
    rows = load_cases(Path(data) / "bfcl")
    theirs = {function["name"] for case in rows for function in case.functions}
    drawn = [*cases.draw_cases("training", cases.TRAINING), *cases.draw_cases("held_out", cases.HELD_OUT)]
    assert not theirs & {function["name"] for case in drawn for function in case.functions}
    assert not {json.dumps(case.messages) for case in rows} & {
        json.dumps([{"role": "user", "content": case.request}]) for case in drawn
    }
