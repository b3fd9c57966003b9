"""What answers repeat: within one answer, and across answers to different prompts. Text alone."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

# Scripts that are written without spaces count a character as a word.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
SHORTEST_SENTENCE = 3  # words; `Yes.` is no stock phrase
PHRASE = 5  # words in a row


def words(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return WORD.findall(text.lower())


def sentences(text: str) -> list[str]:
    """Return the sentences and lines of a text that have words."""
    return [part.strip() for part in SENTENCE.split(text) if WORD.search(part)]


def repeated_share(text: str, length: int = 4, fewest: int = 11) -> float | None:
    """Return the share of a text's n-grams of words that stood in it before; None for a text of few words.

    text: an answer.
    length: of an n-gram, in words.
    fewest: words that a text must have to be judged.
    """
    known = words(text)
    if len(known) < max(fewest, length):
        return None
    grams = [tuple(known[i : i + length]) for i in range(len(known) - length + 1)]
    return 1 - len(set(grams)) / len(grams)


@dataclass(frozen=True)
class CommonText:
    """What the most answers share. kind: which part of them. text: as one of them writes it. count, of: answers."""

    kind: str
    text: str
    count: int
    of: int

    @property
    def share(self) -> float:
        return self.count / self.of


def common_text(prompts: Sequence[str], answers: Sequence[str]) -> CommonText | None:
    """Return what most of the answers to different prompts share; None where no two share anything.

    The whole answer, its closing or opening sentence, or five words in a row that its prompt does not have. Of answers
    to the same prompt the first counts; an empty answer shares nothing, but counts as one.
    """
    first: dict[str, str] = {}
    for prompt, answer in zip(prompts, answers, strict=True):
        first.setdefault(prompt, answer)
    parts: dict[str, list[dict[str, str]]] = {
        "are": [_key(answer) for answer in first.values()],
        "end in": [_sentence(answer, -1) for answer in first.values()],
        "begin with": [_sentence(answer, 0) for answer in first.values()],
        "contain": [_phrases(answer, prompt) for prompt, answer in first.items()],
    }
    best: CommonText | None = None
    for kind, texts in parts.items():
        counts = Counter(key for one in texts for key in one)
        if not counts:
            continue
        key, count = max(counts.items(), key=lambda item: (item[1], item[0]))
        if count > 1 and (best is None or count > best.count):
            written = next(one[key] for one in texts if key in one)
            best = CommonText(kind, written, count, len(first))
    return best


def _key(text: str) -> dict[str, str]:
    known = words(text)
    return {" ".join(known): text.strip()} if known else {}


def _sentence(answer: str, index: int) -> dict[str, str]:
    """Return the first or last sentence of an answer that has two or more, unless it is very short."""
    parts = sentences(answer)
    if len(parts) < 2 or len(words(parts[index])) < SHORTEST_SENTENCE:
        return {}
    return _key(parts[index])


def _phrases(answer: str, prompt: str) -> dict[str, str]:
    """Return the n-grams of an answer that are not in its prompt."""
    asked, known = words(prompt), words(answer)
    of_prompt = {" ".join(asked[i : i + PHRASE]) for i in range(len(asked) - PHRASE + 1)}
    phrases = (" ".join(known[i : i + PHRASE]) for i in range(len(known) - PHRASE + 1))
    return {phrase: phrase for phrase in phrases if phrase not in of_prompt}


def rank_correlation(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Return Spearman's correlation, mean ranks for equal values; None for less than three pairs or constant values."""
    if len(xs) < 3:
        return None
    a, b = _ranks(xs), _ranks(ys)
    middle = (len(xs) + 1) / 2
    product = sum((x - middle) * (y - middle) for x, y in zip(a, b, strict=True))
    sizes = sum((x - middle) ** 2 for x in a) * sum((y - middle) ** 2 for y in b)
    return product / sizes**0.5 if sizes else None


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) + 1) / 2 for value in values]
