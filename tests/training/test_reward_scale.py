"""From scores to rewards: the running moments of a reward and of its terms, against numbers by hand."""

import math

import pytest
import torch

from starling_train.config.fields import UserError
from starling_train.config.sections import RewardConfig, TermConfig
from starling_train.rewards import kinds
from starling_train.run import skipped
from starling_train.run.runtime import Runtime
from starling_train.training.ppo import experience
from starling_train.training.ppo.experience import RewardScale, Scores, TermScores
from starling_train.training.ppo.metrics import term_metrics

NAN = math.nan


def scores_of(**of_terms: list[float]) -> Scores:
    made = {name: torch.tensor(values, dtype=torch.float64) for name, values in of_terms.items()}
    own = torch.stack(list(made.values())).sum(0).float()
    of_all = own[own.isfinite()].tolist()
    return Scores(own, of_all, 0, 0, {name: TermScores(values, values) for name, values in made.items()})


def scale_of(config: RewardConfig) -> tuple[RewardScale, dict]:
    kept: dict = {}

    def remember(name, moments):
        kept[name] = moments
        return moments

    return RewardScale(config, remember), kept


def summed(scale: str = "none", **named) -> RewardConfig:
    terms = {name: TermConfig(kind="function", function="a:b", **values) for name, values in named.items()}
    return RewardConfig(kind="terms", terms=terms, scale=scale)


def test_each_term_is_scaled_by_itself():
    # long: mean 30, squared distances 400 + 0 + 400, so deviation 20; true: as it is
    scale, kept = scale_of(summed(long={"scale": "running", "weight": 0.5}, true={"weight": 2.0}))
    scores = scores_of(long=[10.0, 30.0, 50.0], true=[1.0, 0.0, 1.0])
    scale.update(scores)
    assert scale.rewards(scores).tolist() == [0.5 * -1 + 2, 0.0, 0.5 * 1 + 2]
    assert (kept["scores long"].mean, kept["scores long"].std) == (30.0, 20.0)
    assert (kept["scores"].mean, kept["scores"].count) == (pytest.approx(4 / 3), 3)  # of 1.5, 0 and 2.5


def test_the_sum_is_scaled_on_top():
    # the terms add up to -1, 0 and 1 and more: 2 x (-1, 0, 1); their mean 0, deviation 2
    scale, _ = scale_of(summed("running", long={"scale": "running", "weight": 2.0}))
    scores = scores_of(long=[10.0, 30.0, 50.0])
    scale.update(scores)
    assert scale.rewards(scores).tolist() == [-1.0, 0.0, 1.0]


def test_a_term_is_clipped_by_its_own_limit():
    scale, _ = scale_of(summed(long={"scale": "running", "clip": 0.5}))
    scores = scores_of(long=[10.0, 30.0, 50.0])
    scale.update(scores)
    assert scale.rewards(scores).tolist() == [-0.5, 0.0, 0.5]


def test_what_one_term_does_not_score_has_no_reward_and_does_not_spoil_the_others():
    scale, kept = scale_of(summed("running", long={"scale": "running"}, true={}))
    scores = scores_of(long=[10.0, 30.0, 50.0, 90.0], true=[0.0, 0.0, 0.0, NAN])
    scale.update(scores)
    assert kept["scores long"].mean == 45.0 and kept["scores"].count == 3
    rewards = scale.rewards(scores)
    assert rewards.isnan().tolist() == [False, False, False, True]
    metrics = term_metrics(scores)
    assert metrics["reward/terms/long_mean"] == 45.0 and metrics["reward/terms/true_unscored"] == 1
    assert metrics["reward/terms/long_std"] == pytest.approx(math.sqrt((35**2 + 15**2 + 5**2 + 45**2) / 4))
    conversation = [{"role": "assistant", "content": "x"}]
    own = {name: term.own for name, term in scores.terms.items()}
    rows = skipped.unusable(1, scores.own, torch.ones(4, dtype=torch.bool), [conversation] * 4, own)
    assert rows == [{"step": 1, "reason": "score", "conversation": conversation, "terms": ["true"]}]


def test_moments_go_on_in_a_resumed_run_to_the_last_bit():
    config = summed("running", long={"scale": "running", "weight": 0.3}, true={"scale": "running"})
    first, second = (
        scores_of(long=[0.1 * i + base for i in range(8)], true=[0.7 * (i % 3) for i in range(8)]) for base in (3, 4)
    )
    straight, kept = scale_of(config)
    straight.update(first)
    states = {name: moments.state_dict() for name, moments in kept.items()}
    straight.update(second)
    again, restored = scale_of(config)
    for name, moments in restored.items():
        moments.load_state_dict(states[name])
    again.update(second)
    assert again.rewards(second).equal(straight.rewards(second))


def test_a_reward_without_terms_is_scaled_as_ever():
    scale, kept = scale_of(RewardConfig())
    scores = Scores(torch.tensor([10.0, 30.0, 50.0]), [10.0, 30.0, 50.0], 0, 0, {})
    scale.update(scores)
    assert scale.rewards(scores).tolist() == [-1.0, 0.0, 1.0] and list(kept) == ["scores"]


def test_a_step_without_any_score_names_the_terms_that_lack_it(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def bad(c):\n    return [None] * len(c)\n\ndef good(c):\n    return [1] * len(c)\n"
    )
    config = summed(good={}, bad={})
    for name, term in config.terms.items():
        term.function = f"{tmp_path}/mine.py:{name}"
    asked = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]] * 2
    with pytest.raises(UserError, match=r"none of 2 scores is a finite number \(reward.terms.bad lacks 2\); look"):
        experience.score(kinds.load(config, Runtime("cpu")), asked, Runtime("cpu"))
