"""Preference sets: conversations that differ in their last answer, and which answer is better."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starling_train.config.fields import UserError, named_in_errors
from starling_train.data import conversations, nectar, ranked, row_files


@dataclass(frozen=True)
class Comparison:
    """Conversations that differ in their last answer, and the rank of each, smaller is better."""

    conversations: list[list[dict]]
    ranks: list[float]


def load(path: str | Path) -> list[Comparison]:
    """Load the comparisons of a JSONL file or of Nectar's parquet. Raises UserError that names the file and line."""
    path = Path(path).expanduser()
    rows = _jsonl(path) if path.suffix == ".jsonl" else _nectar(path)
    rows = [row for row in rows if len(set(row.ranks)) > 1]
    if not rows:
        raise UserError(f"{path}: no comparison in it; every line needs two answers of different rank")
    return rows


def _jsonl(path: Path) -> list[Comparison]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a JSONL file of preferences")
    rows = []
    for where, raw in row_files.jsonl_rows(path):
        with named_in_errors(where):
            rows.append(comparison(raw))
    return rows


def comparison(raw: dict[str, Any]) -> Comparison:
    """Parse one line of a preference set. Raises UserError."""
    answers, ranks = _answers(raw)
    prompt = raw.get("prompt")
    if isinstance(prompt, str) and prompt.startswith("\n\nHuman: "):
        prompt = nectar.parse_prompt(prompt)
    talks = [conversations.of_row({"prompt": prompt, "response": answer}, allow_empty=True) for answer in answers]
    return Comparison(talks, ranks)


def _answers(raw: dict[str, Any]) -> tuple[list[Any], list[float]]:
    if {"prompt", "chosen", "rejected"} <= raw.keys():
        return [_last(raw["chosen"]), _last(raw["rejected"])], [1.0, 2.0]
    answers = raw.get("answers")
    if "prompt" not in raw or not isinstance(answers, list):
        raise UserError('no preference; give {"prompt", "chosen", "rejected"}, or "answers" with "answer" and "rank"')
    if not all(isinstance(a, dict) and _is_rank(a.get("rank")) for a in answers):
        raise UserError('an answer without a rank; each is {"answer": text, "rank": number}, 1 is the best')
    return [a.get("answer") for a in answers], [float(a["rank"]) for a in answers]


def _is_rank(value: Any) -> bool:
    """Return whether a value can rank answers: JSON as Python reads it also has NaN and infinity, which cannot."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _last(answer: Any) -> Any:
    """Return the text of an answer that may be given as the messages of a whole conversation."""
    if isinstance(answer, list) and answer and isinstance(answer[-1], dict):
        return answer[-1].get("content")
    return answer


def _nectar(path: Path) -> list[Comparison]:
    return [
        Comparison(ranked.conversations(row), [answer.rank for answer in row.answers]) for row in nectar.load(path).rows
    ]
