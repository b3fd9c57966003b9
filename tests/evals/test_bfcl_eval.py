"""Our verdicts beside those of the leaderboard's own program, `bfcl-eval`: every case, in every form of answer.

Skipped where the package is not there (see tests/bfcl_eval_process.py); what it is compared with is learnt by running
it. STARLING_DATA has the cases. The slow test compares every case in every form (75,000 answers, 10 s); the others
every form on some cases and every case in some forms.
"""

import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from answer_forms import FORMS, SLIPS, calls_of
from bfcl_eval_process import IS_THERE, REASON, verdicts

from starling_train.evals.function_calling import Case, is_correct, load_cases

DATA = Path(os.environ.get("STARLING_DATA", "")) / "bfcl"
pytestmark = [
    pytest.mark.skipif("STARLING_DATA" not in os.environ, reason="STARLING_DATA is not set"),
    pytest.mark.skipif(not IS_THERE, reason=REASON),
]
Verdicts = list[tuple[str, str, str, bool | None, bool]]  # category, form, answer, theirs, ours


def both(cases: list[Case], answers: Callable[[Case], dict[str, str]]) -> Verdicts:
    """Verdicts on the answers that a function gives for each case, by form."""
    given = [answers(case) for case in cases]
    theirs = verdicts(
        {
            "id": case.id, "category": case.category, "functions": case.functions, "ground_truth": case.ground_truth,
            "answers": list(some.values()),
        }
        for case, some in zip(cases, given, strict=True)
    )  # fmt: skip
    return [
        (case.category, form, answer, their, is_correct(answer, case.functions, case.ground_truth))
        for case, some, row in zip(cases, given, theirs, strict=True)
        for (form, answer), their in zip(some.items(), row, strict=True)
    ]


def in_forms(forms: dict) -> Callable[[Case], dict[str, str]]:
    def answers(case: Case) -> dict[str, str]:
        declared = {function["name"]: function for function in case.functions}
        return {name: form(calls_of(case), declared) for name, form in forms.items()}

    return answers


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return load_cases(DATA)


def assert_same(rows: Verdicts) -> None:
    different = [row for row in rows if row[3] is not row[4]]
    assert not different, (len(different), Counter(row[1] for row in different), different[:5])


@pytest.fixture(scope="module")
def compared(cases) -> Verdicts:
    """Every form on one case in twelve, and for each other case one form in sixteen."""
    forms = list(FORMS.items())
    chosen = {
        case.id: dict(forms if not number % 12 else forms[number % 16 :: 16]) for number, case in enumerate(cases)
    }
    return both(cases, lambda case: in_forms(chosen[case.id])(case))


def test_answers_have_the_leaderboards_verdict(compared):
    assert_same(compared)
    assert len(FORMS) >= 40 and {row[1] for row in compared} == FORMS.keys()
    assert {"simple_python", "multiple", "parallel", "irrelevance"} <= {row[0] for row in compared}


@pytest.mark.slow
def test_every_case_in_every_form_has_the_leaderboards_verdict(cases):
    rows = both(cases, in_forms(FORMS))
    assert_same(rows)
    assert len(rows) == len(FORMS) * len(cases) > 40_000


def test_forms_are_right_and_wrong(compared):
    """A comparison of one verdict with itself would show nothing."""
    right = {form for category, form, _, theirs, _ in compared if theirs and category != "irrelevance"}
    assert len(right) > 60 and len(FORMS.keys() - right) > 25
    calls = {form for category, form, _, theirs, _ in compared if not theirs and category == "irrelevance"}
    assert len(calls) > 60 and len(FORMS.keys() - calls) > 25


def test_a_plus_is_a_plus_here(cases):
    """There, `+5` is -5: wrong where the truth is positive, and right where it is negative."""
    rows = [
        row for row in both(cases[::4], in_forms({"plus": SLIPS["numbers with a plus"]})) if row[0] != "irrelevance"
    ]
    different = [row for row in rows if row[3] != row[4]]
    assert different and all("+" in answer and ours for _, _, answer, _, ours in different if "-" not in answer)


def test_no_function_is_run_here(cases):
    """There, arithmetic is Python's `eval`: `abs(5) + 0` is 5, and any function that it names is run."""
    rows = both(cases[::4], in_forms({"functions": SLIPS["functions in sums"]}))
    different = [row for row in rows if row[3] != row[4]]
    assert different and all(
        "abs(" in answer and ours == (category == "irrelevance") for category, _, answer, _, ours in different
    )


PARTS = [
    *"()[]{}=,:;.`'\"#+-*/~ \n", "f", "g", "f(a=1)", "[f(a=1)]", "a=", "1", "2.5", "'x'", "x[0]", "True", "true",
    "None", "...", "**x", "*x", "not ", " and ", "lambda: ", "I ", "```", "json", "\\", "\t", "\u00e9", "1j",
    "b'x'", "f'{x}'",
]  # fmt: skip


def test_random_answers_are_calls_here_where_they_are_there():
    rng = random.Random(0)
    answers = {"".join(rng.choices(PARTS, k=rng.randrange(1, 12))) for _ in range(6000)}
    answers |= {"[f(a=1), g(b='x')]"[:i] + part + "[f(a=1), g(b='x')]"[i:] for part in PARTS for i in range(18)}
    answers = {answer for answer in answers if "+" not in answer}
    case = Case("irrelevance_0", "irrelevance", [], [{"name": "f", "parameters": {"properties": {}}}], None)
    rows = both([case], lambda case: {answer: answer for answer in sorted(answers)})
    assert [row for row in rows if row[3] is not row[4]] == []
    assert sum(not row[3] for row in rows) > 100
