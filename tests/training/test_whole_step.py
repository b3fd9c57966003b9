"""One whole step against the plain way: `generate`, three full models, one padded batch, autograd throughout."""

import copy
from types import SimpleNamespace

import pytest
import torch
from minibatch import add_gradients

from starling_train.config.sections import AlgorithmConfig, RolloutConfig
from starling_train.core.advantages import gae, token_rewards
from starling_train.core.excluded import ExcludedIds
from starling_train.core.masked import whiten
from starling_train.core.ppo import ppo_policy_loss, value_loss
from starling_train.models.actors import Actors
from starling_train.rollout.generate import generate
from starling_train.training.ppo.experience import make_experience

END, LIMIT, KL = 5, 12, 0.3
PROMPTS = [[1, 20, 30, 7], [1, 9], [1, 50, 60, 70, 80, 90, 11], [1, 33, 44], [1, 8, 7, 6, 66]]
SCORES = torch.tensor([0.5, -1.0, 2.0, 0.1, -0.3])


# ids that no response has, and how many first tokens none of which ends a turn
EXCLUDED = {"all ids": ((), 0), "without some": ((10, 11, 95, 96), 0), "with a floor": ((10, 11), 4)}


def parts(tiny_mistral, critic, excluded):
    """Policy away from its reference, a trained value head, and a full copy of each of the three."""
    reference = tiny_mistral()
    with torch.no_grad():
        reference.lm_head.weight *= 40
        reference.lm_head.weight[END] = reference.lm_head.weight[10:14].sum(0)
    for name, parameter in reference.named_parameters():
        parameter.requires_grad_("layers.1.mlp.down_proj" in name or "layers.2.self_attn" in name)
    actors = Actors(reference, critic, lowest=1, temperature=0.8, excluded=excluded).train()
    full_reference = copy.deepcopy(actors.reference)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in actors.policy_parameters().values():
            parameter += 0.005 * torch.randn_like(parameter)
        torch.nn.init.normal_(actors.value_head.out.weight, std=0.1)
    full_critic = copy.deepcopy(actors.policy.model if critic == "head" else actors.critic)
    return actors, copy.deepcopy(actors.policy), full_reference, full_critic, copy.deepcopy(actors.value_head)


def plain_responses(policy, excluded):
    """One prompt after the other through transformers' generate, greedily."""
    found = []
    for prompt in PROMPTS:
        ids = policy.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=LIMIT, eos_token_id=END, pad_token_id=0,
            min_new_tokens=excluded.floor or None, suppress_tokens=list(excluded.always) or None,
        )  # fmt: skip
        found.append(ids[0, len(prompt) :].tolist())
    return found


def padded(responses):
    """ids (5, longest) and the mask of response tokens, shifted to the positions that predict them."""
    longest = max(len(p) + len(r) for p, r in zip(PROMPTS, responses, strict=True))
    ids, predicts = torch.zeros(5, longest, dtype=torch.long), torch.zeros(5, longest - 1, dtype=torch.bool)
    for row, (prompt, response) in enumerate(zip(PROMPTS, responses, strict=True)):
        ids[row, : len(prompt) + len(response)] = torch.tensor(prompt + response)
        predicts[row, len(prompt) - 1 : len(prompt) + len(response) - 1] = True
    return ids, predicts


def logprobs_of(model, ids, excluded):
    logits = model(ids, use_cache=False).logits[:, :-1] / 0.8
    logits = logits.index_fill(-1, torch.tensor(excluded.always, dtype=torch.long), -torch.inf)
    for row, prompt in enumerate(PROMPTS):
        logits[row, len(prompt) - 1 : len(prompt) - 1 + excluded.floor, END] = -torch.inf
    return logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)


def aligned(values, predicts, width):
    """(5, width): the entries where `predicts` is True, from the left."""
    rows = [row[mask] for row, mask in zip(values, predicts, strict=True)]
    return torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in rows])


CASES = [(critic, budget, "all ids") for critic in ("head", "twin") for budget in (1000, 30)]
CASES += [("head", 30, "without some"), ("twin", 1000, "with a floor"), ("head", 30, "with a floor")]


@pytest.mark.parametrize("critic, budget, case", CASES)
def test_responses_losses_and_gradients_are_those_of_the_plain_way(tiny_mistral, critic, budget, case):
    without_token, floor = EXCLUDED[case]
    excluded = ExcludedIds(without_token, (END,), floor)
    actors, policy, reference, critic_model, value_head = parts(tiny_mistral, critic, excluded)
    config = AlgorithmConfig(critic=critic, tokens_per_microbatch=budget, minibatches=1, value_clip=0.1)

    limits = RolloutConfig(slots=3, max_new_tokens=LIMIT, min_new_tokens=floor, stop_strings=[])
    chat = SimpleNamespace(end_ids={END}, stop_strings=list, ids_without_token=lambda vocabulary: without_token)
    rollout = generate(actors.policy, chat, PROMPTS, limits, greedy=True, keep_layer=1)
    responses = rollout.responses
    assert responses == plain_responses(policy.eval(), excluded)
    assert len({len(response) for response in responses}) > 1  # padding and refilled slots play a part
    experience = make_experience(actors, rollout, SCORES, config, KL)
    sums = add_gradients(actors, experience, [0, 1, 2, 3, 4], config)

    ids, predicts = padded(responses)
    width = max(map(len, responses))
    hidden = (policy.model if critic == "head" else critic_model)(ids, use_cache=False).last_hidden_state[:, :-1]
    new, values = (aligned(x, predicts, width) for x in (logprobs_of(policy, ids, excluded), value_head(hidden)))
    mask, old, old_values = experience.is_response, new.detach(), values.detach()
    with torch.no_grad():
        against = aligned(logprobs_of(reference, ids, excluded), predicts, width)
    rewards = token_rewards(SCORES, old - against, mask, KL)
    advantages, returns = gae(rewards, old_values, mask, 1.0, 0.95)
    policy_part = ppo_policy_loss(new - old, whiten(advantages, mask), mask, 0.2, mask.sum()).loss
    value_part = value_loss(values, old_values, returns, mask, 0.1, mask.sum()).loss
    (policy_part + value_part).backward()

    assert sums["policy_loss"] == pytest.approx(float(policy_part.detach()), abs=1e-5)
    assert sums["value_loss"] == pytest.approx(float(value_part.detach()), abs=1e-5)
    expected = {f"policy.{n}": p.grad for n, p in policy.named_parameters() if p.requires_grad}
    expected |= {f"value_head.{n}": p.grad for n, p in value_head.named_parameters()}
    if critic == "twin":
        expected |= {f"critic.{n}": p.grad for n, p in critic_model.named_parameters() if p.requires_grad}
    assert expected.keys() == actors.trainable().keys()
    for name, parameter in actors.trainable().items():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-5, msg=lambda m, n=name: n + m)
