import math
from dataclasses import dataclass

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from starling_train.core import advantages as formulas
from starling_train.core.advantages import gae, token_rewards
from starling_train.core.masked import weighted_sum
from starling_train.core.ppo import (
    LOSSES,
    MEANS,
    RATIOS,
    KLController,
    apa_policy_loss,
    drift,
    kl_estimate,
    ppo_policy_loss,
    truncated_weights,
    value_loss,
)

# two responses of 3 and 2 tokens; the last entry of the second is padding
IS_RESPONSE = torch.tensor([[True, True, True], [True, True, False]])


def test_kl_estimates_by_hand():
    p, q = torch.log(torch.tensor([0.5])), torch.log(torch.tensor([0.25]))
    assert kl_estimate(p, q, "k1").item() == pytest.approx(math.log(2))
    assert kl_estimate(p, q, "k2").item() == pytest.approx(math.log(2) ** 2 / 2)
    assert kl_estimate(p, q, "k3").item() == pytest.approx(0.5 - 1 + math.log(2))


def test_weights_of_tokens_that_another_engine_drew_by_hand():
    here, there = torch.tensor([0.5, 0.9, 0.2, 0.3]).log(), torch.tensor([0.4, 0.1, 0.4, 0.0]).log()
    torch.testing.assert_close(truncated_weights(here, there, 2.0), torch.tensor([1.25, 2.0, 0.5, 2.0]))
    torch.testing.assert_close(truncated_weights(here, there, 1.0), torch.tensor([1.0, 1.0, 0.5, 1.0]))


def test_truncated_weights_make_an_expectation_that_of_the_policy():
    p = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    q = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    value = torch.tensor([1.0, -2.0, 5.0], dtype=torch.float64)
    torch.testing.assert_close((q * truncated_weights(p.log(), q.log(), 9.0) * value).sum(), (p * value).sum())


def test_k1_and_k3_both_estimate_the_exact_kl():
    p = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    q = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    exact = (p * (p / q).log()).sum()
    for estimator in ("k1", "k3"):
        torch.testing.assert_close((p * kl_estimate(p.log(), q.log(), estimator)).sum(), exact)


def test_score_goes_on_the_last_real_token_and_kl_on_every_one():
    kl = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 77.0]])
    rewards = token_rewards(torch.tensor([10.0, 20.0]), kl, IS_RESPONSE, kl_coefficient=0.1)
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, -0.2, 9.7], [-0.4, 19.5, 0.0]]))


def test_gae_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 2.0], [1.0, 3.0, 99.0]])
    values = torch.tensor([[0.5, 1.0, 1.5], [2.0, 1.0, 99.0]])
    advantages, returns = gae(rewards, values, IS_RESPONSE, gamma=0.9, gae_lambda=0.5)
    # row 1: d = [1 + .9 - .5, 0 + 1.35 - 1, 2 - 1.5] = [1.4, .35, .5]; A3 = .5, A2 = .35 + .45 A3, A1 = 1.4 + .45 A2
    # row 2: d = [1 + .9 - 2, 3 - 1] = [-.1, 2]; A2 = 2, A1 = -.1 + .9
    torch.testing.assert_close(advantages, torch.tensor([[1.65875, 0.575, 0.5], [0.8, 2.0, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[2.15875, 1.575, 2.0], [2.8, 3.0, 0.0]]))


def test_gae_with_lambda_1_gamma_1_is_the_reward_to_go():
    rewards, values = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.3, -7.0, 4.0]])
    _, returns = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), 1.0, 1.0)
    torch.testing.assert_close(returns, torch.tensor([[6.0, 5.0, 3.0]]))


