"""A weighted sum of scores: what it adds up, whom it asks, and how it names the term that something is wrong with."""

import math
from dataclasses import asdict

import pytest
from reward_server import Scripted

from starling_train.config.fields import UserError, changed
from starling_train.config.ppo import PpoConfig
from starling_train.config.sections import RewardConfig, TermConfig, about_term, check_reward
from starling_train.data.conversations import with_answer
from starling_train.models.reward import load_reward_model
from starling_train.rewards import kinds, server_facts, terms
from starling_train.run.runtime import Runtime

FUNCTIONS = """
def length(conversations, truth, *, per=1.0):
    return [per * len(conversation[-1]["content"]) + value for conversation, value in zip(conversations, truth)]

def polite(conversations, tone="", *, seen=[]):
    seen.append(list(tone))
    texts = [conversation[-1]["content"] for conversation in conversations]
    return [None if text == "odd" else float("please" in text) for text in texts]

def broken(conversations, missing):
    return conversations
"""
ASKED = [{"role": "user", "content": "What?"}]
ANSWERS = ["four", "please", "odd"]
COLUMNS = [{"truth": 1, "tone": "a"}, {"truth": 2, "tone": "b"}, {"truth": 3}]


@pytest.fixture
def rewards(tmp_path):
    """A function that makes a reward of terms, each by a function of FUNCTIONS unless it names another kind."""
    (tmp_path / "mine.py").write_text(FUNCTIONS)

    def make(**settings) -> RewardConfig:
        named = {}
        for name, values in settings.items():
            values = {"kind": "function"} | values
            if "function" in values:
                values["function"] = f"{tmp_path / 'mine.py'}:{values['function']}"
            named[name] = TermConfig(**values)
        return RewardConfig(kind="terms", path="", terms=named)

    return make


LENGTH = {"function": "length", "arguments": {"per": 2.0}, "weight": 0.5}
POLITE = {"function": "polite", "weight": -3.0}


def conversations(*answers: str) -> list[list[dict]]:
    return [with_answer(ASKED, answer) for answer in answers]


def refusal(attempt, *given) -> str:
    with pytest.raises(UserError) as told:
        attempt(*given)
    assert "\n" not in str(told.value)
    return str(told.value)


def test_the_sum_by_hand(rewards):
    scorer = kinds.load(rewards(long=LENGTH, polite=POLITE), Runtime("cpu"))
    scores, of_terms = terms.scored(scorer, conversations(*ANSWERS), COLUMNS)
    assert of_terms["long"] == [2 * 4 + 1, 2 * 6 + 2, 2 * 3 + 3]
    assert of_terms["polite"][:2] == [0.0, 1.0] and math.isnan(of_terms["polite"][2])
    assert scores[:2] == [0.5 * 9, 0.5 * 14 - 3.0] and math.isnan(scores[2])
    assert str(scorer.score(conversations(*ANSWERS), COLUMNS)) == str(scores)
    alone = terms.scored(terms.parts(scorer)["long"], conversations("four"), COLUMNS[:1])
    assert alone == ([9.0], {})  # what is no sum has no terms


def test_the_sum_does_not_depend_on_the_order_of_the_terms(rewards):
    asked, values = conversations("x" * 7), [{"truth": 0.1}]
    named = {"a": LENGTH | {"weight": 0.1}, "b": LENGTH | {"weight": 0.7}, "c": LENGTH | {"weight": -0.3}}
    orders = [named, dict(reversed(named.items())), {"b": named["b"], "c": named["c"], "a": named["a"]}]
    sums = {kinds.load(rewards(**order), Runtime("cpu")).score(asked, values)[0] for order in orders}
    assert len(sums) == 1


