"""The skill to keep: function calling on small documents, in the leaderboard's file format.

Training and held-out cases use the same functions and the same pools of values, but no value of a held-out call appears
with its function in training: the skill is to read the documents and copy, not to remember.
"""

import json
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

from starling_train.evals import function_calling
from starling_train.files.json_lines import to_line

CATEGORIES = ("simple_python", "multiple", "irrelevance")
REFUSAL = "None of these functions can do that."

CaseRow = dict  # one line of a leaderboard file


@dataclass(frozen=True)
class Parameter:
    """A parameter of a function: name, leaderboard type, one-line description, pool of values."""

    name: str
    type: str
    description: str
    pool: tuple


# One small pool for all names: every name appears often enough, with other functions, to be learned as one to copy.
_NAMES = (
    *("Anna", "Boris", "Clara", "David", "Emma", "Felix", "Greta", "Hugo"),
    *("apple", "bird", "cloud", "dream", "eagle", "flower", "giant", "honey"),
)
_FILE = Parameter("file", "string", "The file.", _NAMES)
_SONG = Parameter("song", "string", "The song.", _NAMES)
_PERSON = Parameter("person", "string", "The person.", _NAMES)
_WORD = Parameter("word", "string", "The word.", _NAMES)
_COUNT = Parameter("count", "integer", "The number.", tuple(range(2, 10)))

# name -> (description, parameters, ways to ask)
FUNCTIONS: dict[str, tuple[str, tuple[Parameter, ...], tuple[str, ...]]] = {
    "open": ("Open a file.", (_FILE,), ("Open the file {file}.", "I want to open {file}.")),
    "print": ("Print a file.", (_FILE, _COUNT), ("Print the file {file} {count} times.",)),
    "delete": ("Delete a file.", (_FILE,), ("Delete the file {file}.", "Please delete {file} now.")),
    "play": ("Play a song.", (_SONG,), ("Play the song {song}.", "I want to play {song}.")),
    "repeat": ("Repeat a song.", (_SONG, _COUNT), ("Repeat the song {song} {count} times.",)),
    "call": ("Call a person.", (_PERSON,), ("Call {person}.", "Please call {person} now.")),
    "mail": ("Mail a person.", (_PERSON,), ("Mail {person}.", "I want to mail {person}.")),
    "invite": ("Invite a person.", (_PERSON, _COUNT), ("Invite {person} at {count}.",)),
    "search": ("Search a word.", (_WORD,), ("Search the word {word}.", "Please search {word} now.")),
    "spell": ("Spell a word.", (_WORD,), ("Spell the word {word}.", "I want to spell {word}.")),
    "alarm": ("Set an alarm.", (_COUNT,), ("Set an alarm for {count}.", "I want an alarm at {count}.")),
    "wait": ("Wait some hours.", (_COUNT,), ("Wait {count} hours.", "Please wait {count} hours now.")),
}
# Requests that no function can fulfil.
_OTHER_VERBS = ("Sing", "Please sing", "Invent", "Please invent", "Translate", "Please translate", "Paint", "Cook")
_OTHER_OBJECTS = ("a poem", "a joke", "a tale", "a letter", "a dinner", "a picture", "a ballad")


def document(name: str) -> dict:
    """Return a function's description in the leaderboard's format."""
    description, parameters, _ = FUNCTIONS[name]
    properties = {p.name: {"type": p.type, "description": p.description} for p in parameters}
    schema = {"type": "dict", "properties": properties, "required": [p.name for p in parameters]}
    return {"name": name, "description": description, "parameters": schema}


def is_held_out(name: str, parameter: Parameter, value: object) -> bool:
    """Whether `value` is kept out of training for this function: every fourth of its pool, shifted by function."""
    return (parameter.pool.index(value) + list(FUNCTIONS).index(name)) % 4 == 0


def _other_requests(held_out: bool) -> list[str]:
    return [
        f"{verb} {what}."
        for i, verb in enumerate(_OTHER_VERBS)
        for j, what in enumerate(_OTHER_OBJECTS)
        if ((i + j) % 4 == 0) == held_out
    ]


def case(category: str, held_out: bool, rng: random.Random) -> tuple[CaseRow, CaseRow]:
    """Draw one case: (question row, answer row), both without an id; `irrelevance` has an empty answer."""
    name = rng.choice(tuple(FUNCTIONS))
    _, parameters, templates = FUNCTIONS[name]
    arguments = {p.name: rng.choice([v for v in p.pool if is_held_out(name, p, v) == held_out]) for p in parameters}
    quoted = {key: json.dumps(value) for key, value in arguments.items()}
    question = rng.choice(templates).format(**quoted)
    if category == "irrelevance":
        question = rng.choice(_other_requests(held_out))
    others = rng.sample([other for other in FUNCTIONS if other != name], rng.choice((1, 1, 2)))
    offered = {"simple_python": [name], "multiple": [name, *others], "irrelevance": others}[category]
    rng.shuffle(offered)
    row = {
        "question": [[{"role": "user", "content": question}]],
        "function": [document(function) for function in offered],
    }
    truth = {name: {key: [value] for key, value in arguments.items()}}
    return row, {"ground_truth": [] if category == "irrelevance" else [truth]}


def cases(category: str, draws: int, held_out: bool, seed: str) -> list[tuple[CaseRow, CaseRow]]:
    """Draw cases and return the distinct ones, with ids.

    category: the leaderboard's.
    draws: how many cases are drawn.
    held_out: whether the values are those kept out of training.
    seed: of the draws.
    """
    rng = random.Random(f"{seed} {category} {held_out}")
    distinct: dict[str, tuple[CaseRow, CaseRow]] = {}
    for _ in range(draws):
        row, answer = case(category, held_out, rng)
        distinct[json.dumps(row)] = (row, answer)
    return [
        ({"id": f"{category}_{i}", **row}, {"id": f"{category}_{i}", **answer})
        for i, (row, answer) in enumerate(distinct.values())
    ]


def write(directory: Path, draws: int, held_out: bool, seed: str) -> None:
    """Write leaderboard files of all categories: BFCL_v4_{category}.json and, except for irrelevance, possible_answer/.

    directory: made here.
    draws, held_out, seed: as in `cases`.
    """
    (directory / "possible_answer").mkdir(parents=True)
    for category in CATEGORIES:
        rows = cases(category, draws, held_out, seed)
        name = f"BFCL_v4_{category}.json"
        (directory / name).write_bytes(b"".join(to_line(row) for row, _ in rows))
        if category != "irrelevance":
            (directory / "possible_answer" / name).write_bytes(b"".join(to_line(answer) for _, answer in rows))


def load(draws: int, held_out: bool, seed: str) -> list[function_calling.Case]:
    """Draw cases, and return them as the evaluation would read them from files."""
    with tempfile.TemporaryDirectory() as directory:
        write(Path(directory), draws, held_out, seed)
        return function_calling.load_cases(directory, CATEGORIES)


def right_answer(case: function_calling.Case) -> str:
    """Return the right answer to a case: its call, or a plain sentence where no function fits."""
    if case.ground_truth is None:
        return REFUSAL
    calls = [
        function_calling.Call(name, {key: allowed[0] for key, allowed in arguments.items()})
        for truth in case.ground_truth
        for name, arguments in truth.items()
    ]
    return function_calling.answer_text(calls)
