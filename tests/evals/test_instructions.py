"""Instructions that a program checks: verdicts by hand, the prompts that come along, and the skill."""

import re
from collections import Counter

import pytest

from starling_train.config.ppo import PpoConfig
from starling_train.evals import registry
from starling_train.evals.instructions import CHECKS, is_followed, load
from starling_train.evals.instructions.checks import words
from starling_train.evals.instructions.suite import by_kind, verdicts

GOOD = {  # kind -> argument, answers that follow, answers that do not
    "items": (3, ["Sure:\n- a b\n- c\n- d", "1. a b\n2. c\n3. d", "* a b\n\n* c\n\n* d\n"], ["- a b\n- c", "a, b, c"]),
    "word": ("window", ["The WINDOW is open.", "open the 'window' now"], ["The windows are open.", "wind ow and more"]),
    "repeated": (("sea", 2), ["The sea, the Sea!"], ["The sea is wide.", "The seas and the sea"]),
    "avoided": ("light", ["The sun is bright."], ["The light is on.", "All the Lights are on."]),
    "start": ("In short", ["in short, it works", "**In short**: it works"], ["It works, in short.", "Well. In short"]),
    "ending": ("the end", ["So it was. The end.", 'So it was. "The end"\n'], ["The end came soon.", "All the ends"]),
    "no_commas": (None, ["One two three."], ["One, two and three."]),
    "lower_case": (None, ["one two 3 four."], ["One two three."]),
    "upper_case": (None, ["ONE TWO 3 FOUR."], ["ONE TWO THREE and four"]),
    "at_most": (4, ["One two three four.", "well-known facts don't change"], ["One two three four five."]),
    "at_least": (4, ["One two three four."], ["One two three."]),
    "json": (
        ["name", "age"],
        ['{"name": "A", "age": 3}', ' ```json\n{"age": 3, "name": "A"}\n``` ', '{"name":"A","age":null}'],
        ['Here: {"name": "A", "age": 3}', '{"name": "A"}', '["name", "age"]', '{"name": "A", "age": 3, "b": 1}', "{"],
    ),
}


@pytest.mark.parametrize("kind", CHECKS)
def test_verdicts(kind):
    argument, follow, others = GOOD[kind]
    assert [is_followed(kind, argument, answer) for answer in follow] == [True] * len(follow)
    assert [is_followed(kind, argument, answer) for answer in others] == [False] * len(others)


@pytest.mark.parametrize("answer", ["", " \n", "yes", "ok ok", "[" * 100_000])
def test_saying_nothing_follows_nothing(answer):
    """A policy that learns to be silent does not gain the skill."""
    assert not any(is_followed(one.kind, one.argument, answer) for one in load())


def test_words_are_counted_by_hand():
    assert words("Don't stop: it's 3 well-known_facts!") == ["don't", "stop", "it's", "3", "well-known", "facts"]


def test_the_prompts_are_always_the_same_twelve_of_each_kind():
    asked = load()
    assert Counter(one.kind for one in asked) == dict.fromkeys(CHECKS, 12)
    assert len({one.id for one in asked}) == len({one.request for one in asked}) == 144
    assert [one.id for one in load(13)][:3] == ["items_0", "items_1", "word_0"] and len(load(13)) == 13
    assert (asked[0].id, asked[0].kind) == ("items_0", "items") and asked == load()
    for one in asked:  # what is checked is what the prompt says
        said = one.argument if isinstance(one.argument, tuple | list) else [one.argument]
        assert all(str(part) in one.request for part in said if part is not None)
        assert re.fullmatch(r".*[.]", one.request) and "{" not in one.request


def test_percent_and_kinds():
    asked = load(24)
    answers = [GOOD["no_commas"][1][0] if one.kind == "no_commas" else "" for one in asked]
    followed = verdicts(asked, answers)
    assert sum(followed) == 2 and by_kind(asked, followed)["no_commas"] == [True, True]


def test_the_skill_measures_what_the_policy_answers(monkeypatch):
    """The share of all prompts, of each kind, and a digit for each case."""
    from starling_train.evals.instructions import suite

    config = PpoConfig()
    config.evaluation.suites, config.evaluation.instructions.prompts = ["instructions"], 24
    said = {one.request: "ONE TWO THREE" if one.kind == "upper_case" else "" for one in load()}

    class Chat:
        def prompt(self, messages):
            return [messages[0]["content"]]

        def stop_strings(self, chosen):
            return []

        def text(self, ids, stops):
            return said[ids[0]]

    class Runtime:
        def shard(self, items):
            return items

        def gather(self, items):
            return items

    class Rollout:
        def __init__(self, prompts):
            self.responses = prompts

    seen = {}

    def generate(policy, chat, prompts, limits, **how):
        seen.update(how, limit=limits.max_new_tokens)
        return Rollout(prompts)

    monkeypatch.setattr(suite, "generate", generate)
    (skill,) = registry.skills(config, Chat())
    measured = skill("policy", "slots", "tokens", Runtime())
    assert seen == {"greedy": True, "budget": "slots", "limit": 128}
    assert measured.metrics["eval/instructions"] == pytest.approx(100 * 2 / 24)
    assert measured.metrics["eval/instructions_cases"] == 24
    assert measured.metrics["eval/instructions_upper_case"] == 100 and measured.metrics["eval/instructions_json"] == 0
    assert (
        measured.cases["eval/instructions"].count("1") == 2 and measured.cases["eval/instructions_upper_case"] == "11"
    )
