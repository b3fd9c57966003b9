"""MT-Bench: questions, reference answers, and the judge's prompts.

Zheng et al. 2023, 'Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena'. The files are FastChat's and stay where
they are: question.jsonl, judge_prompts.jsonl, and reference_answer_gpt-4.jsonl (or reference_answer/gpt-4.jsonl).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import Any, TypeGuard

from starling_train.config.fields import UserError
from starling_train.data.rows import json_rows
from starling_train.evals.suite import in_turn

TEMPERATURES = {
    "writing": 0.7, "roleplay": 0.7, "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0, "stem": 0.1,
    "humanities": 0.1,
}  # fmt: skip
OTHER_TEMPERATURE = 0.7
WITH_REFERENCE = ("math", "reasoning", "coding")
TURNS = (1, 2)
REFERENCES = ("reference_answer_gpt-4.jsonl", "reference_answer/gpt-4.jsonl")
# (turn, whether the category has references) -> name of the judge's prompt
JUDGE_PROMPTS = {
    (1, False): "single-v1",
    (1, True): "single-math-v1",
    (2, False): "single-v1-multi-turn",
    (2, True): "single-math-v1-multi-turn",
}
FIELDS = {
    (1, False): {"question", "answer"},
    (1, True): {"question", "answer", "ref_answer_1"},
    (2, False): {"question_1", "question_2", "answer_1", "answer_2"},
    (2, True): {"question_1", "question_2", "answer_1", "answer_2", "ref_answer_1", "ref_answer_2"},
}
AGAIN = "give FastChat's file unchanged"


@dataclass(frozen=True)
class Question:
    """Two user turns. references: a strong model's answers to them, for the categories where the judge gets them."""

    id: str
    category: str
    turns: list[str]
    references: list[str] = field(default_factory=list)

    def temperature(self, forced: float | None) -> float:
        """Return the temperature of its answers: the category's, unless one is forced on all."""
        return TEMPERATURES.get(self.category, OTHER_TEMPERATURE) if forced is None else forced


@dataclass(frozen=True)
class JudgePrompt:
    """How a judge is asked: a system message, and a template for the user's."""

    system: str
    template: str


@dataclass(frozen=True)
class Bench:
    """Everything that is read from the files. prompts: by (turn, with a reference)."""

    questions: list[Question]
    prompts: dict[tuple[int, bool], JudgePrompt]

    def judgment(self, question: Question, turn: int, answers: Sequence[str]) -> list[dict]:
        """Return the messages that request a rating of the first or the second answer."""
        prompt = self.prompts[turn, bool(question.references)]
        first = {"question": question.turns[0], "answer": answers[0]} if turn == 1 else {}
        values = first | {f"ref_answer_{i}": text for i, text in enumerate(question.references, 1)}
        values |= {f"question_{i}": text for i, text in enumerate(question.turns, 1)}
        values |= {f"answer_{i}": text for i, text in enumerate(answers, 1)}
        return [
            {"role": "system", "content": prompt.system},
            {"role": "user", "content": _filled(prompt.template, values)},
        ]


def load(directory: Path, limit: int | None = None) -> Bench:
    """Read the files of a directory. limit: questions in all, the first ones of each category in turn.

    Raises UserError, naming file and line, for what is missing or not in FastChat's format.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; give the one with question.jsonl and judge_prompts.jsonl")
    prompts = _judge_prompts(directory / "judge_prompts.jsonl")
    references = _references(directory)
    by_category: dict[str, list[Question]] = {}
    seen: set[str] = set()
    for where, row in _rows(directory / "question.jsonl"):
        question = _question(where, row, references)
        if question.id in seen:
            raise UserError(f"{where}: question {question.id} appears twice; {AGAIN}")
        seen.add(question.id)
        by_category.setdefault(question.category, []).append(question)
    return Bench(in_turn(list(by_category.values()), limit), prompts)


def _rows(path: Path) -> list[tuple[str, dict]]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; {AGAIN}")
    rows = list(json_rows.read_lines(path))
    if not rows:
        raise UserError(f"{path}: nothing in it; {AGAIN}")
    return rows


def _question(where: str, row: dict, references: dict[str, list[str]]) -> Question:
    name, category, turns = row.get("question_id"), row.get("category"), row.get("turns")
    if not isinstance(name, int | str) or isinstance(name, bool) or not isinstance(category, str):
        raise UserError(f"{where}: no `question_id` or no `category`; {AGAIN}")
    if not _are_texts(turns) or len(turns) != len(TURNS):
        raise UserError(f"{where}: `turns` are not two texts; {AGAIN}")
    needs = category in WITH_REFERENCE
    if needs and str(name) not in references:
        raise UserError(f"{where}: question {name} ({category}) has no reference answer in {REFERENCES[0]}; add it")
    return Question(str(name), category, turns, references[str(name)] if needs else [])


def _references(directory: Path) -> dict[str, list[str]]:
    path = next((directory / name for name in REFERENCES if (directory / name).is_file()), None)
    if path is None:
        raise UserError(f"{directory / REFERENCES[0]}: no such file; {AGAIN}")
    references = {}
    for where, row in _rows(path):
        match row:
            case {"question_id": name, "choices": [{"turns": turns}, *_]} if _are_texts(turns) and len(turns) == 2:
                references[str(name)] = turns
            case _:
                raise UserError(f"{where}: no `question_id`, or no two `turns` in `choices`; {AGAIN}")
    return references


def _judge_prompts(path: Path) -> dict[tuple[int, bool], JudgePrompt]:
    by_name: dict[Any, tuple[str, dict]] = {}
    for where, row in _rows(path):
        by_name[str(row.get("name"))] = (where, row)
    prompts = {}
    for key, name in JUDGE_PROMPTS.items():
        if name not in by_name:
            raise UserError(f"{path}: no prompt named {name}; {AGAIN}")
        where, row = by_name[name]
        texts = [row.get("system_prompt"), row.get("prompt_template")]
        if not _are_texts(texts) or _fields(texts[1]) != FIELDS[key]:
            names = ", ".join(sorted(FIELDS[key]))
            raise UserError(f"{where}: no `system_prompt`, or a `prompt_template` without {names}; {AGAIN}")
        prompts[key] = JudgePrompt(texts[0], texts[1])
    return prompts


def _are_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _fields(template: str) -> set[str] | None:
    """Return the names in braces; None where the braces do not pair or hold more than a name."""
    try:
        parts = [part for part in Formatter().parse(template) if part[1] is not None]
    except ValueError:
        return None
    if any(spec or conversion for _, _, spec, conversion in parts):
        return None
    return {name for _, name, _, _ in parts if name is not None}


def _filled(template: str, values: dict[str, str]) -> str:
    """Fill in the values as `str.format` does, which however would also follow their attributes."""
    parts = Formatter().parse(template)
    return "".join(text + ("" if name is None else values[name]) for text, name, _, _ in parts)
