"""Does an answer follow the instruction? A check for each kind, on the text alone.

Every check asks for something that is there: an answer of fewer than LEAST_WORDS words follows no instruction but those
that name its whole content (`json`), so that a policy gains nothing by saying little, or nothing at all.
"""

import json
import re
from collections.abc import Callable
from typing import Any

LEAST_WORDS = 3

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_ITEM = re.compile(r"^\s*(?:[-*•+]|\(?\d{1,3}[.):])\s+\S", re.MULTILINE)
_FENCE = re.compile(r"\A```(?:json)?[^\S\n]*\n(.*?)\n?```\Z", re.DOTALL | re.IGNORECASE)
_QUOTES = "\"'“”‘’*_` \n\t"  # what may stand around words that an answer begins or ends with


def is_followed(kind: str, argument: Any, answer: str) -> bool:
    """Return whether an answer follows an instruction. kind: of CHECKS. argument: what the check asks for."""
    return (kind == "json" or len(words(answer)) >= LEAST_WORDS) and CHECKS[kind](answer, argument)


def words(text: str) -> list[str]:
    """Return the words of a text in lower case; an apostrophe or a hyphen within a word is a part of it."""
    return [word.lower() for word in _WORD.findall(text)]


def has_items(answer: str, count: int) -> bool:
    """Whether an answer has exactly so many lines that begin as a list's item: `- x`, `* x`, `1. x`, `2) x`."""
    return len(_ITEM.findall(answer)) == count


def has_word(answer: str, word: str) -> bool:
    """Whether a word occurs, whatever its case."""
    return word.lower() in words(answer)


def has_word_often(answer: str, argument: tuple[str, int]) -> bool:
    """Whether a word occurs at least so many times."""
    word, count = argument
    return words(answer).count(word.lower()) >= count


def lacks_word(answer: str, word: str) -> bool:
    """Whether a word does not occur, nor with an s at its end."""
    return not {word.lower(), f"{word.lower()}s"} & set(words(answer))


def begins_with(answer: str, phrase: str) -> bool:
    """Whether an answer begins with a phrase, whatever its case."""
    return answer.lstrip(_QUOTES).lower().startswith(phrase.lower())


def ends_with(answer: str, phrase: str) -> bool:
    """Whether an answer ends with a phrase, whatever its case; a full stop may be behind it or missing."""
    return answer.rstrip(_QUOTES + ".").lower().endswith(phrase.rstrip(".").lower())


def has_no_comma(answer: str, _: None) -> bool:
    """Whether there is no comma."""
    return "," not in answer


def is_lower_case(answer: str, _: None) -> bool:
    """Whether no letter is a capital."""
    return answer == answer.lower()


def is_upper_case(answer: str, _: None) -> bool:
    """Whether all letters are capitals."""
    return answer == answer.upper()


def has_at_most(answer: str, count: int) -> bool:
    """Whether there are at most so many words."""
    return len(words(answer)) <= count


def has_at_least(answer: str, count: int) -> bool:
    """Whether there are at least so many words."""
    return len(words(answer)) >= count


def is_json(answer: str, keys: list[str]) -> bool:
    """Whether an answer is a JSON object with exactly these keys, and nothing else; a code fence may be around it."""
    text = answer.strip()
    if fence := _FENCE.match(text):
        text = fence[1]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.keys() == set(keys)


CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "items": has_items,
    "word": has_word,
    "repeated": has_word_often,
    "avoided": lacks_word,
    "start": begins_with,
    "ending": ends_with,
    "no_commas": has_no_comma,
    "lower_case": is_lower_case,
    "upper_case": is_upper_case,
    "at_most": has_at_most,
    "at_least": has_at_least,
    "json": is_json,
}
