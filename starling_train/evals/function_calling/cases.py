"""The cases of function calling: how they are read, asked and counted.

Data: the Berkeley Function-Calling Leaderboard's own files (v4, Python subsets), read from a directory.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from starling_train.config.fields import UserError
from starling_train.data.rows import json_rows
from starling_train.evals.function_calling.checker import is_correct
from starling_train.evals.function_calling.parser import in_fence
from starling_train.evals.suite import in_turn

CATEGORIES = ("simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance")
INSTRUCTION = "Answer only with calls, as [name(parameter=value)]. If no function fits, answer with one plain sentence."


@dataclass(frozen=True)
class Case:
    """One question: the user's turns, the functions on offer, and the right calls (None: none fits)."""

    id: str
    category: str
    messages: list[dict]
    functions: list[dict]
    ground_truth: list[dict] | None


@dataclass(frozen=True)
class Result:
    """Right answers in percent, over all cases and by category, and one record a case.

    lenient: over all cases, where a fence's label and what stands around the fence are passed over.
    """

    accuracy: float
    lenient: float
    by_category: dict[str, float]
    records: list[dict]


def load_cases(directory: str | Path, categories: Sequence[str] | None = None, limit: int | None = None) -> list[Case]:
    """Load the cases of the leaderboard's files, one category after another.

    Raises UserError, naming file and line, where a file is missing or is not in the leaderboard's format.

    categories: None takes every Python subset whose file exists.
    limit: how many cases in all, the first ones of each category in turn, so that a short evaluation sees all of them.
    """
    directory = Path(directory).expanduser()
    if categories is None:
        categories = [name for name in CATEGORIES if _questions_path(directory, name).is_file()]
        if not categories:
            raise UserError(f"{directory}: no BFCL_v4_*.json of {', '.join(CATEGORIES)}; give the leaderboard's data")
    for name in categories:
        if name not in CATEGORIES:
            raise UserError(f"categories: {name!r} is not supported; choose among {', '.join(CATEGORIES)}")
    by_category = [_load_category(directory, name) for name in categories]
    return in_turn(by_category, limit)


def conversation(case: Case) -> list[dict]:
    """Return the prompt: the instruction and the functions as compact JSON, one a line, then the user's turns."""
    functions = (json.dumps(function, separators=(",", ":"), ensure_ascii=False) for function in case.functions)
    return [{"role": "system", "content": "\n".join([INSTRUCTION, *functions])}, *case.messages]


def evaluate(cases: Sequence[Case], generate: Callable[[list[list[dict]]], list[str]]) -> Result:
    """Ask every case once and check the answers; `generate` maps conversations to answers, in order."""
    assert cases, "nothing to evaluate"
    answers = generate([conversation(case) for case in cases])
    assert len(answers) == len(cases), f"{len(answers)} answers to {len(cases)} cases"
    records = [
        {
            "id": case.id,
            "category": case.category,
            "answer": answer,
            "correct": is_correct(answer, case.functions, case.ground_truth),
            "lenient": is_correct(in_fence(answer), case.functions, case.ground_truth),
        }
        for case, answer in zip(cases, answers, strict=True)
    ]
    names = dict.fromkeys(case.category for case in cases)
    by_category = {name: _percent(r for r in records if r["category"] == name) for name in names}
    return Result(_percent(records), _percent(records, "lenient"), by_category, records)


def _percent(records: Iterable[dict], verdict: str = "correct") -> float:
    return 100.0 * fmean(record[verdict] for record in records)


def _questions_path(directory: Path, category: str) -> Path:
    return directory / f"BFCL_v4_{category}.json"


def _load_category(directory: Path, category: str) -> list[Case]:
    path = _questions_path(directory, category)
    truths = None if category == "irrelevance" else _load_truths(directory / "possible_answer" / path.name)
    cases = []
    for where, row in _read_lines(path):
        turns = _list_of(_is_turn, row, "question", "a list of lists of {role, content}", where)
        functions = _list_of(_is_function, row, "function", "a list of {name, parameters: {properties}}", where)
        if truths is not None and row["id"] not in truths:
            raise UserError(f"{where}: {row['id']!r} is not in possible_answer/{path.name}; add it or drop the case")
        truth = truths[row["id"]] if truths is not None else None
        cases.append(Case(row["id"], category, list(chain.from_iterable(turns)), functions, truth))
    if not cases:
        raise UserError(f"{path}: no cases in it; give the leaderboard's file unchanged")
    return cases


def _load_truths(path: Path) -> dict[str, list[dict]]:
    truths = {}
    for where, row in _read_lines(path):
        expected = "a list of {name: {parameter: [values]}}"
        truths[row["id"]] = _list_of(_is_true_call, row, "ground_truth", expected, where)
    return truths


def _read_lines(path: Path) -> Iterator[tuple[str, dict]]:
    """Yield (`file:line`, object) of every line of a file that is not blank."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the leaderboard's data, or leave its category out")
    for where, row in json_rows.read_lines(path):
        if not isinstance(row.get("id"), str):
            raise UserError(f"{where}: no object with an `id`; give the leaderboard's file unchanged")
        yield where, row


def _list_of(is_item: Callable[[Any], bool], row: dict, key: str, expected: str, where: str) -> list:
    value = row.get(key)
    if not isinstance(value, list) or not value or not all(map(is_item, value)):
        raise UserError(f"{where}: `{key}` is not {expected}; give the leaderboard's file unchanged")
    return value


def _is_turn(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_message, value))


def _is_message(value: Any) -> bool:
    match value:
        case {"role": str(), "content": str()}:
            return True
    return False


def _is_function(value: Any) -> bool:
    match value:
        case {"name": str(), "parameters": {"properties": dict() as properties} as parameters}:
            required = parameters.get("required", [])
            names = isinstance(required, list) and all(isinstance(name, str) for name in required)
            return names and all(map(_is_schema, properties.values()))
    return False


def _is_schema(value: Any) -> bool:
    """Whether a value is the schema of a parameter or of a list's items, in the parts that `checker` reads."""
    if not isinstance(value, dict) or not isinstance(value.get("type"), str | None):
        return False
    return "items" not in value or _is_schema(value["items"])


def _is_true_call(value: Any) -> bool:
    if not isinstance(value, dict) or len(value) != 1:
        return False
    (allowed,) = value.values()
    return isinstance(allowed, dict) and all(isinstance(values, list) for values in allowed.values())
