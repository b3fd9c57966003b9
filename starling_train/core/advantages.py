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
    advantages = torch.zeros_like(values)
    a_tp1 = torch.zeros_like(values[:, 0])
    v_tp1 = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta_t = rewards[:, t] + gamma * v_tp1 - values[:, t]
        a_t = delta_t + gamma * gae_lambda * a_tp1
        # padding lies to the right: until the first real token from there nothing may accumulate
        a_tp1 = torch.where(is_response[:, t], a_t, 0.0)
        v_tp1 = values[:, t]
        advantages[:, t] = a_tp1
    return advantages, torch.where(is_response, advantages + values, 0.0)


class AdvantageSettings(Protocol):
    """Discount per token, and lambda of generalised advantage estimation."""

    gamma: float
    gae_lambda: float


AdvantagesOf = Callable[[Tensor, Tensor, Tensor, AdvantageSettings], tuple[Tensor, Tensor]]
# by algorithm.name: (rewards, values, is_response, settings) -> (advantages, returns)
ADVANTAGES: dict[str, AdvantagesOf] = dict.fromkeys(
    ("ppo", "apa"), lambda rewards, values, real, how: gae(rewards, values, real, how.gamma, how.gae_lambda)
)
