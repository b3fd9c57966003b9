"""Function calling, the skill that training must keep: the leaderboard's cases, and which answers to them are right."""

from starling_train.evals.function_calling.cases import Case, Result, conversation, evaluate, load_cases
from starling_train.evals.function_calling.checker import is_correct
from starling_train.evals.function_calling.parser import Call, answer_text, parse_calls

__all__ = [
    "Call",
    "Case",
    "Result",
    "answer_text",
    "conversation",
    "evaluate",
    "is_correct",
    "load_cases",
    "parse_calls",
]
