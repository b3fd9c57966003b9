"""One PPO step against the same step written out plainly, and what must not change it."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from minibatch import add_gradients, optimizer_of
from transformers import MistralConfig, MistralForCausalLM

from starling_train.config.sections import AlgorithmConfig, KLConfig
from starling_train.core.advantages import gae, token_rewards
from starling_train.core.excluded import ExcludedIds
from starling_train.core.masked import whiten
from starling_train.core.ppo import ppo_policy_loss, value_loss
from starling_train.models.actors import Actors
from starling_train.models.micro_batch import micro_batch
from starling_train.rollout.hidden_states import Entered
from starling_train.rollout.responses import Rollout
from starling_train.run.runtime import Runtime
from starling_train.training.ppo import experience as experience_module
from starling_train.training.ppo.experience import Scores, make_experience, sequence_rewards
from starling_train.training.ppo.metrics import step_metrics
from starling_train.training.ppo.update import update

SCORES = torch.tensor([1.0, -0.5, 0.3, 2.0, -1.0])


def settings(**changes) -> AlgorithmConfig:
    return AlgorithmConfig(**({"epochs": 2, "minibatches": 2, "tokens_per_microbatch": 40} | changes))


def rollout() -> Rollout:
    random = torch.Generator().manual_seed(3)
    sizes = [(4, 6), (7, 2), (3, 9), (5, 1), (2, 4)]
    draw = [[torch.randint(97, (n,), generator=random).tolist() for n in pair] for pair in sizes]
    return Rollout([p for p, _ in draw], [r for _, r in draw], [True, True, False, True, False])


def actors(tiny_mistral, critic="twin") -> Actors:
    policy = tiny_mistral()
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_("layers.1.mlp.down_proj" in name or "layers.2.self_attn.q_proj" in name)
    torch.manual_seed(5)
    made = Actors(policy, critic, lowest=1)
    torch.nn.init.normal_(made.value_head.out.weight, std=0.1)
    for parameter in made.policy_parameters().values():  # away from the reference, or every KL is 0
        parameter.data += 0.05 * torch.randn_like(parameter)
    return made.train()


def gradients(model: Actors) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.trainable().items()}


def test_scoring_equals_the_plain_way(tiny_mistral):
    model, config = actors(tiny_mistral), settings()
    found = make_experience(model, rollout(), SCORES, config, kl_coefficient=0.3)
    for i, (prompt, response) in enumerate(zip(rollout().prompts, rollout().responses, strict=True)):
        ids, n = torch.tensor([prompt + response]), len(response)
        for network, expected in ((model.policy, found.logprobs), (model.reference, found.reference)):
            logits = network(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            plain = logits.gather(-1, torch.tensor(response)[:, None])[:, 0]
            torch.testing.assert_close(expected[i, :n], plain.detach(), atol=1e-5, rtol=1e-5)
            assert expected[i, n:].abs().sum() == 0
    kl = found.logprobs - found.reference
    assert kl.abs().max() > 1e-3
    rewards = token_rewards(SCORES, kl, found.is_response, 0.3)
    advantages, returns = gae(rewards, found.values, found.is_response, 1.0, 0.95)
    torch.testing.assert_close(found.returns, returns)
    torch.testing.assert_close(found.advantages, whiten(advantages, found.is_response))
    torch.testing.assert_close(found.total, rewards.sum(-1))


@pytest.mark.parametrize("critic", ["head", "twin", "separate"])
@pytest.mark.parametrize("name", ["ppo", "apa"])
def test_gradients_do_not_depend_on_micro_batches_or_order(tiny_mistral, critic, name):
    model = actors(tiny_mistral, critic)
    found = {}
    for budget, rows in ((10_000, [0, 1, 2, 3, 4]), (12, [0, 1, 2, 3, 4]), (25, [3, 1, 4, 0, 2])):
        config = settings(name=name, tokens_per_microbatch=budget)
        experience = make_experience(model, rollout(), SCORES, config, kl_coefficient=0.1)
        model.zero_grad()
        sums = add_gradients(model, experience, rows, config)
        found[budget] = (gradients(model), sums)
    plain, plain_sums = found.pop(10_000)
    for grads, sums in found.values():
        for key in plain:
            torch.testing.assert_close(grads[key], plain[key], atol=1e-6, rtol=1e-4)
        for key in sums.keys() - {"first_ratio"}:
            assert sums[key] == pytest.approx(plain_sums[key], rel=1e-4, abs=1e-5)


def test_one_update_equals_a_padded_batch_written_out(tiny_mistral):
    model, config = actors(tiny_mistral), settings(value_clip=0.0)
    experience = make_experience(model, rollout(), SCORES, config, kl_coefficient=0.1)
    add_gradients(model, experience, [0, 1, 2, 3, 4], config)
    ours = gradients(model)

    plain = copy.deepcopy({n: p.detach() for n, p in model.trainable().items()})
    model.zero_grad()
    prompts, responses = rollout().prompts, rollout().responses
    width = max(len(r) for r in responses)
    logprobs, values = [], []
    for prompt, response in zip(prompts, responses, strict=True):
        ids = torch.tensor([prompt + response + [0] * (width - len(response))])
        positions = slice(len(prompt) - 1, len(prompt) - 1 + width)
        logits = model.policy(ids).logits[0, positions].log_softmax(-1)
        logprobs.append(logits.gather(-1, ids[0, len(prompt) :, None])[:, 0])
        values.append(model.value_head(model.critic(ids).last_hidden_state[0, positions]))
    count = experience.is_response.sum()
    loss = ppo_policy_loss(
        torch.stack(logprobs) - experience.logprobs, experience.advantages, experience.is_response, 0.2, count
    ).loss
    loss = (
        loss
        + value_loss(
            torch.stack(values), experience.values, experience.returns, experience.is_response, 0.0, count
        ).loss
    )
    loss.backward()
    assert plain.keys() == ours.keys()
    for name, parameter in model.trainable().items():
        torch.testing.assert_close(ours[name], parameter.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("budget", [10_000, 20])
@pytest.mark.parametrize("device_gb", [0.0, 8.0])
def test_states_kept_in_the_rollout_give_the_same_experience_and_gradients(tiny_mistral, budget, device_gb):
    model, config = actors(tiny_mistral), settings(tokens_per_microbatch=budget, prefix_device_gb=device_gb)
    found = []
    for keeps in (False, True):
        drawn = rollout()
        if keeps:
            alone = [micro_batch([p], [r], "cpu") for p, r in zip(drawn.prompts, drawn.responses, strict=True)]
            drawn.entering = [Entered.cut([model.shared_states(batch)], len(batch.ids)) for batch in alone]
        experience = make_experience(model, drawn, SCORES, config, kl_coefficient=0.1)
        model.zero_grad()
        add_gradients(model, experience, [3, 0, 4, 1], config)
        found.append((experience, gradients(model)))
    for name in ("logprobs", "reference", "values", "advantages", "returns"):
        torch.testing.assert_close(getattr(found[0][0], name), getattr(found[1][0], name), atol=1e-6, rtol=1e-5)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, atol=1e-6, rtol=1e-4)


def test_the_first_ratio_is_one(tiny_mistral):
    model = actors(tiny_mistral)
    stats = update_once(model, settings())
    assert stats["policy/ratio_first"] < 1e-5
    assert 0 <= stats["policy/clip_fraction"] <= 1
    assert stats["optim/skipped"] == 0


def test_at_rate_0_in_bfloat16_ratios_are_1_between_micro_batch_sizes():
    """Of sizes at which a CPU rounds products of other numbers of rows differently."""
    torch.manual_seed(0)
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    policy = MistralForCausalLM(MistralConfig(vocab_size=97, num_hidden_layers=3, **shape)).bfloat16()
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_("layers.1.mlp" in name or "lm_head" in name)
    model = Actors(policy, "twin", lowest=1).train()
    random = torch.Generator().manual_seed(3)
    draw = [
        [torch.randint(97, (n,), generator=random).tolist() for n in pair]
        for pair in [(20, 70), (9, 40), (50, 130)] * 2
    ]
    drawn = Rollout([p for p, _ in draw], [r for _, r in draw], [True] * 6)
    config = settings(tokens_per_microbatch=8192, epochs=1, clip=1e-6)
    experience = make_experience(model, drawn, torch.linspace(-1, 1, 6), config, kl_coefficient=0.1)
    optimizer, order = optimizer_of(model, learning_rate=0.0), torch.Generator().manual_seed(0)
    metrics = update(model, optimizer, experience, replace(config, tokens_per_microbatch=200), order).metrics
    assert metrics["policy/ratio_first"] == 0 and metrics["policy/clip_fraction"] == 0
    assert metrics["policy/approx_kl"] == 0 and metrics["optim/gradient_norm"] > 0


WAYS = [("cut", True), ("whole", True), ("padded", True), ("alone", False)]


@pytest.mark.parametrize("trunk, has_form", WAYS)
@pytest.mark.parametrize("name", ["ppo", "apa"])
def test_without_some_ids_every_way_gives_the_same_and_a_ratio_of_one(tiny_mistral, trunk, has_form, name):
    # what the rollout has of it is: no id of `always`, and no end of turn among a response's first two tokens
    found, drawn = [], rollout()
    taken = {token for response in drawn.responses for token in response}
    early = {token for response in drawn.responses for token in response[2:]}
    early -= {token for response in drawn.responses for token in response[:2]}
    ids = ExcludedIds(tuple(sorted(set(range(97)) - taken)[:30]), tuple(sorted(early)), 2)
    for kind, form in (("cut", True), (trunk, has_form)):
        model = actors(tiny_mistral, "head")
        model.excluded, model.ways = ids, replace(model.ways, trunk=kind, form=model.ways.form if form else None)
        model.rebuild_views()
        experience = make_experience(model, drawn, SCORES, settings(name=name), kl_coefficient=0.1)
        optimizer = optimizer_of(model, learning_rate=0.0)
        order = torch.Generator().manual_seed(0)
        metrics = update(model, optimizer, experience, settings(name=name), order).metrics
        assert metrics["policy/ratio_first"] < 1e-5 and metrics["policy/approx_kl"] == pytest.approx(0.0, abs=1e-6)
        found.append(experience)
    for one in ("logprobs", "reference", "returns"):
        torch.testing.assert_close(getattr(found[0], one), getattr(found[1], one), atol=1e-5, rtol=1e-5)
    model.excluded = ExcludedIds()
    plain = make_experience(model, drawn, SCORES, settings(name=name), kl_coefficient=0.1)
    more = (found[1].logprobs - plain.logprobs)[plain.is_response]
    assert (more > 0).all()  # what is left out is shared among the others


def test_the_kl_of_an_untrained_policy_is_zero_without_some_ids(tiny_mistral):
    policy = tiny_mistral()
    for key, parameter in policy.named_parameters():
        parameter.requires_grad_("layers.2" in key)
    model = Actors(policy, "twin", lowest=2, excluded=ExcludedIds((90, 91), (3, 96), 5)).train()
    experience = make_experience(model, rollout(), SCORES, settings(), kl_coefficient=0.1)
    assert experience.kl_per_sequence().abs().max() == 0


def update_once(model, config, learning_rate=2e-7, **options):
    optimizer = optimizer_of(model, learning_rate=learning_rate)
    experience = make_experience(model, rollout(), SCORES, config, kl_coefficient=0.1)
    return update(model, optimizer, experience, config, torch.Generator().manual_seed(0), **options).metrics


def test_only_what_was_selected_moves(tiny_mistral):
    model = actors(tiny_mistral)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    update_once(model, settings(), 1e-2)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(model.trainable())


def test_critic_warm_up_moves_only_the_critic(tiny_mistral):
    model = actors(tiny_mistral, "head")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    update_once(model, settings(), 1e-2, train_policy=False)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(model.critic_parameters())


def test_kl_stop_ends_the_epochs(tiny_mistral):
    model = actors(tiny_mistral)
    optimizer = optimizer_of(model, learning_rate=1e-2)
    calls = []
    step = optimizer.step
    optimizer.step = lambda is_finite: calls.append(1) or step(is_finite)
    config = settings(epochs=5, minibatches=1, kl=KLConfig(stop=1e-6))
    experience = make_experience(model, rollout(), SCORES, config, kl_coefficient=0.1)
    update(model, optimizer, experience, config, torch.Generator().manual_seed(0))
    assert len(calls) == 2  # the first epoch's KL is 0; the second's is not


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(tiny_mistral):
    model = actors(tiny_mistral)
    config = settings(epochs=1)
    optimizer = optimizer_of(model, learning_rate=1e-2)
    experience = make_experience(model, rollout(), SCORES, config, kl_coefficient=0.1)
    experience.returns[0, 0] = float("nan")
    before = {n: p.detach().clone() for n, p in model.trainable().items()}
    found = update(model, optimizer, experience, config, torch.Generator().manual_seed(0))
    assert found.metrics["optim/skipped"] == 1 and found.skipped == [[0]]
    assert optimizer.applied == 1
    assert all(p.isfinite().all() for p in model.trainable().values())
    assert any(not torch.equal(p, before[n]) for n, p in model.trainable().items())  # the other mini-batch counted


@pytest.fixture(params=["score", "reference", "values"])
def odd_number(request, monkeypatch):
    """Makes one number of the third sequence nan; gives the scores to begin with."""
    scores = SCORES.clone()
    if request.param == "score":
        scores[2] = float("nan")
        return scores
    plain, place = experience_module.forward_all, {"reference": 2, "values": 3}[request.param]

    def odd(actors, rollout, *rest):
        found = plain(actors, rollout, *rest)
        if len(rollout) == len(SCORES):
            found[place][2, 1] = float("nan")
        return found

    monkeypatch.setattr(experience_module, "forward_all", odd)
    return scores


def test_a_sequence_with_an_odd_number_is_as_if_it_were_not_there(tiny_mistral, odd_number):
    kept, trained = [0, 1, 3, 4], []
    for drawn, scores in ((rollout(), odd_number), (rollout().only(kept), SCORES[kept])):
        model = actors(tiny_mistral)
        optimizer = optimizer_of(model, learning_rate=1e-2)
        config = settings(minibatches=2)
        experience = make_experience(model, drawn, scores, config, kl_coefficient=0.1)
        found = update(model, optimizer, experience, config, torch.Generator().manual_seed(0))
        measured = step_metrics(experience, Scores(scores, [], 0, 0), 0.1, Runtime(device="cpu"))
        trained.append((model, experience, found.metrics, measured))
    (model, experience, metrics, measured), (plain, _, plain_metrics, plain_measured) = trained
    assert experience.fit.tolist() == [True, True, False, True, True]
    assert metrics == pytest.approx(plain_metrics, rel=1e-4, abs=1e-6) and metrics["optim/skipped"] == 0
    for key in ("kl/reference", "reward/total_mean"):
        assert measured[key] == pytest.approx(plain_measured[key], rel=1e-5)
    assert (measured["optim/left_out"], plain_measured["optim/left_out"]) == (1, 0)
    for (name, tensor), (_, expected) in zip(model.trainable().items(), plain.trainable().items(), strict=True):
        torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-5, msg=name)


def test_fewer_sequences_than_mini_batches(tiny_mistral):
    scores = torch.full_like(SCORES, torch.nan)
    scores[1] = 1.0
    model, config = actors(tiny_mistral), settings(epochs=2, minibatches=5, kl=KLConfig(stop=10.0))
    optimizer = optimizer_of(model, learning_rate=1e-2)
    experience = make_experience(model, rollout(), scores, config, kl_coefficient=0.1)
    found = update(model, optimizer, experience, config, torch.Generator().manual_seed(0))
    assert optimizer.applied == 2 and found.metrics["optim/skipped"] == 0
    assert all(math.isfinite(found.metrics[key]) for key in ("policy/loss", "value/loss", "policy/approx_kl"))


def test_without_any_finite_sequence_nothing_moves(tiny_mistral, monkeypatch):
    plain = experience_module.forward_all

    def odd(*given):
        found = plain(*given)
        found[1].fill_(torch.inf)
        return found

    monkeypatch.setattr(experience_module, "forward_all", odd)
    model = actors(tiny_mistral)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = optimizer_of(model, learning_rate=1e-2)
    experience = make_experience(model, rollout(), SCORES, settings(), kl_coefficient=0.1)
    found = update(model, optimizer, experience, settings(), torch.Generator().manual_seed(0))
    assert optimizer.applied == 0 and found.metrics["optim/skipped"] == 1
    assert math.isnan(found.metrics["policy/loss"]) and math.isnan(found.metrics["policy/ratio_first"])
    measured = step_metrics(experience, Scores(SCORES, [], 0, 0), 0.1, Runtime(device="cpu"))
    assert measured["optim/left_out"] == 5 and math.isnan(measured["kl/reference"])
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_pay_by_hand():
    config = settings(missing_eos_penalty=1.0, length_penalty=2.0)
    # lengths 6, 2, 9, 1, 4; the third and fifth did not end
    expected = torch.tensor([1 - 0.12, -0.5 - 0.04, 0.3 - 1 - 0.18, 2 - 0.02, -1 - 1 - 0.08])
    torch.testing.assert_close(sequence_rewards(SCORES, rollout(), config), expected)
