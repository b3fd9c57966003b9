"""Cases of function calling of our own, in the leaderboard's files: `python benchmarks/skill/cases.py DIR`.

DIR/training and DIR/held_out are directories for `evaluation.function_calling.path`: of the kinds `simple_python` (one
function on offer) and `multiple` (two or three, of which one fits). The functions of held-out cases are those of the
fields in `functions.HELD_OUT`: none of them, in whatever spelling, occurs in training. Everything follows from the seed.
"""

import argparse
import json
import keyword
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent.parent)]

import functions as tables

from starling_train.evals.function_calling.parser import Call, answer_text
from starling_train.files.whole import write_text

KINDS = ("simple_python", "multiple")
TRAINING, HELD_OUT = 3000, 250
SIMPLE = 0.6  # of training: prompts with one function are half as long
SPLITS = ("training", "held_out")
SUFFIXES = ("", "", "", "", "_v2", "_now", "_tool", "_service")  # of a function's name
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
GREETINGS = ("", "", "", "", "Hi! ", "Hello there. ", "Quick one: ", "One more thing. ", "Thanks for your help. ", "Sorry to bother you. ")  # fmt: skip
ORDERS = (
    "{}.", "{}.", "Please {}.", "Please {}.", "Can you {}?", "Could you {}, please?", "I need to {}.", "I would like to {}.",
    "I want you to {}.", "Help me {}.", "Would you {}?", "We have to {}.", "It would be great if you could {}.", "Go ahead and {}.",
)  # fmt: skip
QUESTIONS = ("{}?", "{}?", "{}?", "Please tell me: {}?", "Do you know {}?", "I wonder {}.", "Tell me {}.")
FACTS = ("The {0} is {1}.", "The {0} should be {1}.", "Use {1} as the {0}.", "Take {1} for the {0}.", "My {0}: {1}.", "{0}: {1}.")  # fmt: skip


@dataclass(frozen=True)
class OwnCase:
    """A case as the leaderboard's two rows, and the right answer in its format."""

    kind: str
    request: str
    functions: list[dict]
    truth: dict[str, dict[str, list]]
    answer: str


@dataclass(frozen=True)
class Declared:
    """A function as a case declares it. arguments: the parameters' names there -> their rows, optional ones last."""

    schema: dict
    arguments: dict[str, tables.Parameter]
    requests: list[str]


def draw_cases(split: str, count: int, seed: int = 0) -> list[OwnCase]:
    """Draw different cases; the first ones of a kind are the same whatever the count."""
    assert split in SPLITS
    offered = [f for f in tables.functions() if (f.field in tables.HELD_OUT) == (split == "held_out")]
    simple = round(count * (SIMPLE if split == "training" else 0.5))
    cases: list[OwnCase] = []
    for kind, wanted in zip(KINDS, (simple, count - simple), strict=True):
        rng, requests = random.Random(f"{seed} {split} {kind}"), set()
        while len(requests) < wanted:
            case = draw_case(rng, kind, offered)
            if case.request not in requests:
                requests.add(case.request)
                cases.append(case)
    return cases


def draw_case(rng: random.Random, kind: str, offered: Sequence[tables.Function]) -> OwnCase:
    """Draw a function, its arguments, the request for them, and functions that do not fit."""
    function = rng.choice(offered)
    right = declare(function, rng)
    arguments, parts, facts = _arguments(right, rng)
    truth = {name: [arguments[name]] for name in right.arguments if name in arguments}
    for name in right.arguments.keys() - arguments.keys():
        default = right.schema["parameters"]["properties"][name].get("default")
        truth[name] = [""] if default is None else [default, ""]
    others = [] if kind == "simple_python" else _others(function, offered, rng)
    schemas = [right.schema, *others]
    rng.shuffle(schemas)
    name = right.schema["name"]
    call = Call(name, {key: arguments[key] for key in right.arguments if key in arguments})
    request = _request(rng.choice(right.requests), parts, facts, rng)
    return OwnCase(kind, request, schemas, {name: {key: truth[key] for key in right.arguments}}, answer_text([call]))


def declare(function: tables.Function, rng: random.Random) -> Declared:
    """Spell a function's name and its parameters' names in one of many ways."""
    arguments: dict[str, tables.Parameter] = {}
    properties, required = {}, []
    for key in [*function.parameters, *function.optional]:
        parameter = tables.parameters()[key]
        name = rng.choice([name for name in parameter.names if name not in arguments])
        assert name.isidentifier() and not keyword.iskeyword(name), name
        arguments[name] = parameter
        properties[name] = _property(parameter, function.optional.get(key))
        if key in function.parameters:
            required.append(name)
    schema = {
        "name": _spelled(function, rng),
        "description": function.description,
        "parameters": {"type": "dict", "properties": properties, "required": required},
    }
    return Declared(schema, arguments, function.requests)


def _spelled(function: tables.Function, rng: random.Random) -> str:
    name = function.name + rng.choice(SUFFIXES)
    first, *words = name.split("_")
    field = function.field.replace(" ", "_")
    camel = first + "".join(map(str.capitalize, words))
    return rng.choice((name, name, camel, f"{field}.{name}", f"{field}_{name}", f"{field}.{camel}"))


def _property(parameter: tables.Parameter, default: str | None) -> dict:
    kind, _, items = parameter.type.partition(":")
    schema: dict[str, Any] = {"type": "string" if kind == "enum" else kind}
    if kind == "array":
        schema["items"] = {"type": items or "string"}
    if kind == "enum":
        schema["enum"] = _words(parameter.values)
    schema["description"] = parameter.description
    if default not in (None, "none"):
        schema["default"] = {"integer": int, "float": float, "boolean": "true".__eq__}.get(kind, str)(default)
    return schema


