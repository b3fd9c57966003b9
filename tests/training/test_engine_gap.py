"""Responses that another engine drew: how far its log-probs are off, and what they weigh then."""

import math
from types import SimpleNamespace

import pytest
import torch

from starling_train.config.sections import AlgorithmConfig
from starling_train.models.actors import Actors
from starling_train.rollout.responses import Rollout
from starling_train.run.runtime import Runtime
from starling_train.training.ppo.experience import make_experience
from starling_train.training.ppo.metrics import engine_gap

PROMPTS, RESPONSES = [[5, 6, 7], [8, 9]], [[10, 11, 12, 13], [14, 15]]
CONFIG = AlgorithmConfig(critic="head")


@pytest.fixture
def model(tiny_mistral) -> Actors:
    policy = tiny_mistral(initializer_range=0.3)
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_("layers.2" in name)
    return Actors(policy, "head", lowest=2).eval()


def rollout(drawn: list[list[float]] | None) -> Rollout:
    return Rollout(PROMPTS, RESPONSES, [True, True], drawn_logprobs=drawn)


def learned(model: Actors, drawn: list[list[float]] | None, correction: float | None = None):
    scores = torch.tensor([1.0, -0.5])
    return make_experience(model, rollout(drawn), scores, CONFIG, 0.1).corrected(correction)


def test_the_gap_is_over_all_tokens(model):
    plain = learned(model, None)
    assert plain.drawn() is None and engine_gap(plain, Runtime()) == {}
    of = [plain.logprobs[row, : len(response)].tolist() for row, response in enumerate(RESPONSES)]
    same = engine_gap(learned(model, of), Runtime())
    assert same == {"policy/engine_gap_mean": 0.0, "policy/engine_gap_p99": 0.0}
    of[0][1] -= 0.3
    of[1][1] += 0.9
    found = engine_gap(learned(model, of), Runtime())
    assert found["policy/engine_gap_mean"] == pytest.approx(1.2 / 6, abs=1e-6)
    assert found["policy/engine_gap_p99"] == pytest.approx(0.9, abs=1e-6)


def test_ninety_nine_percent_of_tokens_are_within_the_99th_percentile():
    gaps = torch.arange(200.0)
    one = SimpleNamespace(drawn=lambda: torch.zeros(200), logprobs=gaps[torch.randperm(200)], is_response=gaps >= 0)
    assert engine_gap(one, Runtime())["policy/engine_gap_p99"] == 197.0  # the 198th of 200


def test_a_correction_weighs_advantages_and_nothing_else(model):
    plain = learned(model, None)
    of = [plain.logprobs[row, : len(response)].tolist() for row, response in enumerate(RESPONSES)]
    torch.testing.assert_close(learned(model, of, 2.0).advantages, plain.advantages)
    of[0][0] += math.log(4)  # a quarter as likely here as there
    of[0][2] -= math.log(50)
    of[1][0] -= math.log(1.5)
    corrected, uncorrected = learned(model, of, 2.0), learned(model, of)
    assert torch.equal(uncorrected.advantages, plain.advantages)
    weights = torch.tensor([[0.25, 1.0, 2.0, 1.0], [1.5, 1.0, 0.0, 0.0]])
    torch.testing.assert_close(corrected.advantages, plain.advantages * weights)
    for name in ("logprobs", "values", "returns", "reference", "total"):
        assert torch.equal(getattr(corrected, name), getattr(plain, name))


def test_a_token_that_the_other_engine_found_impossible_has_the_largest_weight(model):
    plain = learned(model, None)
    of = [plain.logprobs[row, : len(response)].tolist() for row, response in enumerate(RESPONSES)]
    of[0][3] = -math.inf
    found = learned(model, of, 3.0).advantages
    assert found.isfinite().all() and found[0, 3] == pytest.approx(3 * float(plain.advantages[0, 3]))
