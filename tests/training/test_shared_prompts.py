"""A prompt that several responses share is computed once, and everything is as if each had its own."""

from dataclasses import replace

import pytest
import torch
from minibatch import add_gradients
from test_update import actors, gradients, settings

from starling_train.rollout.hidden_states import Entered
from starling_train.rollout.responses import Rollout
from starling_train.training.ppo.experience import make_experience

SCORES = torch.tensor([1.0, -0.5, 0.3, 2.0, -1.0, 0.2])
KEPT = ("logprobs", "reference", "values", "advantages", "returns")


def rollout(group: int = 3) -> Rollout:
    """Two prompts with three responses each, of 1 to 9 tokens."""
    random = torch.Generator().manual_seed(3)
    draw = [torch.randint(97, (size,), generator=random).tolist() for size in (7, 3, 6, 1, 9, 2, 4, 5)]
    prompts, responses = draw[:2], draw[2:]
    return Rollout([prompt for prompt in prompts for _ in range(group)], responses, [True] * 6)


@pytest.mark.parametrize("critic", ["twin", "head", "none"])
@pytest.mark.parametrize("budget", [10_000, 20])
@pytest.mark.parametrize("keeps", [False, True])
def test_experience_and_gradients_are_those_of_prompts_of_their_own(tiny_mistral, monkeypatch, critic, budget, keeps):
    name = "rloo" if critic == "none" else "ppo"
    config = settings(name=name, critic=critic, tokens_per_microbatch=budget, responses_per_prompt=3)
    model = actors(tiny_mistral, critic) if critic != "none" else without_critic(tiny_mistral)
    assert model.shares_prompts and model.shares_states
    found = []
    for shares in (True, False):
        monkeypatch.setattr(type(model), "shares_prompts", shares)
        drawn = rollout()
        if keeps:
            drawn.entering = entering(model, drawn)
        experience = make_experience(model, drawn, SCORES, config, kl_coefficient=0.1)
        assert experience.batches.group == (3 if shares else 1)
        model.zero_grad()
        add_gradients(model, experience, [3, 0, 4, 1], config)  # not all of a group, in any order
        found.append((experience, gradients(model)))
    for kept in KEPT:
        torch.testing.assert_close(getattr(found[0][0], kept), getattr(found[1][0], kept), atol=1e-6, rtol=1e-5)
    for parameter, gradient in found[1][1].items():
        torch.testing.assert_close(found[0][1][parameter], gradient, atol=1e-6, rtol=1e-4)


def without_critic(tiny_mistral):
    made = actors(tiny_mistral, "twin")
    made.value_head = made.critic = None
    made.rebuild_views()
    return made


def entering(model, drawn: Rollout) -> list[Entered]:
    """What a rollout records: the states of each sequence by themselves, of the prompt and of the rest."""
    whole = [Rollout([p], [r], [True]) for p, r in zip(drawn.prompts, drawn.responses, strict=True)]
    states = [model.shared_states(batch_of(one)) for one in whole]
    pairs = zip(states, drawn.prompts, strict=True)
    return [Entered(state[: len(prompt)], state[len(prompt) :]) for state, prompt in pairs]


def batch_of(one: Rollout):
    from starling_train.training.ppo.batches import Batches

    return Batches(one, torch.device("cpu")).make([0])


def test_the_first_ratio_is_one_whichever_of_a_group_are_beside_it(tiny_mistral):
    model, config = actors(tiny_mistral), settings(responses_per_prompt=3)
    experience = make_experience(model, rollout(), SCORES, config, kl_coefficient=0.1)
    for rows in ([0], [5, 1], [3, 4, 5, 0]):
        assert add_gradients(model, experience, rows, config)["first_ratio"] == 0


def test_a_prompt_goes_through_the_layers_once(tiny_mistral):
    model, config = actors(tiny_mistral), settings(responses_per_prompt=3, tokens_per_microbatch=10_000)
    seen = []
    model.policy.model.layers[2].mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    layer = model._trunks.policy._above[0].layer
    layer.register_forward_pre_hook(
        lambda _, inputs, named: seen.append((inputs or [named["hidden_states"]])[0].shape[1]), with_kwargs=True
    )
    experience = make_experience(model, rollout(), SCORES, config, kl_coefficient=0.1)
    tokens = 7 + 3 + 6 + 1 + 9 + 2 + 4 + 5 - 6
    assert tokens in seen and sum(experience.rollout.lengths()) not in seen


def test_states_are_kept_once_for_a_prompt(tiny_mistral):
    model, config = actors(tiny_mistral), settings(responses_per_prompt=3)
    kept = make_experience(model, rollout(), SCORES, config, kl_coefficient=0.1).shared_states
    assert kept.is_full and len(kept._states) == 7 + 3 + 5 + 0 + 8 + 1 + 3 + 4
    apart = make_experience(model, rollout(), SCORES, replace(config, responses_per_prompt=1), kl_coefficient=0.1)
    assert len(apart.shared_states._states) == sum(rollout().lengths())
