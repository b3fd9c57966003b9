"""From scores to advantages: what each response token was worth, beyond what was expected of it."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


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


class AdvantageSettings(Protocol):
    """Discount per token, and lambda of generalised advantage estimation."""

    gamma: float
    gae_lambda: float


AdvantagesOf = Callable[[Tensor, Tensor, Tensor, AdvantageSettings], tuple[Tensor, Tensor]]
# by algorithm.name: (rewards, values, is_response, settings) -> (advantages, returns)
ADVANTAGES: dict[str, AdvantagesOf] = dict.fromkeys(
    ("ppo", "apa"), lambda rewards, values, real, how: gae(rewards, values, real, how.gamma, how.gae_lambda)
)