@pytest.mark.parametrize("tokens", [1, 2, 3, 64, 100])
@pytest.mark.parametrize("discount", [0.0, 0.95, 1.0])
def test_sums_by_doubling_are_those_taken_token_by_token(tokens, discount):
    x = torch.randn(3, tokens, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    powers = discount ** torch.arange(tokens, dtype=x.dtype)
    by_hand = torch.stack([(powers[: tokens - t] * x[:, t:]).sum(-1) for t in range(tokens)], 1)
    for add_up in (formulas.discounted_sums_in_order, formulas.discounted_sums_by_doubling):
        torch.testing.assert_close(add_up(x, discount), by_hand, atol=1e-12, rtol=1e-12)


def test_a_gpu_gets_three_operations_a_doubling_and_not_some_a_token():
    """Counted on the device `meta`, which has no numbers, but is not a CPU."""
    counted = []

    class Counts(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            counted.append(function)
            return function(*args, **(kwargs or {}))

    x = torch.empty(8, 1024, device="meta")
    with Counts():
        advantages, _ = gae(x, x, torch.empty(8, 1024, dtype=torch.bool, device="meta"), 1.0, 0.95)
    assert advantages.shape == x.shape
    assert len(counted) < 10 * 5 + 20  # 2^10 tokens; views counted too


def test_gae_does_not_change_with_padding_or_row_order():
    torch.manual_seed(0)
    rewards, values = torch.randn(2, 3), torch.randn(2, 3)
    plain = gae(rewards, values, IS_RESPONSE, 0.99, 0.95)
    garbage = torch.full((2, 2), float("nan"))
    wider = [torch.cat([x, garbage], 1).flip(0) for x in (rewards, values)]
    mask = torch.cat([IS_RESPONSE, torch.zeros(2, 2, dtype=torch.bool)], 1).flip(0)
    for short, long in zip(plain, gae(*wider, mask, 0.99, 0.95), strict=True):
        assert torch.equal(torch.cat([short, torch.zeros(2, 2)], 1).flip(0), long)


def test_ppo_loss_by_hand():
    # ratios 1.5 and 0.5, clip 0.2, advantages +1 and +1: the first is clipped to 1.2, the second counts as it is
    logprobs = torch.tensor([1.5, 0.5]).log()
    loss = ppo_policy_loss(logprobs, torch.ones(2), torch.tensor([True, True]), 0.2, count=2)
    assert loss.loss.item() == pytest.approx(-(1.2 + 0.5) / 2)
    assert loss.clipped.item() == 1
    drifted = drift(logprobs)
    assert drifted.largest_ratio.item() == pytest.approx(0.5)
    expected_kl = (1.5 - 1 - math.log(1.5)) + (0.5 - 1 - math.log(0.5))
    assert drifted.approx_kl.item() == pytest.approx(expected_kl)


def test_ppo_loss_with_negative_advantage_is_pessimistic():
    # A = -1: max(ratio, clamped ratio): 1.5 stays 1.5, 0.5 is clipped to 0.8
    logprobs = torch.tensor([1.5, 0.5]).log()
    loss = ppo_policy_loss(logprobs, -torch.ones(2), torch.tensor([True, True]), 0.2, count=2)
    assert loss.loss.item() == pytest.approx((1.5 + 0.8) / 2)
    assert loss.clipped.item() == 1


def test_a_clipped_token_has_no_gradient():
    logprobs = torch.tensor([1.5, 1.1]).log().requires_grad_()
    real = torch.tensor([True, True])
    ppo_policy_loss(logprobs, torch.ones(2), real, 0.2, count=2).loss.backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([0.0, -1.1 / 2]))


def test_two_bounds_by_hand():
    # bounds 0.8 and 1.28: the third is clipped at 1.28 and the fourth at 0.8, the others count, the last weighs nothing
    ratios, advantages = [1.25, 0.7, 1.5, 0.5, 1.5, 1.5], torch.tensor([2.0, 2.0, 2.0, -2.0, -2.0, 2.0])
    log_ratio, weights = torch.tensor(ratios).log().requires_grad_(), torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    loss = ppo_policy_loss(log_ratio, advantages, weights, 0.2, 5, clip_high=0.28)
    assert loss.loss.item() == pytest.approx((-2.5 - 1.4 - 2.56 + 1.6 + 3.0) / 5)
    assert loss.clipped.item() == 2
    loss.loss.backward()
    # of what is not clipped: -A ratio / count
    torch.testing.assert_close(log_ratio.grad, torch.tensor([-2.5, -1.4, 0.0, 0.0, 3.0, 0.0]) / 5)
    below = ppo_policy_loss(log_ratio, advantages, weights, 0.2, 5)  # 1.2 above, as below
    assert below.loss.item() == pytest.approx((-2.4 - 1.4 - 2.4 + 1.6 + 3.0) / 5) and below.clipped.item() == 3


LOG_RATIO, LENGTHS = torch.tensor([0.1, 0.3, -0.2, 0.5]), [2, 1, 1]


@pytest.mark.parametrize(
    "kind,expected", [("token", [0.1, 0.3, -0.2, 0.5]), ("sequence", [0.4, 0.4, -0.2, 0.5]),
                      ("sequence_mean", [0.2, 0.2, -0.2, 0.5])]
)  # fmt: skip
def test_ratios_by_hand(kind, expected):
    torch.testing.assert_close(RATIOS[kind](LOG_RATIO, LENGTHS), torch.tensor(expected))


@pytest.mark.parametrize("kind", RATIOS)
def test_gradients_of_ratios_by_hand(kind):
    """Of the loss over sequences: the ratios are exp of the sums, or of the means, over the tokens of a response."""
    log_ratio = torch.tensor([0.1, 0.3], requires_grad=True)
    clip, advantages = 0.3, torch.tensor([-2.0, -2.0])
    ppo_policy_loss(RATIOS[kind](log_ratio, [2]), advantages, torch.full((2,), 1 / 2), clip, count=1).loss.backward()
    by_hand = {
        "token": [math.exp(0.1), math.exp(0.3)],  # -A ratio_t / length
        "sequence": [2 * math.exp(0.4)] * 2,  # the loss is -A exp(a + b), which both tokens change alike
        "sequence_mean": [math.exp(0.2)] * 2,  # -A exp((a + b) / 2)
    }
    torch.testing.assert_close(log_ratio.grad, torch.tensor(by_hand[kind]))


@pytest.mark.parametrize("kind,clipped", [("token", 1), ("sequence", 2), ("sequence_mean", 0)])
def test_a_response_is_clipped_as_a_whole_where_its_ratio_is_its_own(kind, clipped):
    """0.1 and 0.3 at a bound of log 1.3 = 0.262: the second token's is beyond it, the sum, not the mean."""
    log_ratio = torch.tensor([0.1, 0.3], requires_grad=True)
    loss = ppo_policy_loss(RATIOS[kind](log_ratio, [2]), torch.ones(2), torch.ones(2), 0.3, count=2)
    loss.loss.backward()
    assert loss.clipped.item() == clipped and (log_ratio.grad == 0).sum() == clipped


@pytest.mark.parametrize(
    "kind,expected",
    [
        ("tokens", (1 + 2 + 3 + 10) / 4),
        ("sequences", ((1 + 2 + 3) / 3 + 10) / 2),
        ("length", (1 + 2 + 3 + 10) / 8 / 2),
    ],
)
def test_means_by_hand(kind, expected):
    """Of responses of three tokens and of one; the constant length is 8."""
    losses, lengths = torch.tensor([1.0, 2.0, 3.0, 10.0]), [3, 1]
    mean = MEANS[kind]
    weights = torch.tensor([mean.weight(length, 8) for length in lengths for _ in range(length)])
    assert weighted_sum(losses, weights).item() / mean.divisor(4, 2) == pytest.approx(expected)


def test_a_sequences_ratio_over_sequences_is_the_loss_of_whole_responses():
    """RLOO's, of log-probs summed up: each response counts once, as one action."""
    log_ratio, lengths = torch.tensor([0.1, 0.3, -0.2, 0.5, 0.0]), [2, 3]
    of_responses, advantages = torch.tensor([0.4, 0.3]), torch.tensor([1.0, -2.0])
    whole = ppo_policy_loss(of_responses, advantages, torch.ones(2), 0.2, count=2)
    repeats = torch.tensor(lengths)
    weights = torch.tensor([MEANS["sequences"].weight(length, 1) for length in lengths]).repeat_interleave(repeats)
    found = ppo_policy_loss(
        RATIOS["sequence"](log_ratio, lengths), advantages.repeat_interleave(repeats), weights, 0.2, count=2
    )
    torch.testing.assert_close(found.loss, whole.loss)


@pytest.mark.parametrize(
    "estimator,loss,slope", [("k2", math.log(2) ** 2 / 2, math.log(2)), ("k3", 0.5 - 1 + math.log(2), 1 - 0.5)]
)
def test_the_kl_in_the_loss_by_hand(estimator, loss, slope):
    """p = 0.5, q = 0.25; with r = log p/q, the slope of k2 is r, and of k3 1 - exp(-r)."""
    logprobs = torch.tensor([0.5, 0.25]).log().requires_grad_()
    penalty = weighted_sum(kl_estimate(logprobs, torch.tensor([0.25, 0.25]).log(), estimator), torch.tensor([0.5, 9.0]))
    penalty.backward()
    assert penalty.item() == pytest.approx(0.5 * loss)
    torch.testing.assert_close(logprobs.grad, torch.tensor([0.5 * slope, 0.0]))


def test_a_weight_of_nothing_lets_nothing_through():
    x = torch.tensor([2.0, math.nan], requires_grad=True)
    total = weighted_sum(x, torch.tensor([3.0, 0.0]))
    total.backward()
    assert total.item() == 6.0 and x.grad.tolist() == [3.0, 0.0]


def test_extreme_log_ratios_stay_finite():
    logprobs = torch.tensor([200.0], requires_grad=True)
    loss = ppo_policy_loss(logprobs, -torch.ones(1), torch.tensor([True]), 0.2, count=1)
    loss.loss.backward()
    assert loss.loss.item() == pytest.approx(math.exp(20), rel=1e-5)
    assert logprobs.grad.isfinite().all()


def test_apa_loss_by_hand():
    logprobs, old, advantages = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -2.0]), torch.tensor([0.1, -0.2])
    loss = apa_policy_loss(logprobs - old, advantages, torch.tensor([True, True]), kl_coefficient=0.5, count=2)
    assert loss.loss.item() == pytest.approx(((0.5 - 0.2) ** 2 + (0.0 + 0.4) ** 2) / 2)
    assert loss.clipped.item() == 0


