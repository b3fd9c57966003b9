"""The skill to keep: function calling on small documents, in the leaderboard's file format.

Training and held-out cases use the same functions and the same pools of values, but no value of a held-out call was
ever seen with that function in training: what is measured is reading the documents and copying, not remembering.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

from starling_train.toy import world

CATEGORIES = ("simple_python", "multiple", "irrelevance")
REFUSAL = "None of these functions can do that."

Row = dict  # one line of a leaderboard file


@dataclass(frozen=True)
class Parameter:
    """name, leaderboard type, one-line description, pool of values."""

    name: str
    type: str
    description: str
    pool: tuple


def _subjects(kind: str) -> tuple[str, ...]:
    return tuple(subject for subject in world.SUBJECTS if world.kind_of(subject) == kind)


_PEOPLE = ("Anna", "Boris", "Clara", "David", "Emma", "Felix", "Greta", "Hugo")
_COLOURS = world.values("animal", "colour") + ("red", "blue", "white")
_CITY = Parameter("city", "string", "The city.", _subjects("city"))
_PET = Parameter("pet", "string", "The animal.", _subjects("animal"))
_TOOL = Parameter("tool", "string", "The tool.", _subjects("tool"))
_COLOUR = Parameter("colour", "string", "The colour.", _COLOURS)
_PERSON = Parameter("person", "string", "The person.", _PEOPLE)
_COUNT = Parameter("count", "integer", "The number.", tuple(range(2, 10)))

# name -> (description, parameters, ways to ask)
FUNCTIONS: dict[str, tuple[str, tuple[Parameter, ...], tuple[str, ...]]] = {
    "forecast": ("Show the forecast.", (_CITY,), ("Show the forecast for {city}.", "Forecast for {city} please.")),
    "hotel": ("Book a hotel.", (_CITY, _COUNT), ("Book a hotel in {city} for {count} nights.",)),
    "map": ("Open a map.", (_CITY,), ("Open a map of {city}.", "I need the map of {city}.")),
    "feed": ("Feed an animal.", (_PET, _COUNT), ("Feed the {pet} {count} times.",)),
    "track": ("Track an animal.", (_PET,), ("Track the {pet} now.", "Start to track the {pet}.")),
    "order": ("Order a tool.", (_TOOL, _COUNT), ("Order the {tool} and make it {count} pieces.",)),
    "repair": ("Repair a tool.", (_TOOL,), ("Repair the {tool}.", "The {tool} needs a repair.")),
    "paint": ("Paint a wall.", (_COLOUR,), ("Paint the wall {colour}.", "I want to paint it {colour}.")),
    "shirt": ("Buy a shirt.", (_COLOUR, _COUNT), ("Buy a {colour} shirt and pack {count} of it.",)),
    "call": ("Call a person.", (_PERSON,), ("Call {person}.", "Make a call to {person}.")),
    "mail": ("Send a mail.", (_PERSON,), ("Send a mail to {person}.", "Write {person} a mail.")),
    "alarm": ("Set an alarm.", (_COUNT,), ("Set an alarm for {count}.", "I need an alarm at {count}.")),
}


def document(name: str) -> dict:
    """A function's description as the leaderboard gives it."""
    description, parameters, _ = FUNCTIONS[name]
    properties = {p.name: {"type": p.type, "description": p.description} for p in parameters}
    schema = {"type": "dict", "properties": properties, "required": [p.name for p in parameters]}
    return {"name": name, "description": description, "parameters": schema}


def is_held_out(name: str, parameter: Parameter, value: object) -> bool:
    """Whether `value` is kept out of training for this function: every third of its pool, at a shift of its own."""
    return (parameter.pool.index(value) + list(FUNCTIONS).index(name)) % 3 == 0


def case(category: str, held_out: bool, rng: random.Random) -> tuple[Row, Row]:
    """One random case: (question row, answer row), both without an id; `irrelevance` has an empty answer."""
    name = rng.choice(tuple(FUNCTIONS))
    _, parameters, templates = FUNCTIONS[name]
    arguments = {
        p.name: rng.choice([v for v in p.pool if is_held_out(name, p, v) == held_out]) for p in parameters
    }
    question = rng.choice(templates).format(**arguments)
    others = rng.sample([other for other in FUNCTIONS if other != name], rng.choice((1, 2)))
    offered = {"simple_python": [name], "multiple": [name, *others], "irrelevance": others}[category]
    rng.shuffle(offered)
    row = {
        "question": [[{"role": "user", "content": question}]],
        "function": [document(function) for function in offered],
    }
    truth = {name: {key: [value] for key, value in arguments.items()}}
    return row, {"ground_truth": [] if category == "irrelevance" else [truth]}


def cases(category: str, draws: int, held_out: bool, seed: str) -> list[tuple[Row, Row]]:
    """The distinct ones among that many random cases, with ids."""
    rng = random.Random(f"{seed} {category} {held_out}")
    found: dict[str, tuple[Row, Row]] = {}
    for _ in range(draws):
        row, answer = case(category, held_out, rng)
        found[json.dumps(row)] = (row, answer)
    return [
        ({"id": f"{category}_{i}", **row}, {"id": f"{category}_{i}", **answer})
        for i, (row, answer) in enumerate(found.values())
    ]


def write(directory: Path, draws: int, held_out: bool, seed: str) -> None:
    """Leaderboard files of all categories: BFCL_v4_{category}.json and, but for irrelevance, possible_answer/."""
    (directory / "possible_answer").mkdir(parents=True)
    for category in CATEGORIES:
        rows = cases(category, draws, held_out, seed)
        name = f"BFCL_v4_{category}.json"
        _write_lines(directory / name, [row for row, _ in rows])
        if category != "irrelevance":
            _write_lines(directory / "possible_answer" / name, [answer for _, answer in rows])


def _write_lines(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