def test_a_reward_model_and_a_function(rewards, small_models):
    path = str(small_models / "reward")
    model = {"kind": "starling_7b", "path": path, "dtype": "float32", "max_length": 16, "weight": 2.0}
    scorer = kinds.load(rewards(model=model, long=LENGTH), Runtime("cpu"))
    alone = load_reward_model("starling_7b", path, dtype="float32", max_length=16)
    asked, columns = conversations("four", "word " * 40), COLUMNS[:2]
    own = alone.score(asked)
    assert scorer.score(asked, columns) == [2.0 * own[0] + 0.5 * 9, 2.0 * own[1] + 0.5 * (2 * 200 + 2)]
    assert (scorer.truncated, scorer.shortened) == (alone.truncated, alone.shortened) == (1, 2)
    assert terms.parts(scorer)["model"].budget.key == "reward.terms.model.tokens_per_batch"
    away = kinds.load(rewards(model=model | {"offload": True}, long=LENGTH), Runtime("cpu"))
    assert away.score(asked, columns) == scorer.score(asked, columns)


def test_an_answer_that_two_models_cut_counts_once(rewards, small_models):
    model = {"kind": "starling_7b", "path": str(small_models / "reward"), "dtype": "float32"}
    scorer = kinds.load(rewards(a=model | {"max_length": 16}, b=model | {"max_length": 24}), Runtime("cpu"))
    scorer.score(conversations("four", "word " * 40))
    scorer.score(conversations("word " * 40))
    assert scorer.truncated == 2


def test_empty_answers_get_what_a_term_states(rewards):
    scorer = kinds.load(rewards(long=LENGTH | {"empty_response": -4.0}, polite=POLITE), Runtime("cpu"))
    assert scorer.score(conversations(" "), COLUMNS[:1]) == [0.5 * -4.0]


def test_what_a_term_cannot_score_is_told_by_its_name(rewards):
    scorer = kinds.load(rewards(long=LENGTH, polite=POLITE), Runtime("cpu"))
    found, of_terms = terms.scored_each(scorer, conversations(*ANSWERS), COLUMNS)
    assert found[:2] == [4.5, 4.0] and of_terms["long"] == [9.0, 14.0, 9.0]
    assert str(found[2]).startswith("reward.terms.polite.function: ") and "gave no score" in str(found[2])


def test_every_term_is_asked_which_prompts_it_takes(rewards, small_models):
    path = str(small_models / "reward")
    model = {"kind": "starling_7b", "path": path, "dtype": "float32", "max_length": 8}
    config = rewards(model=model, polite=POLITE)
    odd = [{"role": "assistant", "content": "I begin."}]
    admission = kinds.admit(config, [ASKED, odd], [{"tone": "x"}, {}], kinds.everyone)
    assert list(admission.refused) == [1] and admission.refused[1].startswith("reward.terms.model: ")
    cut, lacking = admission.lines
    assert "longer than reward.terms.model.max_length=8" in cut
    assert lacking == "1 of 2 prompts have no `tone`: reward.terms.polite.function gets None for them"
    assert kinds.admit(config, [ASKED, odd], [{}, {}], kinds.without_weights).refused == {}
    assert refusal(kinds.admit, config, [odd], [{}], kinds.everyone).startswith("reward.terms.model.path: ")
    assert kinds.of(config).columns(config) == ("tone", "seen")


@pytest.mark.parametrize(
    ("settings", "begins"),
    [
        ({"x": LENGTH | {"arguments": {"pre": 1}}}, "reward.terms.x.arguments.pre: "),
        ({"x": {"function": "nothing"}}, "reward.terms.x.function: "),
        ({"polite": POLITE, "m": {"kind": "starling_7b", "path": "/nowhere"}}, "reward.terms.m.path: "),
    ],
)
def test_what_is_wrong_with_a_term_is_told_by_its_key(rewards, settings, begins):
    config = rewards(**settings)
    assert refusal(kinds.of(config).check, config).startswith(begins)


def test_errors_while_it_scores_name_the_term(rewards):
    broken = kinds.load(rewards(polite=POLITE, bad={"function": "broken"}), Runtime("cpu"))
    told = refusal(broken.score, conversations("four"))
    assert told.startswith("reward.terms.bad.function: ") and "+reward.terms.bad.arguments.missing=" in told


