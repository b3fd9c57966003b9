"""From scores to advantages: what each response token was worth, beyond what was expected of it."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

GROUP_EPS = 1e-4  # added to a group's deviation, reward units: where all answers are worth the same, it is 0


def token_rewards(scores: Tensor, kl: Tensor, is_response: Tensor, kl_coefficient: float) -> Tensor:
    """Return the rewards: -coefficient x KL on every response token, plus the score on the last real one; 0 on padding.

    scores: (sequences,), kl: (sequences, tokens). Source: Ziegler et al. 2019 (arXiv 1909.08593), equation 2.
    """
    rewards = torch.where(is_response, -kl_coefficient * kl, 0.0)
    last = is_response.sum(-1) - 1
    rows = torch.arange(len(scores), device=scores.device)
    return rewards.index_put((rows, last), scores.to(rewards), accumulate=True)


def gae(rewards: Tensor, values: Tensor, is_response: Tensor, gamma: float, gae_lambda: float) -> tuple[Tensor, Tensor]:
    """Return generalised advantage estimates and returns (advantage + value), both 0 on padding.

    delta_t = r_t + gamma v_{t+1} - v_t;  A_t = delta_t + gamma lambda A_{t+1};  v = A = 0 after the last token.
    Source: Schulman et al. 2015 (arXiv 1506.02438), equation 16.
    """
    values = torch.where(is_response, values, 0.0)
    rewards = torch.where(is_response, rewards, 0.0)
    v_tp1 = torch.nn.functional.pad(values[:, 1:], (0, 1))
    deltas = rewards + gamma * v_tp1 - values  # 0 on padding, which lies to the right
    # a loop over tokens is eight kernels a token on a GPU; on a CPU it is the faster of the two
    add_up = discounted_sums_in_order if deltas.device.type == "cpu" else discounted_sums_by_doubling
    advantages = add_up(deltas, gamma * gae_lambda)
    return advantages, torch.where(is_response, advantages + values, 0.0)


def discounted_sums_in_order(x: Tensor, discount: float) -> Tensor:
    """Return y_t = x_t + discount y_{t+1} of each row of x (rows, tokens), token by token from the right."""
    sums = torch.zeros_like(x)
    y_tp1 = torch.zeros_like(x[:, 0])
    for t in reversed(range(x.shape[1])):
        y_tp1 = torch.add(x[:, t], discount * y_tp1, out=sums[:, t])
    return sums


def discounted_sums_by_doubling(x: Tensor, discount: float) -> Tensor:
    """Return what `discounted_sums_in_order` does, up to rounding, in about log2(tokens) operations on whole tensors.

    After k rounds y_t is the discounted sum of the next 2^k tokens; discount <= 1, so that its powers stay finite.
    Source: Hillis and Steele 1986, 'Data parallel algorithms', on sums of prefixes.
    """
    sums, span = x, 1
    while span < x.shape[1]:
        ahead = torch.nn.functional.pad(sums[:, span:], (0, span))
        sums = torch.add(sums, ahead, alpha=discount**span)
        span *= 2
    return sums


def leave_one_out(totals: Tensor, is_fit: Tensor, group: int) -> Tensor:
    """Return what each response was worth beyond the mean of the others to its prompt: (sequences,), 0 if not fit.

    A_i = R_i - 1 / (G - 1) sum over j != i of R_j, over those of the group that are fit; 0 where only one is.

    totals: (sequences,) rewards of whole responses; those of a prompt lie side by side.
    is_fit: (sequences,) bool; the others count for nothing.
    group: responses to a prompt.

    Source: Ahmadian et al. 2024 (arXiv 2402.14740), section 3.3; Kool et al. 2019.
    """
    worth, is_fit, count = _in_groups(totals, is_fit, group)
    others = (worth.sum(1, keepdim=True) - worth) / (count - 1).clamp(min=1)
    return (worth - others).where(is_fit & (count > 1), 0.0).flatten().to(totals)


def within_group(totals: Tensor, is_fit: Tensor, group: int, scaled: bool) -> Tensor:
    """Return what each response was worth beyond the mean of its group, in deviations of the group if `scaled`.

    A_i = (R_i - mean) / (deviation + GROUP_EPS), over those of the group that are fit; 0 where only one is. The
    deviation is the sample's (divided by G - 1), as in TRL and verl (the paper is silent). Not scaled: Dr. GRPO.

    Arguments as of `leave_one_out`.

    Sources: Shao et al. 2024 (arXiv 2402.03300), section 4.1.2; Liu et al. 2025 (arXiv 2503.20783), section 3.2.
    """
    worth, is_fit, count = _in_groups(totals, is_fit, group)
    centred = (worth - worth.sum(1, keepdim=True) / count.clamp(min=1)).where(is_fit & (count > 1), 0.0)
    if scaled:
        centred = centred / ((centred**2).sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt().add(GROUP_EPS)
    return centred.flatten().to(totals)


def _in_groups(totals: Tensor, is_fit: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return rewards, 0 where not fit, and `is_fit`, (groups, group), and how many of each group are fit.

    In float64: in float32 the mean of equal rewards may differ from them, and a deviation of next to nothing makes that
    large.
    """
    is_fit = is_fit.view(-1, group)
    return totals.double().view(-1, group).where(is_fit, 0.0), is_fit, is_fit.sum(1, keepdim=True)


class AdvantageSettings(Protocol):
    """Discount per token, lambda of generalised advantage estimation; responses to a prompt, and their scale."""

    gamma: float
    gae_lambda: float
    responses_per_prompt: int
    scale_by_group: bool


AdvantagesOf = Callable[[Tensor, Tensor, Tensor, AdvantageSettings], tuple[Tensor, Tensor]]


class Estimator(NamedTuple):
    """How advantages are estimated.

    of: (rewards, values, is_response, settings) -> (advantages, returns), all (sequences, tokens). Rewards are
        `token_rewards`; without a critic, values and returns are 0.
    whitens: whether they are then brought to mean 0 and deviation 1 over the step.
    """

    of: AdvantagesOf
    whitens: bool


def _of_groups(worth: Callable[[Tensor, Tensor, AdvantageSettings], Tensor]) -> Estimator:
    """Make an estimator of what a whole response is worth, the same for each of its tokens."""

    def of(rewards: Tensor, values: Tensor, real: Tensor, how: AdvantageSettings) -> tuple[Tensor, Tensor]:
        advantages = worth(rewards.where(real, 0.0).sum(-1), real.any(-1), how)
        return torch.where(real, advantages[:, None], 0.0), torch.zeros_like(rewards)

    return Estimator(of, whitens=False)


GAE = Estimator(lambda rewards, values, real, how: gae(rewards, values, real, how.gamma, how.gae_lambda), whitens=True)
# by algorithm.name
ADVANTAGES: dict[str, Estimator] = {
    "ppo": GAE,
    "apa": GAE,
    "rloo": _of_groups(lambda totals, fit, how: leave_one_out(totals, fit, how.responses_per_prompt)),
    "grpo": _of_groups(
        lambda totals, fit, how: within_group(totals, fit, how.responses_per_prompt, how.scale_by_group)
    ),
}
