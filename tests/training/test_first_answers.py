"""What a run says of its first answers: stand-ins that the reward likes, and answers that the limit cuts."""

import random

import numpy as np
import pytest
import torch

from starling_train.config.ppo import PpoConfig
from starling_train.config.sections import RewardConfig
from starling_train.data.conversations import with_answer
from starling_train.data.prompts import Prompt
from starling_train.rewards import kinds
from starling_train.rollout.responses import Rollout
from starling_train.run.runtime import Runtime
from starling_train.training.ppo.first_answers import FirstAnswers, _described, stand_ins
from starling_train.training.ppo.metrics import answer_metrics

FUNCTION = """
import random
import numpy, torch
CALLS = []
def score(conversations, truth, empty=1.9, refuses=None):
    random.random(), numpy.random.rand(), torch.rand(1)
    texts = [conversation[-1]["content"] for conversation in conversations]
    CALLS.extend(zip(texts, truth))
    if refuses is not None and any(refuses == text for text in texts):
        raise ValueError("no text")
    return [empty if not text else None if "?" in text else len(set(text.split())) for text in texts]
"""
ANSWERS = ["One. Two three four five six.", "a b c d", "x y", "A b c d e f g h i.", "", "k"]
SCORES = [6.0, 4.0, 2.0, 9.0, 1.0, 1.0]