def test_value_loss_by_hand():
    values, old, returns = torch.tensor([1.0, 0.1]), torch.tensor([0.0, 0.0]), torch.tensor([2.0, 1.0])
    # token 1: clipped to 0.2: max(1, 1.8^2) = 3.24; token 2: 0.81 both ways
    loss = value_loss(values, old, returns, torch.tensor([True, True]), clip=0.2, count=2)
    assert loss.loss.item() == pytest.approx(0.5 * (3.24 + 0.81) / 2)
    assert loss.clipped.item() == 1
    unclipped = value_loss(values, old, returns, torch.tensor([True, True]), clip=0.0, count=2)
    assert unclipped.loss.item() == pytest.approx(0.5 * (1.0 + 0.81) / 2)


@pytest.mark.parametrize("name", ["ppo", "apa", "value"])
def test_losses_do_not_change_with_padding_order_or_micro_batches(name):
    torch.manual_seed(1)
    a, b, c = torch.randn(3, 6, 4)
    mask = torch.arange(4)[None, :] < torch.tensor([4, 1, 3, 2, 4, 2])[:, None]
    count = int(mask.sum())

    def loss(rows):
        wide = [torch.cat([x[rows], torch.full((len(rows), 2), float("nan"))], 1) for x in (a, b, c)]
        wide_mask = torch.cat([mask[rows], torch.zeros(len(rows), 2, dtype=torch.bool)], 1)
        return _loss(name, *wide, wide_mask, count)

    whole = _loss(name, a, b, c, mask, count)
    cut = [loss([5, 0]), loss([3]), loss([1, 4, 2])]
    torch.testing.assert_close(sum(part.loss for part in cut), whole.loss)
    assert sum(part.clipped for part in cut) == whole.clipped


