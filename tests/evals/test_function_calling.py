"""Cases from files, prompts, and the share of right answers."""

import json
from collections import Counter
from pathlib import Path

import pytest

from starling_train.config.fields import UserError
from starling_train.evals.function_calling import Case, conversation, evaluate, load_cases, suite
from starling_train.evals.function_calling.cases import INSTRUCTION
from starling_train.evals.function_calling.parser import in_fence

FUNCTION = {
    "name": "f",
    "description": "é",
    "parameters": {"type": "dict", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
}


def question(id_: str) -> dict:
    return {"id": id_, "question": [[{"role": "user", "content": f"ask {id_}"}]], "function": [FUNCTION]}


def truth_of(id_: str) -> dict:
    return {"id": id_, "ground_truth": [{"f": {"x": [1]}}]}


def write(path: Path, rows: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


@pytest.fixture
def directory(tmp_path) -> Path:
    for category, count in (("simple_python", 4), ("multiple", 1)):
        ids = [f"{category}_{i}" for i in range(count)]
        write(tmp_path / f"BFCL_v4_{category}.json", list(map(question, ids)))
        write(tmp_path / "possible_answer" / f"BFCL_v4_{category}.json", list(map(truth_of, ids)))
    write(tmp_path / "BFCL_v4_irrelevance.json", [question(f"irrelevance_{i}") for i in range(3)])
    return tmp_path


def ids(cases: list[Case]) -> list[str]:
    return [case.id for case in cases]


def test_load_cases_finds_the_categories_that_are_there(directory):
    cases = load_cases(directory)
    assert list(Counter(case.category for case in cases).items()) == [
        ("simple_python", 4),
        ("multiple", 1),
        ("irrelevance", 3),
    ]
    assert cases[0] == Case(
        "simple_python_0",
        "simple_python",
        [{"role": "user", "content": "ask simple_python_0"}],
        [FUNCTION],
        [{"f": {"x": [1]}}],
    )
    assert cases[-1].ground_truth is None


def test_limit_is_shared_among_the_categories(directory):
    assert ids(load_cases(directory, limit=5)) == [
        "simple_python_0",
        "simple_python_1",
        "multiple_0",
        "irrelevance_0",
        "irrelevance_1",
    ]
    assert ids(load_cases(directory, ["irrelevance", "multiple"], limit=2)) == ["irrelevance_0", "multiple_0"]
    assert len(load_cases(directory, limit=99)) == 8


QUESTIONS, TRUTHS = "BFCL_v4_multiple.json", "possible_answer/BFCL_v4_multiple.json"


@pytest.mark.parametrize(
    ("file", "line", "fragment"),
    [
        (QUESTIONS, "{", ":2: not JSON"),
        (QUESTIONS, "[" * 50_000, ":2: "),
        (QUESTIONS, "[1]", ":2: a JSON list"),
        (QUESTIONS, {"question": [], "function": []}, ":2: no object with an `id`"),
        (
            QUESTIONS,
            {**question("a"), "question": [{"role": "user", "content": "x"}]},
            ":2: `question` is not",
        ),
        (QUESTIONS, {**question("a"), "question": [[{"role": "user"}]]}, ":2: `question` is not"),
        (QUESTIONS, {**question("a"), "function": []}, ":2: `function` is not"),
        (QUESTIONS, {**question("a"), "function": [{"name": "f"}]}, ":2: `function` is not"),
        (QUESTIONS, question("a"), ":2: 'a' is not in possible_answer/BFCL_v4_multiple.json"),
        (TRUTHS, "nonsense", ":2: not JSON"),
        (TRUTHS, {"id": "a"}, ":2: `ground_truth` is not"),
        (TRUTHS, {"id": "a", "ground_truth": [{"f": {}, "g": {}}]}, ":2: `ground_truth` is not"),
        (TRUTHS, {"id": "a", "ground_truth": [{"f": {"x": 1}}]}, ":2: `ground_truth` is not"),
    ],
)
def test_a_malformed_line_is_named(directory, file, line, fragment):
    path = directory / file
    write(path, [*path.read_text().splitlines(), line])
    with pytest.raises(UserError) as error:
        load_cases(directory)
    assert str(error.value).startswith(f"{path}{fragment}")
    assert "\n" not in str(error.value)


def test_missing_files_and_categories_are_named(directory, tmp_path):
    (directory / TRUTHS).unlink()
    with pytest.raises(UserError, match=r"possible_answer/BFCL_v4_multiple\.json: no such file"):
        load_cases(directory)
    with pytest.raises(UserError, match=r"BFCL_v4_parallel\.json: no such file"):
        load_cases(directory, ["parallel"])
    with pytest.raises(UserError, match="categories: 'simple_java' is not supported"):
        load_cases(directory, ["simple_java"])
    with pytest.raises(UserError, match=r"nowhere: no BFCL_v4_\*\.json"):
        load_cases(tmp_path / "nowhere")
    (directory / "BFCL_v4_irrelevance.json").write_text("\n")
    with pytest.raises(UserError, match=r"BFCL_v4_irrelevance\.json: no cases"):
        load_cases(directory, ["irrelevance"])
    (directory / "BFCL_v4_irrelevance.json").write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(UserError, match=r"BFCL_v4_irrelevance\.json:1: not UTF-8"):
        load_cases(directory, ["irrelevance"])


def test_conversation(directory):
    case = load_cases(directory, ["multiple"])[0]
    system, *turns = conversation(case)
    instruction, *functions = system["content"].split("\n")
    assert system["role"] == "system"
    assert instruction == INSTRUCTION
    assert len(INSTRUCTION.split()) <= 25
    assert functions == [
        '{"name":"f","description":"é","parameters":'
        '{"type":"dict","properties":{"x":{"type":"integer"}},"required":["x"]}}'
    ]
    assert turns == case.messages


def test_evaluate_by_hand(directory):
    """Right: simple 1 of 4, multiple 1 of 1, irrelevance 2 of 3; 4 of 8 in all."""
    cases = load_cases(directory)
    answers = ["f(x=1)", "f(x=2)", "", "[f(x=1), f(x=1)]", "[f(x=1)]", "Nothing fits.", "[f(x=1)]", "[]"]
    asked = []

    def generate(conversations):
        asked.extend(conversations)
        return answers

    result = evaluate(cases, generate)
    assert asked == list(map(conversation, cases))
    assert result.accuracy == pytest.approx(50.0)
    assert result.by_category == pytest.approx({"simple_python": 25.0, "multiple": 100.0, "irrelevance": 200 / 3})
    assert result.records[1] == {
        "id": "simple_python_1",
        "category": "simple_python",
        "answer": "f(x=2)",
        "correct": False,
        "lenient": False,
    }
    assert suite.outcomes(result) == {
        "eval/function_calling": "10001101",
        "eval/function_calling_simple_python": "1000",
        "eval/function_calling_multiple": "1",
        "eval/function_calling_irrelevance": "101",
    }
    assert [record["correct"] for record in result.records] == [
        True,
        False,
        False,
        False,
        True,
        True,
        False,
        True,
    ]


def test_too_few_answers_are_our_mistake(directory):
    with pytest.raises(AssertionError, match="1 answers to 8 cases"):
        evaluate(load_cases(directory), lambda conversations: ["f(x=1)"])


def test_the_lenient_verdict_is_on_what_stands_in_a_fence(directory):
    """A labelled fence is no call on the leaderboard, and so the right answer where none fits: 3 of 8, and 5 of 8."""
    cases = load_cases(directory)
    fenced = "Here:\n```python\n[f(x=1)]\n```\nDone."
    answers = [fenced, "```json\nf(x=1)", "```\nf(x=1)\n```", "f(x=2)", fenced, fenced, "Nothing.", "f(x=1)"]
    result = evaluate(cases, lambda conversations: answers)
    assert [record["correct"] for record in result.records] == [False, False, True, False, False, True, True, False]
    assert [record["lenient"] for record in result.records] == [True, True, True, False, True, False, True, False]
    assert (result.accuracy, result.lenient) == (37.5, 62.5)


@pytest.mark.parametrize(
    ("answer", "inside"),
    [
        ("f(x=1)", "f(x=1)"),
        ("```f(x=1)```", "f(x=1)"),
        ("```python\nf(x=1)\n```", "f(x=1)\n"),
        ("a ``` tool_code \nf(x=1)\n``` b ```g()```", "f(x=1)\n"),
        ("```f\n(x=1)```", "(x=1)"),  # a word alone on the fence's line is its label
        ("```json\nf(x=1)", "f(x=1)"),
    ],
)
def test_in_fence(answer, inside):
    assert in_fence(answer) == inside