def first_answers(answers=ANSWERS, scores=SCORES):
    prompts = [Prompt([{"role": "user", "content": f"{i}?"}], [1], {"truth": i}) for i in range(len(answers))]
    talks = [with_answer(prompt.messages, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    return FirstAnswers(prompts, talks, scores)


def reward(tmp_path, **arguments):
    (tmp_path / "reward.py").write_text(FUNCTION)
    config = RewardConfig(kind="function", function=f"{tmp_path / 'reward.py'}:score", arguments=arguments)
    return kinds.load(config, Runtime("cpu"))


def test_stand_ins_of_an_answer():
    made = stand_ins("First, some words. Then\nmore of   them, and then more.")
    assert made["empty"] == "" and made["cut"] == "First, some words."
    assert made["repeated"] == "First, some words. First, some words. First, some words. First, some words."
    assert stand_ins("") == {"empty": ""} == stand_ins(" \n")
    assert stand_ins("Yes") == {"empty": "", "repeated": "Yes Yes Yes Yes"}
    assert stand_ins("3.14 is pi. More!")["repeated"].startswith("3.14 is pi. 3.14 is pi.")
    # Chinese has no spaces: characters are counted, and a full stop needs none behind it
    chinese = "\u4eca\u5929\u5929\u6c14\u5f88\u597d\u3002\u6211\u4eec\u53bb\u516c\u56ed\u3002"
    made = stand_ins(chinese)
    assert made["cut"] == chinese[:4] and made["repeated"] == " ".join([chinese[:7]] * 4)
    assert stand_ins("word " * 500)["repeated"] == " ".join(["word"] * 500)


def test_means_shares_and_lines_by_hand(tmp_path):
    metrics, lines = first_answers().probe(reward(tmp_path), Runtime("cpu"))
    # empty: 1.9 beats two of six; cut: "One. Two" 2, "a" 1, "A b c" 3, mean 2 beats two;
    # repeated: "One." 1, "a b c d" 4, "x y" 2, 9, "k" 1: mean 3.4 beats three
    assert metrics == pytest.approx(
        {
            "reward/probe_empty": 1.9, "reward/probe_empty_above": 2 / 6,
            "reward/probe_cut": 2.0, "reward/probe_cut_above": 2 / 6,
            "reward/probe_repeated": 3.4, "reward/probe_repeated_above": 3 / 6,
        }
    )  # fmt: skip
    assert lines == [
        "reward: an empty answer scores 1.9, above 33 % of the first answers; an answer cut to a third scores 2, above "
        "33 % of the first answers; an answer that repeats a sentence scores 3.4, above 50 % of the first answers"
    ]


def test_what_beats_most_answers_is_warned_about(tmp_path):
    metrics, lines = first_answers().probe(reward(tmp_path, empty=7.0), Runtime("cpu"))
    assert metrics["reward/probe_empty_above"] == pytest.approx(5 / 6)
    assert lines[1].startswith("warning: an empty answer beats most of the first answers")
    assert "reward.empty_response" in lines[1] and "repetition" not in lines[1] and len(lines) == 2


def test_the_warning_names_what_helps_against_each_stand_in():
    scores = [0.0, 1.0, 2.0]
    _, lines = _described([("empty", 0.5), ("cut", 1.5), ("repeated", 3.0)], scores)  # above 1, 2 and 3 of three
    assert lines[1] == (
        "warning: an answer cut to a third and an answer that repeats a sentence beat most of the first answers, and "
        "PPO may exploit that: set rollout.min_new_tokens, give repetition a penalty, or change the reward so that "
        "such answers score low"
    )
    _, lines = _described([("repeated", 3.0)], scores)
    assert lines[1].startswith("warning: an answer that repeats a sentence beats most") and "min_new" not in lines[1]
    _, lines = _described([("empty", 3.0), ("cut", 3.0), ("repeated", 3.0)], scores)
    assert "an empty answer, an answer cut to a third and an answer that repeats a sentence beat most" in lines[1]


def test_an_error_of_a_stand_in_is_said_and_the_others_are_measured(tmp_path):
    metrics, lines = first_answers().probe(reward(tmp_path, refuses=""), Runtime("cpu"))
    assert set(metrics) == {f"reward/probe_{name}{end}" for name in ("cut", "repeated") for end in ("", "_above")}
    assert lines[-1].startswith("warning: 6 of 14 stand-ins for answers were not scored: reward.function: ")
    assert "raised ValueError: no text" in lines[-1]
    # what leaves an answer out is no number, and no fault of the rest
    asked = first_answers(["Why? Why not? So it is."] * 2, [1.0, 2.0])
    metrics, lines = asked.probe(reward(tmp_path), Runtime("cpu"))
    assert set(metrics) == {"reward/probe_empty", "reward/probe_empty_above"}
    assert lines[-1].startswith("warning: 4 of 6 stand-ins")


def test_sixteen_prompts_at_most_and_their_own_columns(tmp_path):
    scorer = reward(tmp_path)
    first_answers(["a b c. d e f"] * 40, [1.0] * 40).probe(scorer, Runtime("cpu"))
    calls = scorer._function.call.__globals__["CALLS"]
    assert [truth for _, truth in calls] == [*range(16)] * 3


def test_random_numbers_and_counts_are_as_without_it(tmp_path):
    scorer = reward(tmp_path)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    first_answers().probe(scorer, Runtime("cpu"))
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def looked(tmp_path, ended, lengths, **changes):
    config = PpoConfig()
    config.rollout.max_new_tokens = 4
    for key, value in changes.items():
        section, _, name = key.partition("__")
        setattr(getattr(config, section), name, value)
    rollout = Rollout([[1]] * len(ended), [[7] * length for length in lengths], ended)
    said = []
    metrics = first_answers().look(reward(tmp_path), config, rollout, Runtime("cpu"), said.append)
    return metrics, said


def test_the_share_at_the_limit_is_told_with_what_to_do(tmp_path):
    # at the limit without an end: two; one more met a stop string
    case = ([True, False, False, False, True], [4, 4, 4, 2, 3])
    metrics, said = looked(tmp_path, *case, reward__probe=False)
    assert metrics == {} and said == [
        "warning: 40 % of the first answers ran into rollout.max_new_tokens=4: raise it, or lower "
        "algorithm.missing_eos_penalty=1, which pays for ending early"
    ]
    _, said = looked(tmp_path, *case, reward__probe=False, algorithm__missing_eos_penalty=0.0)
    assert said == ["warning: 40 % of the first answers ran into rollout.max_new_tokens=4: raise it"]
    metrics, said = looked(tmp_path, [True] * 4 + [False], [4] * 5)
    assert len(said) == 1 and said[0].startswith("reward: an empty answer") and "reward/probe_empty" in metrics


def test_shares_of_empty_answers_and_of_those_at_the_limit():
    rollout = Rollout([[1]] * 4, [[5, 2], [7, 7, 7], [7, 7, 2], [2]], [True, False, True, True])
    config = PpoConfig()
    config.rollout.max_new_tokens = 3
    talks = [with_answer([], text) for text in ("", "a", " \n", "b")]
    measured = answer_metrics(talks, rollout, config.rollout, Runtime("cpu"))
    assert measured == {"response/empty_fraction": 0.5, "response/limit_fraction": 0.25}
