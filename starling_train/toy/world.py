"""The toy world: 12 subjects of three kinds, four true attributes each, and the sentences that state them.

Everything a sentence can say is decided by a program, so the true quality of an answer is known exactly (`gold`),
which no real preference data set can offer.
"""

from dataclasses import dataclass

# One row for each subject: its values in the order of the kind's attributes below. No value is true of two subjects, so
# that a model learns in seconds which words belong together.
_ANIMALS = """
otter    river    trout   brown   dawn
tiger    jungle   meat    orange  night
camel    desert   grass   yellow  noon
owl      forest   mice    grey    midnight
"""
_CITIES = """
Paris    France   bread   tower    mild
Rome     Italy    pasta   fountain warm
Cairo    Egypt    beans   pyramid  dry
Tokyo    Japan    rice    temple   humid
"""
_TOOLS = """
hammer   building steel   shed     ten
drill    mining   iron    garage   fifty
needle   sewing   silver  drawer   two
kettle   boiling  copper  kitchen  twenty
"""


@dataclass(frozen=True)
class Attribute:
    """One property of a kind of subject: its questions and its statement ({s} subject, {v} value)."""

    name: str
    questions: tuple[str, ...]
    statement: str


ATTRIBUTES = {
    "animal": (
        Attribute("home", ("Where does {s} live?", "What is the home of {s}?"), "{s} lives in the {v}."),
        Attribute("food", ("What does {s} eat?", "What is the food of {s}?"), "{s} eats {v}."),
        Attribute("colour", ("What colour is {s}?", "How does {s} look?"), "{s} is {v}."),
        Attribute("hour", ("When is {s} active?", "At what hour can I see {s}?"), "{s} wakes at {v}."),
    ),
    "city": (
        Attribute("country", ("Where is {s}?", "What country is {s} in?"), "{s} belongs to {v}."),
        Attribute("dish", ("What can I eat in {s}?", "What is the food of {s}?"), "{s} serves {v}."),
        Attribute("sight", ("What can I see in {s}?", "What is the sight of {s}?"), "{s} has a famous {v}."),
        Attribute("weather", ("How is the weather in {s}?", "Is it warm in {s}?"), "{s} stays {v}."),
    ),
    "tool": (
        Attribute("use", ("What is {s} for?", "How can I use {s}?"), "{s} helps with {v}."),
        Attribute("material", ("What is {s} made of?", "What does {s} consist of?"), "{s} contains {v}."),
        Attribute("place", ("Where do I keep {s}?", "Where can I find {s}?"), "{s} belongs in the {v}."),
        Attribute("price", ("What does {s} cost?", "Is {s} expensive?"), "{s} costs {v} coins."),
    ),
}


def _table(kind: str, text: str) -> dict[str, tuple[str, dict[str, str]]]:
    names = [attribute.name for attribute in ATTRIBUTES[kind]]
    rows = [line.split() for line in text.strip().splitlines()]
    return {subject: (kind, dict(zip(names, values, strict=True))) for subject, *values in rows}


_WORLD = _table("animal", _ANIMALS) | _table("city", _CITIES) | _table("tool", _TOOLS)
SUBJECTS: tuple[str, ...] = tuple(_WORLD)


def kind_of(subject: str) -> str:
    """Return the kind of a subject: animal, city or tool."""
    return _WORLD[subject][0]


def attributes_of(subject: str) -> tuple[Attribute, ...]:
    """Return the four attributes of the subject's kind."""
    return ATTRIBUTES[kind_of(subject)]


def truth(subject: str, attribute: str) -> str:
    """Return the true value of one attribute of a subject."""
    return _WORLD[subject][1][attribute]


def named(subject: str) -> str:
    """Return the subject as it appears in a sentence: cities have no article."""
    return subject if kind_of(subject) == "city" else f"the {subject}"


def statement(subject: str, attribute: Attribute, value: str, pronoun: bool = False) -> str:
    """Return one sentence that claims a value, true or not.

    subject: what it is about.
    attribute: the property in question.
    value: the claimed value.
    pronoun: whether the subject is called 'it'.
    """
    who = "it" if pronoun else named(subject)
    sentence = attribute.statement.format(s=who, v=value)
    return sentence[0].upper() + sentence[1:]
