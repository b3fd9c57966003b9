"""Every ground truth of the leaderboard's own files: right as it stands, wrong in every corruption."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from answer_forms import first_value

from starling_train.evals.function_calling import Call, Case, answer_text, evaluate, is_correct, load_cases

DATA = Path(os.environ.get("STARLING_DATA", "")) / "bfcl"
pytestmark = pytest.mark.skipif("STARLING_DATA" not in os.environ, reason="STARLING_DATA is not set")

UNSEEN = "zq unseen value"  # no ground truth allows it, normalised or not
UNSEEN_NUMBER = 918273645


def true_calls(case: Case, leave_out: bool = False) -> list[Call]:
    """The first allowed value of every parameter; with `leave_out` only of those that may not be left out."""
    calls = []
    for truth in case.ground_truth:
        ((name, allowed),) = truth.items()
        required = declaration(case, name)["required"]
        left_out = {key for key, values in allowed.items() if leave_out and "" in values and key not in required}
        values = {key: next((v for v in values if v != ""), "") for key, values in allowed.items()}
        calls.append(Call(name, {key: first_value(values[key]) for key in allowed if key not in left_out}))
    return calls


def declaration(case: Case, name: str) -> dict:
    return next(function["parameters"] for function in case.functions if function["name"] == name)


def all_allowed(case: Case, name: str, key: str) -> list:
    """What any ground-truth call of this function allows for a parameter."""
    return [v for truth in case.ground_truth for n, args in truth.items() if n == name for v in args.get(key, [])]


def wrong_values(value, allowed: list) -> list:
    """Values of the right type that no ground truth allows."""
    match value:
        case bool():
            candidates = [] if (not value) in allowed else [not value]
        case int() | float():
            candidates = [value + UNSEEN_NUMBER, -value - UNSEEN_NUMBER]
        case str():
            candidates = [UNSEEN, f"{value} {UNSEEN}"]
        case list():
            candidates = [[*value, *(value[:1] or [0])], value[::-1], value[:-1], []]
            # a list that may be left out may be empty
            right = [first_value(a) for a in allowed] + [[]] * ("" in allowed)
            candidates = [c for c in candidates if c not in right]
        case dict():
            candidates = [{}, {**value, UNSEEN: 1}, dict.fromkeys(value, UNSEEN), dict.fromkeys(value)]
            candidates += [{k: v for k, v in value.items() if k != gone} for gone in value]
    return candidates


def wrong_types(value) -> list:
    """Values that differ from the given one in type, whatever its declared type is."""
    others = [
        None,
        UNSEEN,
        UNSEEN_NUMBER,
        UNSEEN_NUMBER + 0.5,
        [UNSEEN],
        {UNSEEN: UNSEEN},
        (UNSEEN,),
        [[value]],
    ]
    match value:
        case bool():
            return [int(value), float(value), str(value), [value], *others]
        case int():
            return [str(value), [value], bool(value), *others]
        case float():
            return [str(value), [value], bool(value), *others]
        case str():
            return [[value], {value: value}, True, *others]
        case list():
            return [str(value), {"items": value}, [str(value)], [None, *value[1:]], *others]
        case dict():
            return [str(value), [value], list(value), *others]
    raise AssertionError(value)


def corrupted_calls(case: Case, call: Call) -> list[Call]:
    """Calls that differ from a true one in one respect and fit no call of the ground truth."""
    name, arguments = call.name, call.arguments
    properties, required = (declaration(case, name)[key] for key in ("properties", "required"))
    names = [f"{name}_x", f"x_{name}", f"x.{name}", name[:-1] + "_", name.swapcase()]
    wrong = [Call(other, arguments) for other in names]
    wrong += [Call(f["name"], arguments) for f in case.functions if not any(f["name"] in t for t in case.ground_truth)]
    wrong += [Call(name, {**arguments, extra: 1}) for extra in ("unknown_parameter", "self")]
    for key, value in arguments.items():
        rest = {other: v for other, v in arguments.items() if other != key}
        truths = [args for truth in case.ground_truth for n, args in truth.items() if n == name]
        if key in required or all("" not in args.get(key, [""]) for args in truths):
            wrong.append(Call(name, rest))
        wrong.append(Call(name, {**rest, f"{key}_": value}))
        if key.swapcase() not in properties:
            wrong.append(Call(name, {**rest, key.swapcase(): value}))
        allowed = all_allowed(case, name, key)
        wrong += [Call(name, {**arguments, key: other}) for other in wrong_types(value)]
        wrong += [Call(name, {**arguments, key: other}) for other in wrong_values(value, allowed)]
        if type(value) is int and properties[key]["type"] == "integer":
            wrong.append(Call(name, {**arguments, key: float(value)}))
    return wrong


def corruptions(case: Case, leave_out: bool = False) -> list[str]:
    """Answers that are wrong by construction: one call corrupted, calls too many or too few, or no calls."""
    calls = true_calls(case, leave_out)
    texts = [
        answer_text([*calls[:i], wrong, *calls[i + 1 :]])
        for i, call in enumerate(calls)
        for wrong in corrupted_calls(case, call)
    ]
    texts += [answer_text(some) for some in ([], calls[1:], [*calls, calls[0]], [*calls, Call("f", {})])]
    right = answer_text(calls)
    inner, first = right[1:-1], answer_text(calls[:1])[1:-1]
    texts += [
        f"{right} done",
        f"Answer: {right}",
        right[:-2],
        f"answer = {right}",
        f"[{right}]",
        f"print({inner})",
    ]
    texts += [f"[f(x={first})]", f"run({first})", f"{right};", f"{right}\x00"]
    texts += [
        json.dumps([{"name": call.name, "arguments": call.arguments} for call in calls]),
        "",
        "I do not know.",
    ]
    return texts


@pytest.fixture(scope="module")
def real_cases() -> list[Case]:
    return load_cases(DATA)


def test_real_files_are_read_whole(real_cases):
    counts = Counter(case.category for case in real_cases)
    for category, count in counts.items():
        assert count == len((DATA / f"BFCL_v4_{category}.json").read_text().splitlines())
    assert {"simple_python", "multiple", "parallel", "irrelevance"} <= counts.keys()
    assert all((case.ground_truth is None) == (case.category == "irrelevance") for case in real_cases)


def test_every_ground_truth_is_accepted(real_cases):
    cases = [case for case in real_cases if case.ground_truth]
    for case in cases:
        for leave_out in (False, True):
            calls = true_calls(case, leave_out)
            for order in (calls, calls[::-1]):
                assert is_correct(answer_text(order), case.functions, case.ground_truth), (case.id, order)
    assert len(cases) >= 300


def test_every_allowed_value_is_accepted(real_cases):
    """Each alternative of each parameter in turn, the others at their first value."""
    for case in (case for case in real_cases if case.ground_truth):
        calls = true_calls(case)
        for i, truth in enumerate(case.ground_truth):
            ((name, allowed),) = truth.items()
            for key, value in [(k, v) for k, values in allowed.items() for v in values if v != ""]:
                call = Call(name, {**calls[i].arguments, key: first_value(value)})
                answer = answer_text([*calls[:i], call, *calls[i + 1 :]])
                assert is_correct(answer, case.functions, case.ground_truth), (case.id, answer)


@pytest.mark.parametrize("leave_out", [False, True])
def test_corruptions_of_every_ground_truth_are_rejected(real_cases, leave_out):
    for case in (case for case in real_cases if case.ground_truth):
        if leave_out and true_calls(case, leave_out) == true_calls(case):
            continue  # nothing to leave out: the same corruptions once more
        wrong = set(corruptions(case, leave_out))
        assert len(wrong) >= 20, case.id
        accepted = [text for text in wrong if is_correct(text, case.functions, case.ground_truth)]
        assert not accepted, (case.id, case.ground_truth, accepted)


def test_an_evaluation_of_perfect_and_of_silent_answers(real_cases):
    def perfect(conversations):
        assert [turns[-1] for turns in conversations] == [case.messages[-1] for case in real_cases]
        return [answer_text(true_calls(case)) if case.ground_truth else "Nothing fits." for case in real_cases]

    assert evaluate(real_cases, perfect).accuracy == 100.0
    silent = evaluate(real_cases, lambda conversations: ["Nothing fits."] * len(conversations))
    assert silent.by_category.pop("irrelevance") == 100.0
    assert set(silent.by_category.values()) == {0.0}
