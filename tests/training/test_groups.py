"""Updates without a critic: what changes nothing of rloo and grpo, and what they leave out."""

import math

import pytest
import torch
from minibatch import add_gradients, optimizer_of

from starling_train.config.sections import AlgorithmConfig, KLConfig
from starling_train.core.ppo import MEANS, RATIOS
from starling_train.models.actors import Actors
from starling_train.rollout.responses import Rollout
from starling_train.run.runtime import Runtime
from starling_train.training.ppo.experience import Scores, make_experience
from starling_train.training.ppo.metrics import skipped_rows, step_metrics
from starling_train.training.ppo.update import update

GROUP = 3
SCORES = torch.tensor([1.0, -0.5, 0.3, 2.0, -1.0, 0.4])
LOSS = KLConfig(estimator="k3", where="loss")


def settings(**changes) -> AlgorithmConfig:
    plain = {"name": "grpo", "responses_per_prompt": GROUP, "critic": "none", "tokens_per_microbatch": 40}
    return AlgorithmConfig(**(plain | {"epochs": 2, "minibatches": 2, "loss_length": 9, "clip": 0.01} | changes))


def rollout() -> Rollout:
    """Three responses to each of two prompts."""
    random = torch.Generator().manual_seed(3)
    prompts = [torch.randint(97, (length,), generator=random).tolist() for length in (7, 4)]
    responses = [torch.randint(97, (length,), generator=random).tolist() for length in (6, 2, 9, 1, 4, 9)]
    ended = [True, True, False, True, True, False]
    return Rollout([prompt for prompt in prompts for _ in range(GROUP)], responses, ended)


@pytest.fixture
def model(tiny_mistral) -> Actors:
    """Away from the reference, or every KL is 0."""
    policy = tiny_mistral(initializer_range=0.3)
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_("layers.1.mlp.down_proj" in name or "layers.2.self_attn.q_proj" in name)
    made = Actors(policy, "none", lowest=1)
    move(made, 5)
    return made.train()


def move(model: Actors, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    for parameter in model.policy_parameters().values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=random)


def gradients(model: Actors) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.trainable().items()}


@pytest.mark.parametrize("kl", [KLConfig(), LOSS], ids=["in the reward", "in the loss"])
@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("ratio", RATIOS)
def test_gradients_do_not_depend_on_micro_batches_or_order(model, ratio, mean, kl):
    config = settings(ratio=ratio, loss_mean=mean, kl=kl)
    experience = make_experience(model, rollout(), SCORES, config, kl_coefficient=0.3)
    move(model, 6)
    found = []
    for budget, rows in ((10_000, [0, 1, 2, 3, 4, 5]), (12, [0, 1, 2, 3, 4, 5]), (25, [3, 1, 4, 5, 0, 2])):
        model.zero_grad()
        sums = add_gradients(model, experience, rows, settings(ratio=ratio, loss_mean=mean, kl=kl,
                                                               tokens_per_microbatch=budget))  # fmt: skip
        found.append((gradients(model), sums))
    (plain, plain_sums), *others = found
    assert plain_sums["clipped"] > 0 and (plain_sums["kl_loss"] != 0) == (kl is LOSS)
    for grads, sums in others:
        for key in plain:
            torch.testing.assert_close(grads[key], plain[key], atol=1e-6, rtol=1e-4)
        for key in sums.keys() - {"first_ratio"}:
            assert sums[key] == pytest.approx(plain_sums[key], rel=1e-4, abs=1e-5)


def test_the_kl_in_the_loss_by_hand(model):
    """Its metric is what it adds to the loss: the coefficient times the mean over a response's tokens."""
    config = settings(loss_mean="sequences", kl=LOSS, epochs=1, minibatches=1)
    experience = make_experience(model, rollout(), SCORES, config, kl_coefficient=0.3)
    found = update(model, optimizer_of(model), experience, config, torch.Generator().manual_seed(0)).metrics
    k1 = experience.logprobs - experience.reference
    k3 = ((-k1).exp() - 1 + k1).where(experience.is_response, 0.0)
    expected = 0.3 * (k3.sum(-1) / experience.is_response.sum(-1)).mean()
    assert found["policy/kl_loss"] == pytest.approx(expected.item(), rel=1e-4) and expected > 1e-3
    # ratios are 1: what else is in the loss is minus the mean advantage, 0
    assert found["policy/loss"] == pytest.approx(expected.item(), rel=1e-3)
    torch.testing.assert_close(experience.total, SCORES)  # nothing of it in the reward
    assert found["policy/ratio_first"] < 1e-4 and not any(key.startswith("value/") for key in found)