def _loss(name, a, b, c, mask, count):
    if name == "ppo":
        return ppo_policy_loss(a - b, c, mask, 0.2, count)
    if name == "apa":
        return apa_policy_loss(a - b, c, mask, 0.5, count)
    return value_loss(a, b, c, mask, 0.2, count)


@pytest.mark.parametrize("name", ["rloo", "grpo"])
@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("ratio", RATIOS)
def test_losses_of_groups_do_not_change_with_order_or_micro_batches(name, ratio, mean):
    random, lengths = torch.Generator().manual_seed(1), [4, 1, 3, 2, 4, 2]
    log_ratios = [0.5 * torch.randn(length, generator=random, dtype=torch.float64) for length in lengths]
    advantages = torch.randn(len(lengths), generator=random, dtype=torch.float64)
    settings = Bounds(clip=0.1, clip_high=0.3)
    divisor = MEANS[mean].divisor(sum(lengths), len(lengths))

    def loss(rows):
        of_rows = [lengths[row] for row in rows]
        weights = torch.tensor([MEANS[mean].weight(length, 8) for length in of_rows], dtype=torch.float64)
        repeats = torch.tensor(of_rows)
        of_tokens = (one.repeat_interleave(repeats) for one in (advantages[rows], weights))
        return LOSSES[name](
            RATIOS[ratio](torch.cat([log_ratios[row] for row in rows]), of_rows), *of_tokens, settings, divisor
        )

    whole, cut = loss([0, 1, 2, 3, 4, 5]), [loss([5, 0]), loss([3]), loss([1, 4, 2])]
    torch.testing.assert_close(sum(part.loss for part in cut), whole.loss)
    assert sum(part.clipped for part in cut) == whole.clipped > 0


@dataclass
class Bounds:
    clip: float
    clip_high: float | None
    apa_lambda: float = 0.1


def test_adaptive_kl_by_hand():
    control = KLController(coefficient=0.1, target=6.0, horizon=10000.0)
    control.update(kl=6.6, episodes=1000)  # error 0.1
    assert control.coefficient == pytest.approx(0.1 * (1 + 0.1 * 1000 / 10000))
    control.update(kl=60.0, episodes=10000)  # error 9, clipped to 0.2
    assert control.coefficient == pytest.approx(0.101 * 1.2)
    control.update(kl=0.0, episodes=10000)  # error -1, clipped to -0.2
    assert control.coefficient == pytest.approx(0.101 * 1.2 * 0.8)


def test_a_kl_that_is_not_finite_says_nothing():
    control = KLController(coefficient=0.1, target=6.0)
    for kl in (float("nan"), float("inf"), -float("inf")):
        control.update(kl=kl, episodes=1000)
    assert control.coefficient == 0.1


def test_fixed_kl_stays():
    control = KLController(coefficient=0.1)
    control.update(kl=1e9, episodes=1000)
    assert control.coefficient == 0.1
