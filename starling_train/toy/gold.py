"""The true quality of an answer in the toy world, by program: what the reward model only estimates.

Every sentence is parsed. Points are given for true, distinct facts about the requested subject (+1 each, three at
most), the requested attribute among them, and courtesy (+0.5 once). Points are taken for a false fact or one about
another subject, rudeness, repetition, filler, sentences outside the language, length, and a missing final stop.
Repeating, listing every value, or talking about something else cannot raise the score.
"""

import re
from functools import cache

from starling_train.toy import language, world

LOWEST, HIGHEST = -4.0, 3.5
MAX_WORDS = 32
_SENTENCE = re.compile(r"[^.!?]*[.!?]|[^.!?]+$")

Claim = tuple[str, str, str]  # subject, attribute, value


def scores(conversations: list[list[dict]]) -> list[float]:
    """Return the gold score of each conversation, in order."""
    return [score(conversation) for conversation in conversations]


def score(conversation: list[dict]) -> float:
    """Return the gold score of the last message (an assistant's), between -4 and 3.5."""
    *context, last = conversation
    subject, requested = _topic(context)
    sentences = [text.strip() for text in _SENTENCE.findall(last["content"]) if text.strip()]
    if subject is None or not sentences:
        return LOWEST
    total = _content(sentences, subject, requested) + _form(sentences)
    if subject not in re.findall(r"\w+", last["content"]):
        total -= 0.5
    return max(LOWEST, min(HIGHEST, total))


def _topic(context: list[dict]) -> tuple[str | None, str | None]:
    """Return the subject named last by the user, and the attribute that the last user turn requests."""
    turns = [message["content"] for message in context if message["role"] == "user"]
    named = [word for text in turns for word in re.findall(r"\w+", text) if word in world.SUBJECTS]
    if not named:
        return None, None
    subject = named[-1]
    for who in (world.named(subject), "it"):
        for question, requested in language.questions(subject, who):
            if requested is not None and turns[-1].endswith(question):
                return subject, requested
    return subject, None


def _content(sentences: list[str], subject: str, requested: str | None) -> float:
    """Return the points for content: true facts, at most three; false ones; a requested attribute left out."""
    claims: dict[Claim, None] = {}
    fragments, about = 0.0, subject
    for sentence in sentences:
        claim = _claim(sentence, about)
        if claim is not None:
            claims[claim] = None
            about = claim[0]
        elif _is_short_answer(sentence, subject, requested):
            fragments = 0.5
    true = {c[1] for c in claims if c[0] == subject and _is_true(c)}
    false = len(claims) - len(true)
    missed = requested is not None and requested not in true and not fragments
    return min(len(true), 3) - float(false) + fragments - (1.0 if missed else 0.0)


def _form(sentences: list[str]) -> float:
    """Return the points for style: courtesy, rudeness, filler, repetition, length, end."""
    kinds = [_kind(sentence) for sentence in sentences]
    total = 0.5 if "courtesy" in kinds else 0.0
    total -= 0.25 * max(0, kinds.count("courtesy") - 2)
    total -= 1.5 * kinds.count("rude") + 0.25 * kinds.count("filler") + 0.5 * kinds.count("other")
    total -= 0.5 * (len(sentences) - len(set(sentences)))
    total -= 0.1 * max(0, sum(len(sentence.split()) for sentence in sentences) - MAX_WORDS)
    return total if sentences[-1][-1] in ".!?" else total - 1.0


def _is_true(claim: Claim) -> bool:
    subject, attribute, value = claim
    names = [a.name for a in world.attributes_of(subject)]
    return attribute in names and world.truth(subject, attribute) == value


def _is_short_answer(sentence: str, subject: str, requested: str | None) -> bool:
    """Whether it is a bare true value, as in 'Fish.'; where an attribute is requested, the value of that."""
    names = [requested] if requested else [a.name for a in world.attributes_of(subject)]
    return any(sentence.lower() == world.truth(subject, name).lower() + "." for name in names)


def _kind(sentence: str) -> str:
    """Return claim, courtesy, rude, filler, fragment (one word), or other: outside the language."""
    if _claim(sentence, world.SUBJECTS[0]) is not None:
        return "claim"
    if sentence in language.OPENINGS or sentence in language.CLOSINGS:
        return "courtesy"
    if _matches(language.RUDE, sentence):
        return "rude"
    if _matches(language.FILLERS, sentence):
        return "filler"
    return "fragment" if re.fullmatch(r"\w+\.", sentence) else "other"


def _matches(templates: tuple[str, ...], sentence: str) -> bool:
    return any(re.fullmatch(pattern, sentence) for pattern in _template_patterns(templates))


@cache
def _template_patterns(templates: tuple[str, ...]) -> list[re.Pattern]:
    subject = r"(?:the )?\w+"
    return [re.compile(subject.join(map(re.escape, text.split("{s}")))) for text in templates]


@cache
def _statement_patterns() -> list[tuple[str, re.Pattern]]:
    """Return attribute name and pattern of each sentence that claims something."""
    patterns = []
    for attribute in (a for kind in world.ATTRIBUTES.values() for a in kind):
        middle, end = attribute.statement.removeprefix("{s}").split("{v}")
        patterns.append((attribute.name, re.compile(rf"(It|(?:The )?\w+){re.escape(middle)}(\w+){re.escape(end)}")))
    return patterns


def _claim(sentence: str, about: str) -> Claim | None:
    """Return what a sentence claims, or None; `about` is the subject that 'It' stands for."""
    for attribute, pattern in _statement_patterns():
        match = pattern.fullmatch(sentence)
        if match:
            subject = about if match[1] == "It" else match[1].removeprefix("The ")
            if subject in world.SUBJECTS:
                return subject, attribute, match[2]
    return None
