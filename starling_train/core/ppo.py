"""Proximal policy optimisation for language models, as functions of tensors.

Shapes: (sequences, tokens) over the positions of the responses, right-padded, with `is_response` True on real
tokens, the end of turn included. Time index t; `v_tp1` is the value one token later. Units: rewards and values in
the reward model's (scaled) score, KL in nats. Losses return a *sum* over real tokens divided by `count`, the number
of real tokens of the whole global mini-batch, so that gradients added up over micro-batches and ranks do not depend
on how the mini-batch was cut.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from starling_train.core.masked import masked_sum

# exp(20) is 5e8: past that a ratio says nothing more, and float32 soon overflows
MAX_LOG_RATIO = 20.0


def kl_estimate(logprobs: Tensor, reference: Tensor, estimator: str = "k1") -> Tensor:
    """Estimate KL(policy || reference) per token from tokens the policy drew, in nats; same shape as the inputs.

    k1 = log p - log q (unbiased, signed); k2 = k1^2 / 2; k3 = exp(-k1) - 1 + k1 (unbiased, never negative).
    Source: Schulman 2020, 'Approximating KL divergence'.
    """
    log_ratio = (logprobs - reference).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return log_ratio**2 / 2
    assert estimator == "k3", estimator
    return (-log_ratio).exp() - 1 + log_ratio


@dataclass(frozen=True)
class PolicyLoss:
    """A loss and the sums, over the same tokens, that its metrics are made of (divide them by the token count)."""

    loss: Tensor  # scalar, already divided by `count`
    clipped: Tensor  # number of tokens whose ratio was clipped
    approx_kl: Tensor  # sum of the k3 estimate of KL(rollout policy || current policy), nats
    largest_ratio: Tensor  # largest |ratio - 1|


def ppo_policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, is_response: Tensor, clip: float, count: Tensor | float
) -> PolicyLoss:
    """Return the clipped surrogate: sum of max(-A ratio, -A clamp(ratio, 1 - clip, 1 + clip)) / count.

    Source: Schulman et al. 2017 (arXiv 1707.06347), equation 7.
    """
    log_ratio = (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - clip, 1.0 + clip)
    loss = masked_sum(torch.maximum(unclipped, clipped), is_response) / count
    return _with_metrics(loss, log_ratio, clipped > unclipped, is_response)


def apa_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    is_response: Tensor,
    kl_coefficient: float,
    count: Tensor | float,
) -> PolicyLoss:
    """Return the loss of advantage-induced policy alignment: sum of (log pi - log pi_rollout - A / lambda)^2 / count.

    kl_coefficient: the lambda of the paper, larger = smaller steps; must be positive.
    Source: Zhu et al. 2023 (arXiv 2306.02231), equation 6, as in the Starling authors' training code.
    """
    log_ratio = (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    loss = masked_sum((log_ratio - advantages / kl_coefficient) ** 2, is_response) / count
    return _with_metrics(loss, log_ratio, torch.zeros_like(is_response), is_response)


def _with_metrics(loss: Tensor, log_ratio: Tensor, clipped: Tensor, is_response: Tensor) -> PolicyLoss:
    with torch.no_grad():
        ratio = log_ratio.exp()
        return PolicyLoss(
            loss=loss,
            clipped=(clipped & is_response).sum(),
            approx_kl=masked_sum(ratio - 1 - log_ratio, is_response),
            largest_ratio=torch.where(is_response, (ratio - 1).abs(), 0.0).max(),
        )


class LossSettings(Protocol):
    """The settings of the policy losses: PPO's clip of the ratio, APA's lambda."""

    clip: float
    apa_lambda: float


PolicyLossOf = Callable[[Tensor, Tensor, Tensor, Tensor, LossSettings, float], PolicyLoss]
# by algorithm.name: (logprobs, old_logprobs, advantages, is_response, settings, count) -> PolicyLoss
LOSSES: dict[str, PolicyLossOf] = {
    "ppo": lambda new, old, advantages, real, how, count: ppo_policy_loss(new, old, advantages, real, how.clip, count),
    "apa": lambda new, old, advantages, real, how, count: apa_policy_loss(
        new, old, advantages, real, how.apa_lambda, count
    ),
}


@dataclass(frozen=True)
class ValueLoss:
    loss: Tensor  # scalar, already divided by `count`
    clipped: Tensor  # number of tokens where the clipped error was the larger


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, is_response: Tensor, clip: float, count: Tensor | float
) -> ValueLoss:
    """Return a clipped squared error: sum of 0.5 max((v - R)^2, (clamp(v, v_old - clip, v_old + clip) - R)^2) / count.

    clip <= 0 means no clipping. Source: the PPO reference implementation (openai/baselines, ppo2).
    """
    plain = (values - returns) ** 2
    if clip <= 0:
        return ValueLoss(0.5 * masked_sum(plain, is_response) / count, torch.zeros((), device=values.device))
    near = torch.clamp(values, old_values - clip, old_values + clip)
    clipped = (near - returns) ** 2
    loss = 0.5 * masked_sum(torch.maximum(plain, clipped), is_response) / count
    return ValueLoss(loss, ((clipped > plain) & is_response).sum())


@dataclass
class KLController:
    """The coefficient of the KL penalty: fixed, or pulled towards a target KL per sequence.

    coefficient: weight of the penalty, score units per nat. target: desired KL summed over a response, in nats; None
    keeps the coefficient fixed. horizon: episodes over which a full error multiplies the coefficient by about e^0.2.
    Source: Ziegler et al. 2019 (arXiv 1909.08593), section 2.2.
    """

    coefficient: float
    target: float | None = None
    horizon: float = 10000.0

    def update(self, kl: float, episodes: int) -> None:
        """Take in the mean KL per sequence of the last `episodes` episodes; one that is not finite is ignored."""
        if self.target is None or not math.isfinite(kl):
            return
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        self.coefficient *= 1.0 + error * episodes / self.horizon

    def state_dict(self) -> dict[str, float]:
        """Return what a resumed run goes on with."""
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Undo `state_dict`."""
        self.coefficient = state["coefficient"]
