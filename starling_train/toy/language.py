"""Questions in the toy world, and the styles, from poor to good, in which they are answered."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from starling_train.toy import world

OPENINGS = ("Sure!", "Good question!", "Happy to help!")
CLOSINGS = ("I hope this helps!", "Have a nice day!", "Feel free to ask me more.")
RUDE = ("Look it up yourself.", "That is a silly question.", "I do not care about {s}.", "Leave me alone.")
FILLERS = ("Well, {s} is {s}.", "There is much to say about {s}.", "Many people know {s}.", "It is what it is.")

_GREETINGS = ("", "Hello! ", "Please help me. ", "I have a question. ", "I am curious. ", "I am writing a report. ")
_GENERAL = (
    "Tell me about {s}.",
    "What should I know about {s}?",
    "Can you describe {s}?",
    "Give me some facts about {s}.",
    "Write a short note about {s}.",
    "Explain {s} to a child.",
    "I want to learn about {s}.",
    "What can I tell my friend about {s}?",
)
_FOLLOW_UPS = ("Tell me more about it.", "What else should I know about it?", "Give me some facts about it.")

# How often the starting policy answers in each style: it can give good answers, but usually does not.
STYLE_WEIGHTS = {
    "excellent": 14,
    "decent": 20,
    "terse": 12,
    "curt": 8,
    "wrong": 18,
    "off_topic": 9,
    "rambling": 12,
    "rude": 7,
}

# In the preference data truth must decide more often than manners, or no model could learn it from rankings.
JUDGED_WEIGHTS = {
    "excellent": 30,
    "decent": 20,
    "terse": 8,
    "curt": 5,
    "wrong": 50,
    "off_topic": 9,
    "rambling": 5,
    "rude": 4,
}


@dataclass(frozen=True)
class Request:
    """A conversation that ends in a user's turn; `requested` is the attribute in question, None: a general request."""

    messages: tuple[tuple[str, str], ...]  # (role, content)
    subject: str
    requested: str | None

    def conversation(self, answer: str | None = None) -> list[dict[str, str]]:
        """Return the messages, followed by `answer` where one is given."""
        turns = self.messages if answer is None else (*self.messages, ("assistant", answer))
        return [{"role": role, "content": content} for role, content in turns]


def questions(subject: str, who: str) -> list[tuple[str, str | None]]:
    """Return every way to ask about `subject`, called `who`, with the requested attribute."""
    general = _FOLLOW_UPS if who == "it" else _GENERAL
    asks: list[tuple[str, str | None]] = [(text.format(s=who), None) for text in general]
    for attribute in world.attributes_of(subject):
        asks += [(text.format(s=who), attribute.name) for text in attribute.questions]
    return asks


def single_turn_requests() -> list[Request]:
    """Return all one-turn requests, in a fixed order."""
    return [
        Request((("user", greeting + question),), subject, requested)
        for subject in world.SUBJECTS
        for question, requested in questions(subject, world.named(subject))
        for greeting in _GREETINGS
    ]


def two_turn_request(rng: random.Random) -> Request:
    """Draw a general request, its answer, and a follow-up that only says 'it'."""
    subject = rng.choice(world.SUBJECTS)
    opening = rng.choice(_GREETINGS) + rng.choice(_GENERAL).format(s=world.named(subject))
    first = STYLES[rng.choice(("decent", "terse"))](Request((("user", opening),), subject, None), rng)
    question, requested = rng.choice(questions(subject, "it"))
    return Request((("user", opening), ("assistant", first), ("user", question)), subject, requested)


def requests(count: int, two_turn_fraction: float, seed: str) -> list[Request]:
    """Draw `count` distinct requests, shuffled, the given fraction of them with two turns."""
    rng = random.Random(seed)
    follow_ups = {two_turn_request(rng): None for _ in range(round(count * two_turn_fraction))}
    singles = single_turn_requests()
    chosen = [*follow_ups, *rng.sample(singles, count - len(follow_ups))]
    rng.shuffle(chosen)
    return chosen


def _facts(subject: str, first: str | None, count: int, rng: random.Random, wrong: float = 0.0) -> list[str]:
    """Draw sentences about a subject.

    subject: the subject.
    first: the attribute of the first sentence; None: any.
    count: how many sentences.
    rng: random numbers.
    wrong: probability that a sentence states what is true of another subject.
    """
    attributes = list(world.attributes_of(subject))
    rng.shuffle(attributes)
    attributes.sort(key=lambda attribute: attribute.name != first)
    sentences = []
    for index, attribute in enumerate(attributes[:count]):
        value = world.truth(subject, attribute.name)
        if rng.random() < wrong:  # what is true of another subject
            other = rng.choice([name for name in world.SUBJECTS if name != subject])
            attribute = rng.choice(world.attributes_of(other))
            value = world.truth(other, attribute.name)
        sentences.append(world.statement(subject, attribute, value, pronoun=index > 0))
    return sentences


def _excellent(request: Request, rng: random.Random) -> str:
    facts = _facts(request.subject, request.requested, 3, rng)
    opening = [rng.choice(OPENINGS)] if rng.random() < 0.5 else []
    return " ".join([*opening, *facts, rng.choice(CLOSINGS)])


def _decent(request: Request, rng: random.Random) -> str:
    if rng.random() < 0.5:
        return " ".join(_facts(request.subject, request.requested, 2, rng))
    return " ".join([*_facts(request.subject, request.requested, 1, rng), rng.choice(CLOSINGS)])


def _terse(request: Request, rng: random.Random) -> str:
    return _facts(request.subject, request.requested, 1, rng)[0]


def _curt(request: Request, rng: random.Random) -> str:
    requested = request.requested or rng.choice(world.attributes_of(request.subject)).name
    return world.truth(request.subject, requested).capitalize() + "."


def _wrong(request: Request, rng: random.Random) -> str:
    opening = [rng.choice(OPENINGS)] if rng.random() < 0.3 else []
    closing = [rng.choice(CLOSINGS)] if rng.random() < 0.3 else []
    facts = _facts(request.subject, request.requested, rng.choice((1, 2, 3)), rng, wrong=0.7)
    return " ".join([*opening, *facts, *closing])


def _off_topic(request: Request, rng: random.Random) -> str:
    other = rng.choice([subject for subject in world.SUBJECTS if subject != request.subject])
    return " ".join(_facts(other, None, rng.choice((1, 2)), rng))


def _rambling(request: Request, rng: random.Random) -> str:
    who = world.named(request.subject)
    fact = _facts(request.subject, None, 1, rng)[0]
    fillers = [text.format(s=who) for text in rng.sample(FILLERS, 2)]
    return " ".join(rng.choice(((fact, fact, fillers[0], fact), (fillers[0], fact, fillers[1], fillers[0]))))


def _rude(request: Request, rng: random.Random) -> str:
    sentences = rng.sample(RUDE, rng.choice((1, 2)))
    return " ".join(text.format(s=world.named(request.subject)) for text in sentences)


STYLES: dict[str, Callable[[Request, random.Random], str]] = {
    "excellent": _excellent,
    "decent": _decent,
    "terse": _terse,
    "curt": _curt,
    "wrong": _wrong,
    "off_topic": _off_topic,
    "rambling": _rambling,
    "rude": _rude,
}


def answer(request: Request, rng: random.Random, weights: dict[str, int] = STYLE_WEIGHTS) -> tuple[str, str]:
    """Draw one answer from a mixture of styles: (style, text)."""
    style = rng.choices(tuple(weights), tuple(weights.values()))[0]
    return style, STYLES[style](request, rng)