def test_the_kl_in_the_reward_is_compared_within_the_group(model):
    config = settings(name="rloo", ratio="sequence", loss_mean="sequences", epochs=1, minibatches=1)
    experience = make_experience(model, rollout(), SCORES, config, kl_coefficient=0.3)
    total = SCORES - 0.3 * experience.kl_per_sequence()
    torch.testing.assert_close(experience.total, total)
    groups = total.view(-1, GROUP)
    expected = (groups - (groups.sum(1, keepdim=True) - groups) / 2).flatten()
    torch.testing.assert_close(experience.advantages, expected[:, None] * experience.is_response)
    found = update(model, optimizer_of(model), experience, config, torch.Generator().manual_seed(0)).metrics
    assert "policy/kl_loss" not in found and found["policy/loss"] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_a_response_without_a_score_is_as_if_its_group_were_smaller(model, name):
    """One of three: the step of the other two is that of groups of two, where the other group is without one, too."""
    found = []
    for drawn, scores, group in (
        (rollout(), SCORES.clone().index_fill_(0, torch.tensor([1, 5]), math.nan), 3),
        (rollout().only([0, 2, 3, 4]), SCORES[[0, 2, 3, 4]], 2),
    ):
        config = settings(name=name, minibatches=1, epochs=1, loss_mean="sequences", responses_per_prompt=group)
        model.zero_grad()
        experience = make_experience(model, drawn, scores, config, kl_coefficient=0.1)
        sums = add_gradients(model, experience, sorted(experience.row_at.values()), config)
        measured = step_metrics(experience, Scores(scores, [], 0, 0), 0.1, Runtime(device="cpu"))
        found.append((gradients(model), sums, measured))
    (grads, sums, measured), (plain, plain_sums, plain_measured) = found
    assert sums == pytest.approx(plain_sums, rel=1e-4, abs=1e-6)
    for key, gradient in plain.items():
        torch.testing.assert_close(grads[key], gradient, atol=1e-6, rtol=1e-4)
    for key in ("reward/score_mean", "reward/total_mean", "kl/reference"):
        assert measured[key] == pytest.approx(plain_measured[key], rel=1e-5)
    assert measured["optim/left_out"] == 2


def trained(model: Actors, config: AlgorithmConfig, scores: torch.Tensor, left_out: list[bool] | None):
    """One update; the metrics of step and update, what was skipped, the experience, and whether anything moved."""
    before = {name: parameter.detach().clone() for name, parameter in model.trainable().items()}
    optimizer = optimizer_of(model, learning_rate=1e-2)
    experience = make_experience(model, rollout(), scores, config, kl_coefficient=0.1, left_out=left_out)
    found = update(model, optimizer, experience, config, torch.Generator().manual_seed(0))
    own, runtime = Scores(scores, [], 0, 0), Runtime(device="cpu")
    metrics = step_metrics(experience, own, 0.1, runtime) | found.metrics
    conversations = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]] * len(scores)
    rows = skipped_rows(1, experience, own, found.skipped, conversations, runtime)
    moved = any(not torch.equal(parameter, before[name]) for name, parameter in model.trainable().items())
    return metrics, rows, experience, moved


@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_what_was_cut_is_not_learned_from_and_counts_for_the_others(model, name):
    cut = rollout().is_at_limit(9)
    assert cut == [False, False, True, False, False, True]
    config = settings(name=name, drop_truncated=True, minibatches=1)
    metrics, rows, experience, moved = trained(model, config, SCORES, cut)
    plain = make_experience(model, rollout(), SCORES, config, kl_coefficient=0.1)
    assert sorted(experience.row_at.values()) == [0, 1, 3, 4] and moved
    assert experience.advantages[2].abs().max() > 0  # though none is learned from it
    assert plain.token_counts == [6, 2, 9, 1, 4, 9] and experience.token_counts == [6, 2, 1, 4]
    # it is no fault, and its reward and KL are measured
    assert rows == [] and metrics["optim/left_out"] == metrics["optim/skipped"] == 0
    assert metrics["reward/total_mean"] == pytest.approx(experience.total.mean().item())


def test_where_everything_was_cut_nothing_is_learned_and_nothing_is_a_fault(model):
    metrics, rows, _, moved = trained(model, settings(drop_truncated=True), SCORES, [True] * 6)
    assert not moved and rows == []
    assert metrics["optim/skipped"] == metrics["optim/left_out"] == metrics["optim/gradient_norm"] == 0
    assert math.isnan(metrics["policy/loss"]) and math.isfinite(metrics["kl/reference"])


def test_where_everything_was_cut_or_without_a_score_the_latter_are_told(model):
    scores = SCORES.clone().index_fill_(0, torch.tensor([1, 5]), math.nan)
    metrics, rows, _, moved = trained(
        model, settings(drop_truncated=True), scores, [True, False, True, True, True, True]
    )
    assert not moved and [row["reason"] for row in rows] == ["score", "score"]
    assert metrics["optim/skipped"] == 0 and metrics["optim/left_out"] == 2


def test_a_group_whose_answers_are_all_worth_the_same_moves_nothing(model):
    config = settings(epochs=1, minibatches=1, kl=LOSS)
    model.zero_grad()
    experience = make_experience(model, rollout(), torch.tensor([0.5, 0.5, 0.5, 2.0, 2.0, 2.0]), config, 0.0)
    sums = add_gradients(model, experience, list(range(6)), config)
    assert sums["policy_loss"] == 0 and all(not gradient.any() for gradient in gradients(model).values())
