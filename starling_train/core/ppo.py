"""Proximal policy optimisation for language models, as functions of tensors.

Shapes: (sequences, tokens) over the positions of the responses, right-padded, with `is_response` True on real
tokens, the end of turn included. Time index t; `v_tp1` is the value one token later. Units: rewards and values in
the reward model's (scaled) score, KL in nats. Losses return a *sum* over real tokens, each with its weight, divided by
`count` of the whole global mini-batch, so that gradients added up over micro-batches and ranks do not depend on how the
mini-batch was cut. `weights` may be a mask: all real tokens then weigh 1, and `count` is their number (`MEANS`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from starling_train.core.masked import masked_sum, weighted_sum

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


def truncated_weights(logprobs: Tensor, drawn: Tensor, cap: float) -> Tensor:
    """Return min(p / q, cap) per token: how much a token that was drawn under q counts for p; same shape as the inputs.

    logprobs: log p, of the policy whose loss is wanted.
    drawn: log q, of what drew the tokens, here the same weights computed by another engine.
    cap: without one, a token that q gives next to nothing would outweigh all others.
    Source: Ionides 2008, 'Truncated Importance Sampling'; Yao et al. 2025, 'Your Efficient RL Framework Secretly
    Brings You Off-Policy RL Training', for engines of rollout and training that differ.
    """
    return (logprobs - drawn).clamp(max=math.log(cap)).exp()


@dataclass(frozen=True)
class PolicyLoss:
    """A loss, a scalar already divided by `count`, and the number of tokens whose ratio was clipped."""

    loss: Tensor
    clipped: Tensor


def ppo_policy_loss(
    log_ratio: Tensor,
    advantages: Tensor,
    weights: Tensor,
    clip: float,
    count: Tensor | float,
    clip_high: float | None = None,
) -> PolicyLoss:
    """Return the clipped surrogate: sum of w max(-A ratio, -A clamp(ratio, 1 - clip, 1 + clip_high)) / count.

    log_ratio: log-probs minus those of the policy that drew the responses.
    advantages: A, of the same shape.
    weights: w, 0 on padding.
    clip: how far a ratio may fall.
    count: what the sum is divided by.
    clip_high: how far it may rise; None: as far as it may fall.

    Source: Schulman et al. 2017 (arXiv 1707.06347), equation 7; two bounds: DAPO, Yu et al. 2025 (arXiv 2503.14476),
    equation 10.
    """
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - clip, 1.0 + (clip if clip_high is None else clip_high))
    loss = weighted_sum(torch.maximum(unclipped, clipped), weights) / count
    return PolicyLoss(loss, ((clipped > unclipped) & (weights != 0)).sum())


def apa_policy_loss(
    log_ratio: Tensor, advantages: Tensor, weights: Tensor, kl_coefficient: float, count: Tensor | float
) -> PolicyLoss:
    """Return the loss of advantage-induced policy alignment: sum of w (log pi / pi_rollout - A / lambda)^2 / count.

    kl_coefficient: the lambda of the paper, larger = smaller steps; must be positive. The others: `ppo_policy_loss`.
    Source: Zhu et al. 2023 (arXiv 2306.02231), equation 6, as in the Starling authors' training code.
    """
    log_ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    loss = weighted_sum((log_ratio - advantages / kl_coefficient) ** 2, weights) / count
    return PolicyLoss(loss, torch.zeros((), dtype=torch.long, device=loss.device))


class Drift(NamedTuple):
    """How far the policy is from the one that drew the responses, token by token.

    approx_kl: sum of the k3 estimate of KL(rollout policy || current policy), nats.
    largest_ratio: the largest |ratio - 1|.
    """

    approx_kl: Tensor
    largest_ratio: Tensor


@torch.no_grad()
def drift(log_ratio: Tensor) -> Drift:
    """Measure the drift of some tokens, none of which is padding. log_ratio: as in `ppo_policy_loss`."""
    log_ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    return Drift((ratio - 1 - log_ratio).sum(), (ratio - 1).abs().max())


def _of_each_sequence(log_ratio: Tensor, lengths: Sequence[int], reduce: Callable[[Tensor], Tensor]) -> Tensor:
    # by parts, not by an index: on a GPU the sums of an index are added in any order
    return torch.cat([reduce(part).expand(len(part)) for part in log_ratio.split(list(lengths))])


# by algorithm.ratio: what a token's log ratio counts as, (tokens,) of sequences of these lengths -> (tokens,).
# sequence: of a response as one action, the product of its tokens' (RLOO, arXiv 2402.14740, section 3.3);
# sequence_mean: the geometric mean of its tokens' (GSPO, Zheng et al. 2025, arXiv 2507.18071, equation 7)
RATIOS: dict[str, Callable[[Tensor, Sequence[int]], Tensor]] = {
    "token": lambda log_ratio, lengths: log_ratio,
    "sequence": lambda log_ratio, lengths: _of_each_sequence(log_ratio, lengths, torch.sum),
    "sequence_mean": lambda log_ratio, lengths: _of_each_sequence(log_ratio, lengths, torch.mean),
}


class Mean(NamedTuple):
    """How the losses of tokens become one.

    weight: of each token of a response, by the response's length and `algorithm.loss_length`.
    divisor: what the weighted sum is divided by, by the tokens and the sequences of the mini-batch.
    """

    weight: Callable[[int, int], float]
    divisor: Callable[[int, int], int]


# by algorithm.loss_mean: tokens, PPO's, and DAPO's (arXiv 2503.14476, section 3.3); sequences, GRPO's, of which each
# counts as much as any other (arXiv 2402.03300, equation 3); length, Dr. GRPO's constant, with which a token weighs the
# same in a response of any length (arXiv 2503.20783, section 3.1)
MEANS: dict[str, Mean] = {
    "tokens": Mean(lambda length, limit: 1.0, lambda tokens, sequences: tokens),
    "sequences": Mean(lambda length, limit: 1.0 / length, lambda tokens, sequences: sequences),
    "length": Mean(lambda length, limit: 1.0 / limit, lambda tokens, sequences: sequences),
}


class LossSettings(Protocol):
    """The settings of the policy losses: bounds of the ratio, APA's lambda."""

    clip: float
    clip_high: float | None
    apa_lambda: float


PolicyLossOf = Callable[[Tensor, Tensor, Tensor, LossSettings, float], PolicyLoss]


def _clipped(log_ratio: Tensor, advantages: Tensor, weights: Tensor, how: LossSettings, count: float) -> PolicyLoss:
    return ppo_policy_loss(log_ratio, advantages, weights, how.clip, count, how.clip_high)


# by algorithm.name: (log_ratio, advantages, weights, settings, count) -> PolicyLoss
LOSSES: dict[str, PolicyLossOf] = {
    "ppo": _clipped,
    "apa": lambda log_ratio, advantages, weights, how, count: apa_policy_loss(
        log_ratio, advantages, weights, how.apa_lambda, count
    ),
    "rloo": _clipped,
    "grpo": _clipped,
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