def test_messages_about_the_section_become_messages_about_the_term():
    told = "reward.path: use reward=function or reward.kind=server; reward.py, reward/unscored, reward.terms.y.path"
    assert about_term("reward.terms.x", told) == (
        "reward.terms.x.path: use reward.terms.x.kind=function or reward.terms.x.kind=server; reward.py, "
        "reward/unscored, reward.terms.y.path"
    )


def test_a_server_among_the_terms(rewards, capsys):
    with Scripted((503, {})) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        config = rewards(served={"kind": "server", "url": url, "patience_s": 5.0}, long=LENGTH)
        kinds.of(config).check(config)
        scorer = kinds.load(config, Runtime("cpu"))
        assert scorer.score(conversations("four"), COLUMNS) == [4.0 + 0.5 * 9]
        assert any(key.startswith("served.") for key in scorer.facts)
        kept, line = server_facts.succeeding(None, scorer.facts)
        assert kept == scorer.facts and line is None
        probe = f"served.{server_facts.PROBE}"
        other = scorer.facts | {probe: scorer.facts[probe] + 9.0}
        assert "served score of a made-up conversation" in server_facts.succeeding(kept, other)[1]
    assert "trying again for up to 5 s" in capsys.readouterr().err
    config.terms["served"].patience_s = 0.0
    told = refusal(kinds.of(config).check, config)
    assert told.startswith(f"reward.terms.served.url: {url}/score gave no scores") and "terms.served.patience_s" in told


def test_the_identity_is_of_all_that_a_sum_depends_on(rewards, small_models):
    model = {"kind": "starling_7b", "path": str(small_models / "reward"), "max_length": 64}
    config = rewards(model=model, long=LENGTH)
    who = kinds.of(config).identity(config, lambda source: {"path": str(source.directory)})["terms"]
    assert who["model"]["max_length"] == 64 and who["model"]["path"].endswith("reward")
    assert who["long"]["weight"] == 0.5 and who["long"]["arguments"] == {"per": 2.0} and who["long"]["sha256"]
    assert "weight" in who["model"] and who["long"]["kind"] == "function"


def test_how_it_is_described(rewards):
    config = rewards(long=LENGTH | {"scale": "running"}, polite=POLITE)
    where = config.terms["long"].function.removesuffix("length")
    assert kinds.described(config) == f"0.5 x long: {where}length (function) + -3 x polite: {where}polite (function)"
    assert terms.described_each(config) == [
        f"  long    0.5 x {where}length (function), by its own mean and deviation so far",
        f"  polite  -3 x {where}polite (function)",
    ]
    assert terms.described_each(RewardConfig()) == []


def test_a_run_with_another_term_has_other_settings(rewards):
    def settings(**named) -> PpoConfig:
        return PpoConfig(reward=rewards(**named))

    written = asdict(settings(long=LENGTH, polite=POLITE))
    assert changed(settings(polite=POLITE, long=LENGTH), written) == []
    assert changed(settings(long=LENGTH | {"weight": 1.0}, polite=POLITE), written) == ["reward.terms.long.weight"]
    assert changed(settings(long=LENGTH | {"offload": True}, polite=POLITE), written) == []
    assert changed(settings(long=LENGTH), written) == ["reward.terms"]
    assert "reward.terms" in changed(settings(long=LENGTH, polite=POLITE, more=POLITE), written)
    assert changed(PpoConfig(), {"reward": {"kind": "starling_7b"}}) == []  # a run from before there were terms


@pytest.mark.parametrize("name", ["a-b", "a/b", "1st", "", "mean", "std", "\u00e9"])
def test_names_that_no_metric_can_have(name):
    config = RewardConfig(kind="terms", terms={name: TermConfig(kind="function", function="a:b")})
    assert refusal(check_reward, config).startswith(f"reward.terms: '{name}' cannot be the name of a term; use ")
