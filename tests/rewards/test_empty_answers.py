"""A stated score for answers without text, whatever the reward would give them."""

import pytest

from starling_train.config.fields import UserError
from starling_train.config.sections import RewardConfig
from starling_train.data.conversations import with_answer
from starling_train.rewards import empty_answers, kinds
from starling_train.run.runtime import Runtime

FUNCTION = """
def score(conversations, truth, *, limit=None):
    print("called with", len(conversations))
    texts = [conversation[-1]["content"] for conversation in conversations]
    if limit is not None and min(map(len, texts)) < limit:
        raise ValueError("too short")
    return [None if text == "odd" else len(text) + 10 * value for text, value in zip(texts, truth)]
"""
ASKED = [{"role": "user", "content": "What?"}]
ANSWERS = ["", "four", " \n\t", "odd", "\u00a0", "seven77"]
TRUTHS = [{"truth": value} for value in (1, 2, 3, 4, 5, 6)]


def scorer(tmp_path, **settings):
    (tmp_path / "reward.py").write_text(FUNCTION)
    config = RewardConfig(kind="function", function=f"{tmp_path / 'reward.py'}:score", **settings)
    return kinds.load(config, Runtime("cpu"))


def conversations(*answers):
    return [with_answer(ASKED, answer) for answer in answers]


def test_empty_answers_get_what_is_stated_and_the_others_their_own(tmp_path, capsys):
    scores = scorer(tmp_path, empty_response=-3.5).score(conversations(*ANSWERS), TRUTHS)
    assert str(scores) == "[-3.5, 24.0, -3.5, nan, -3.5, 67.0]"
    assert capsys.readouterr().out == "called with 3\n"


def test_null_asks_the_reward(tmp_path):
    assert str(scorer(tmp_path).score(conversations(*ANSWERS), TRUTHS)) == "[10.0, 24.0, 33.0, nan, 51.0, 67.0]"


def test_a_reward_is_not_asked_about_nothing(tmp_path, capsys):
    stated = scorer(tmp_path, empty_response=0.0)
    assert stated.score(conversations("", " "), TRUTHS[:2]) == [0.0, 0.0] and stated.score([]) == []
    assert stated.score_each(conversations(""), TRUTHS[:1]) == [0.0]
    assert capsys.readouterr().out == ""


def test_each_has_its_own_error(tmp_path):
    stated = scorer(tmp_path, empty_response=0.0)
    first, second, third = stated.score_each(conversations("odd", "", "abc"), TRUTHS[:3])
    assert isinstance(first, UserError) and (second, third) == (0.0, 33.0)


def test_it_is_the_reward_in_all_else(tmp_path):
    plain, stated = scorer(tmp_path), scorer(tmp_path, empty_response=0.0)
    assert stated.mark.state_dict() == plain.mark.state_dict() and stated.facts == plain.facts
    assert (stated.truncated, stated.shortened, stated.budget, stated.may_leave_out) == (0, 0, None, True)


@pytest.mark.parametrize("text, empty", [("", True), (" \r\n\u2003", True), (".", False), ("\u200b", False)])
def test_what_is_empty(text, empty):
    assert empty_answers.is_empty(with_answer(ASKED, text)) == empty