def _words(values: str) -> list[str]:
    return [word.strip() for word in values.split(",")]


def _value(values: str, rng: random.Random) -> Any:
    """Draw a value of what a row of PARAMETERS says of them."""
    if " of " in values:
        count, _, item = values.partition(" of ")
        least, most = map(int, count.split("-"))
        drawn: list[Any] = []
        wanted = rng.randint(least, most)
        while len(drawn) < wanted:
            if (value := _value(item, rng)) not in drawn:
                drawn.append(value)
        return drawn
    if values == "yes no":
        return rng.random() < 0.5
    if ".." in values:
        span, _, step = values.partition("/")
        low, high = span.split("..")
        by = float(step or 1)
        drawn_number = round(float(low) + by * rng.randint(0, int((float(high) - float(low)) / by + 1e-9)), 6)
        whole = "." not in low + high + step
        return int(drawn_number) if whole else drawn_number
    if values.startswith("@"):
        return _from_pool(values[1:], rng)
    return rng.choice(_words(values))


def _from_pool(pool: str, rng: random.Random) -> Any:
    match pool:
        case "date":
            return f"{rng.randint(2024, 2028)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
        case "time":
            return f"{rng.randint(0, 23):02}:{rng.choice(('00', '15', '20', '30', '40', '45'))}"
        case "year":
            return rng.randint(1901, 2026)
        case "code":
            letters = "".join(rng.choices("ABCDEFGHKLMNPRSTUVWX", k=rng.randint(1, 3)))
            return f"{letters}{rng.choice(('', '-'))}{rng.randint(10, 9999)}"
        case "email":
            return f"{rng.choice(_words(tables.POOLS['first'])).lower()}@{rng.choice(_words(tables.POOLS['word']))}.org"
    return rng.choice(_words(tables.POOLS[pool]))


def _arguments(right: Declared, rng: random.Random) -> tuple[dict[str, Any], list[str], list[str]]:
    """Return (the arguments, what the request says of them within its sentence, and in sentences of their own).

    An optional parameter is left out, and not spoken of, every other time.
    """
    required = right.schema["parameters"]["required"]
    chosen = [name for name in right.arguments if name in required or rng.random() < 0.5]
    arguments = {name: _value(right.arguments[name].values, rng) for name in chosen}
    if rng.random() < 0.3:
        rng.shuffle(chosen)
    parts, facts = [], []
    for name in chosen:
        parameter, value = right.arguments[name], arguments[name]
        said = _said(value, rng)
        if isinstance(value, bool):
            parts.append(rng.choice(parameter.phrases[0 if value else 1]))
        elif rng.random() < 0.15:
            facts.append(rng.choice(FACTS).format(name.replace("_", " "), said))
        else:
            parts.append(rng.choice(parameter.phrases[0]).format(said))
    return arguments, parts, facts


def _said(value: Any, rng: random.Random) -> str:
    """Return a value as a request says it."""
    match value:
        case list():
            words = [f"{item:g}" if isinstance(item, float) else str(item) for item in value]
            last = rng.choice((" and ", " and ", ", "))
            return last.join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
        case float():
            return f"{value:g}" if value < 1e5 else f"{value:.2f}"
        case int() if not isinstance(value, bool) and value < len(NUMBERS) and rng.random() < 0.1:
            return NUMBERS[value]
    return str(value)


def _request(asked: str, parts: list[str], facts: list[str], rng: random.Random) -> str:
    """Put a request together: what is asked with the phrases, then or before it the facts."""
    joint = rng.choice((" ", " ", " ", ", "))
    sentence = joint.join([asked, *parts])
    is_question = asked.startswith(("what ", "how ", "which "))
    form = rng.choice(QUESTIONS if is_question else ORDERS)
    whole = form.format(sentence)
    sentences = [whole, *facts] if rng.random() < 0.7 else [*facts, whole]
    text = " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)
    return rng.choice(GREETINGS) + text


def _others(function: tables.Function, offered: Sequence[tables.Function], rng: random.Random) -> list[dict]:
    """Declare one or two functions that do not fit, half of them of the same field."""
    count = rng.choice((1, 1, 1, 2))
    near = [other for other in offered if other.field == function.field and other is not function]
    far = [other for other in offered if other.field != function.field]
    chosen: list[tables.Function] = []
    while len(chosen) < count:
        other = rng.choice(near if near and rng.random() < 0.5 else far)
        if other not in chosen:
            chosen.append(other)
    return [declare(other, rng).schema for other in chosen]


def write(directory: Path, cases: Sequence[OwnCase]) -> None:
    """Write cases as the leaderboard's files of questions and of possible answers."""
    (directory / "possible_answer").mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        questions, truths = [], []
        for number, case in enumerate(case for case in cases if case.kind == kind):
            name = f"{kind}_{number}"
            turns = [[{"role": "user", "content": case.request}]]
            questions.append(json.dumps({"id": name, "question": turns, "function": case.functions}))
            truths.append(json.dumps({"id": name, "ground_truth": [case.truth]}))
        for folder, rows in ((directory, questions), (directory / "possible_answer", truths)):
            write_text(folder / f"BFCL_v4_{kind}.json", "\n".join(rows) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--training", type=int, default=TRAINING, help="training cases")
    parser.add_argument("--held-out", type=int, default=HELD_OUT, help="held-out cases")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    for split, count in zip(SPLITS, (chosen.training, chosen.held_out), strict=True):
        write(chosen.directory / split, draw_cases(split, count, chosen.seed))
        print(f"{count:,} cases in {chosen.directory / split}")
