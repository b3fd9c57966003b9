"""Losses on ranked answers."""

import torch
from torch import Tensor


def kwise_loss(scores: Tensor, is_answer: Tensor | None = None) -> Tensor:
    """Negative log-likelihood of a ranking under the Plackett-Luce model, per choice made.

    scores: (prompts, K) rewards, best answer first. is_answer: (prompts, K), True for real answers where the rows
    have fewer than K (real ones first); all are real if None. Returns a scalar: for every prompt

        L = - sum_{k < n} [ r_k - log sum_{j >= k} exp r_j ] / (n - 1)

    averaged over prompts with n >= 2 answers. K = 7 equal scores give log(7!) / 6 = 1.4209.
    Source: Zhu, Jordan and Jiao 2023 (arXiv 2301.11270), the K-wise maximum likelihood estimator; Starling-RM card.
    """
    if is_answer is None:
        is_answer = torch.ones_like(scores, dtype=torch.bool)
    masked = scores.masked_fill(~is_answer, -torch.inf)
    log_rest = masked.flip(-1).logcumsumexp(-1).flip(-1)
    choices = torch.where(is_answer, log_rest - scores, 0.0)  # the last real answer contributes exactly 0
    answers = is_answer.sum(-1)
    per_prompt = choices.sum(-1) / (answers - 1).clamp(min=1)
    return per_prompt.sum() / (answers >= 2).sum().clamp(min=1)


def pair_accuracy(scores: Tensor, is_answer: Tensor | None = None) -> Tensor:
    """Share of answer pairs, within a row, that the scores order as the ranking does; a tie counts half.

    scores: (prompts, K) best answer first, is_answer as in `kwise_loss`. Returns a scalar in [0, 1], NaN if no pairs.
    """
    if is_answer is None:
        is_answer = torch.ones_like(scores, dtype=torch.bool)
    difference = scores[:, :, None] - scores[:, None, :]
    right = (difference > 0).float() + 0.5 * (difference == 0).float()
    is_pair = (is_answer[:, :, None] & is_answer[:, None, :]).triu(1)
    return right[is_pair].mean()
