"""The suite's prompts: written here, twelve of each kind, always the same ones; no data set has them to train on."""

import random
from dataclasses import dataclass
from typing import Any

from starling_train.evals.instructions.checks import CHECKS
from starling_train.evals.suite import in_turn

EACH = 12  # prompts of a kind

TASKS = (
    "Explain why the sky is blue.",
    "Describe a rainy afternoon in a small town.",
    "Give a friend advice on learning to swim.",
    "Tell me how bread is made.",
    "Explain what a bank does.",
    "Describe your ideal garden.",
    "Write a short note to thank a neighbour.",
    "Explain how a bicycle stays upright.",
    "Tell a short story about a lost key.",
    "Say why people keep cats.",
    "Explain what makes a good teacher.",
    "Describe a walk along a river.",
    "Tell me what to see in a museum.",
    "Explain how tea is brewed.",
    "Give reasons to go to bed early.",
    "Describe a market on a busy morning.",
    "Explain what a volcano is.",
    "Write a welcome for a new colleague.",
    "Tell me why trees lose their leaves.",
    "Describe how to pack a suitcase.",
    "Explain what a library is for.",
    "Say something kind about winter.",
    "Tell me how to clean a window.",
    "Describe the sound of the sea.",
)
LISTS = (
    "things to take on a hike",
    "fruits that grow on trees",
    "ways to save water",
    "games for children",
    "animals that live in a forest",
    "tools of a carpenter",
    "reasons to read",
    "dishes with potatoes",
    "sports with a ball",
    "jobs in a hospital",
    "things in a kitchen",
    "ways to travel",
)
WORDS = (
    "window", "patience", "lantern", "copper", "harbour", "silence", "ladder", "autumn", "mirror", "bridge", "sugar",
    "voyage",
)  # fmt: skip
STARTS = ("To begin with", "My dear friend", "In short", "Long ago", "Most people think", "First of all")
ENDINGS = ("and that is all", "thank you for reading", "hope this helps", "see you tomorrow", "the end", "so it goes")
KEYS = (
    ("name", "age"), ("title", "year"), ("city", "country"), ("colour", "size"), ("question", "answer"),
    ("day", "plan"),
)  # fmt: skip
THINGS = ("a person", "a book", "a place", "a shirt", "a riddle", "a week's highlight")

# kind -> how a request says it, {0} and {1} being what the check asks for
SAID = {
    "word": ("Use the word '{0}'.", "Your answer must contain the word '{0}'.", "Include the word '{0}' somewhere."),
    "repeated": ("Use the word '{0}' at least {1} times.", "The word '{0}' must occur {1} times or more."),
    "avoided": ("Do not use the word '{0}'.", "Avoid the word '{0}' altogether."),
    "start": ("Begin your answer with '{0}'.", "The first words of your answer must be '{0}'."),
    "ending": ("End your answer with the words '{0}'.", "The last words of your answer must be '{0}'."),
    "no_commas": ("Do not use any commas.", "Your answer must not contain a comma."),
    "lower_case": ("Write everything in lower case.", "Use small letters only, no capitals at all."),
    "upper_case": ("Write everything in capital letters.", "Use upper case only."),
    "at_most": ("Use at most {0} words.", "Answer in no more than {0} words."),
    "at_least": ("Use at least {0} words.", "Your answer must have {0} words or more."),
}
ITEMS = (
    "List exactly {0} {1}, each on a line of its own that begins with '- '.",
    "Name {0} {1} as a numbered list, one item a line, and no more than {0}.",
    "Give me exactly {0} {1} as bullet points.",
)
# a word that answers to the task of the same index are likely to use
LIKELY = (
    "light", "rain", "water", "flour", "money", "flower", "thank", "wheel", "door", "pet", "student", "water", "art",
    "water", "sleep", "people", "lava", "team", "autumn", "clothes", "books", "snow", "cloth", "wave",
)  # fmt: skip


@dataclass(frozen=True)
class Instruction:
    """A prompt, and what `checks.is_followed` needs to know of it."""

    id: str
    kind: str
    request: str
    argument: Any

    @property
    def messages(self) -> list[dict]:
        """The prompt as a conversation."""
        return [{"role": "user", "content": self.request}]


def load(limit: int | None = None) -> list[Instruction]:
    """Return the prompts, kind after kind. limit: how many in all, the first ones of each kind in turn; None: all."""
    return in_turn([[_drawn(kind, number) for number in range(EACH)] for kind in CHECKS], limit)


def _drawn(kind: str, number: int) -> Instruction:
    rng = random.Random(f"{kind} {number}")  # of its own: another kind or count leaves the others as they are
    offset = 5 * list(CHECKS).index(kind)
    place = (offset + number) % len(TASKS)
    argument: Any = None
    match kind:
        case "items":
            argument = rng.randint(3, 6)
            request = ITEMS[number % len(ITEMS)].format(argument, LISTS[number % len(LISTS)])
            return Instruction(f"{kind}_{number}", kind, request, argument)
        case "json":
            which = number % len(KEYS)
            argument, named = list(KEYS[which]), " and ".join(f'"{key}"' for key in KEYS[which])
            request = (
                f"Invent {THINGS[which]}. Answer with a JSON object only, with the keys {named}, and nothing else."
                if number < len(KEYS)
                else f"Describe {THINGS[which]} as JSON with exactly two keys, {named}. Write no other text."
            )
            return Instruction(f"{kind}_{number}", kind, request, argument)
        case "word":
            argument = WORDS[number % len(WORDS)]
        case "repeated":
            argument = (LIKELY[place], rng.randint(2, 3))
        case "avoided":
            argument = LIKELY[place]
        case "start":
            argument = STARTS[number % len(STARTS)]
        case "ending":
            argument = ENDINGS[number % len(ENDINGS)]
        case "at_most":
            argument = rng.choice((15, 20, 25, 30))
        case "at_least":
            argument = rng.choice((40, 45, 50, 55))
    said = SAID[kind][number % len(SAID[kind])].format(*(argument if isinstance(argument, tuple) else (argument,)))
    task = TASKS[place]
    return Instruction(f"{kind}_{number}", kind, f"{said} {task}" if number % 3 == 2 else f"{task} {said}", argument)
