"""Losses and counts on ranked answers and on pairs of answers.

For rankings: scores (prompts, K), best answer first; is_answer (prompts, K), True for real answers in rows with fewer
than K (all real if None); rank (prompts, K), integers that grow along a row, equal for tied answers (no ties if None).
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def kwise_loss(scores: Tensor, is_answer: Tensor | None = None, rank: Tensor | None = None) -> Tensor:
    """Return the negative log-likelihood of a ranking under the Plackett-Luce model, per choice made: a scalar.

    For every prompt with n answers and no ties

        L = - sum_{k < n} [ r_k - log sum_{j >= k} exp r_j ] / (n - 1)

    averaged over prompts with a choice to make. K = 7 equal scores give log(7!) / 6 = 1.4209.
    Tied answers are not compared: the sum over j runs over k itself and all that are ranked below it, and the loss is
    divided by the number of answers with something ranked below them.
    Source: Zhu, Jordan and Jiao 2023 (arXiv 2301.11270), the K-wise maximum likelihood estimator; Starling-RM card.
    """
    losses = kwise_losses(scores, is_answer, rank)
    return losses.sum() / _beats(*_filled(scores, is_answer, rank)).any((-1, -2)).sum().clamp(min=1)


def kwise_losses(scores: Tensor, is_answer: Tensor | None = None, rank: Tensor | None = None) -> Tensor:
    """Return the loss of every prompt, (prompts,); 0 where there is no choice to make. See `kwise_loss`."""
    is_answer, rank = _filled(scores, is_answer, rank)
    beats = _beats(is_answer, rank)
    scores = torch.where(is_answer, scores, 0.0)
    rivals = beats | torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    log_rest = torch.where(rivals, scores[:, None, :], -torch.inf).logsumexp(-1)
    chooses = beats.any(-1)
    return torch.where(chooses, log_rest - scores, 0.0).sum(-1) / chooses.sum(-1).clamp(min=1)


@dataclass(frozen=True)
class PairCounts:
    """How many pairs of answers came out as ranked. by_distance: (right, pairs) by the difference of the two ranks.

    Equal scores are half right; pairs that the ranking ties are not counted.
    """

    by_distance: dict[float, tuple[float, int]]

    @property
    def right(self) -> float:
        return sum(right for right, _ in self.by_distance.values())

    @property
    def pairs(self) -> int:
        return sum(pairs for _, pairs in self.by_distance.values())

    @property
    def accuracy(self) -> float:
        """In [0, 1]; NaN without pairs."""
        return self.right / self.pairs if self.pairs else math.nan

    @staticmethod
    def sum(counts: "Sequence[PairCounts]") -> "PairCounts":
        """Add up counts, with distances in ascending order."""
        total: dict[float, tuple[float, int]] = {}
        for distance, (right, pairs) in (item for count in counts for item in count.by_distance.items()):
            before = total.get(distance, (0.0, 0))
            total[distance] = (before[0] + right, before[1] + pairs)
        return PairCounts(dict(sorted(total.items())))


def count_pairs(scores: Iterable[Sequence[float]], ranks: Iterable[Sequence[float]]) -> PairCounts:
    """Compare all pairs of answers within a row whose ranks differ.

    scores, ranks: a sequence for each row, with an entry for each answer; the smaller rank is better.
    """
    right: defaultdict[float, float] = defaultdict(float)
    pairs: Counter[float] = Counter()
    for row_scores, row_ranks in zip(scores, ranks, strict=True):
        rated = sorted(zip(row_ranks, row_scores, strict=True))
        for index, (better, high) in enumerate(rated):
            for worse, low in rated[index + 1 :]:
                if better != worse:
                    pairs[worse - better] += 1
                    right[worse - better] += 1.0 if high > low else 0.5 if high == low else 0.0
    return PairCounts({distance: (right[distance], pairs[distance]) for distance in sorted(pairs)})


def _filled(scores: Tensor, is_answer: Tensor | None, rank: Tensor | None) -> tuple[Tensor, Tensor]:
    if is_answer is None:
        is_answer = torch.ones_like(scores, dtype=torch.bool)
    if rank is None:
        rank = torch.arange(scores.shape[-1], device=scores.device).expand(scores.shape)
    return is_answer, rank


def _beats(is_answer: Tensor, rank: Tensor) -> Tensor:
    """Return (prompts, K, K), True at [k, j] where real answer k is ranked above real answer j."""
    return (rank[:, :, None] < rank[:, None, :]) & is_answer[:, :, None] & is_answer[:, None, :]


class PairLosses(NamedTuple):
    """For every pair, (pairs,): its loss, and the rewards that the policy implies for its two answers."""

    loss: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor


def dpo_losses(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
    kind: str = "sigmoid",
    label_smoothing: float = 0.0,
) -> PairLosses:
    """Return the loss of every pair in direct preference optimisation, where r = beta x log(policy / reference).

    chosen, rejected, reference_*: (pairs,) log-probabilities of whole answers, in nats, under policy and reference.
    beta: how much the policy is held to the reference. With h = (r_chosen - r_rejected) / beta

        sigmoid: L = -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)
        ipo:     L = (h - 1 / (2 beta))^2

    e is label_smoothing, the share of pairs that are taken to be labelled the wrong way round; ipo has none. A policy
    that is its reference has log 2 = 0.6931, or 1 / (4 beta^2).
    Source: Rafailov et al. 2023 (arXiv 2305.18290), eq. 7; Mitchell 2023, 'A note on DPO with noisy preferences', for
    e; Azar et al. 2023 (arXiv 2310.12036), eq. 17, for ipo.
    """
    chosen_reward = beta * (chosen - reference_chosen)
    rejected_reward = beta * (rejected - reference_rejected)
    margin = chosen_reward - rejected_reward
    if kind == "ipo":
        loss = (margin / beta - 1 / (2 * beta)).square()
    else:
        assert kind == "sigmoid", kind
        loss = -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)
    return PairLosses(loss, chosen_reward, rejected_reward)


def drift(logprobs: Tensor, reference: Tensor, tokens: Tensor) -> Tensor:
    """Return how far the policy has moved from the reference on each answer, (answers,), in nats; 0 where it has not.

    logprobs, reference: (answers,) of whole answers, in nats.
    tokens: (answers,) how many each answer has.

        D = (log policy / reference)^2 / (2 tokens)

    The estimator k2 of the KL divergence (Schulman 2020, 'Approximating KL divergence'), summed over an answer's
    tokens, if all of them moved alike; if not, the sum is larger (Cauchy and Schwarz). The answers are the data's, not
    the policy's own. The gradient leads back to the reference, on whichever side of it the policy is.
    """
    return (logprobs - reference).square() / (2 * tokens)
