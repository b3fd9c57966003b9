"""How much likelier a policy finds preferred answers than the others, by its log-probabilities."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from starling_train.config.fields import UserError, named_in_errors
from starling_train.data.chat import Chat
from starling_train.data.preferences import Comparison
from starling_train.models.budget import Budget
from starling_train.models.causal_lm import CausalLM
from starling_train.models.sequence_logprobs import sequence_logprobs


@dataclass(frozen=True)
class Pair:
    """Token ids of the prompt with each answer, ends of turn included; start: where both answers begin."""

    chosen: list[int]
    rejected: list[int]
    start: int


@dataclass(frozen=True)
class Margin:
    """The mean margin over `pairs`, and the share of pairs with a margin above 0; a margin of 0 counts half.

    The margin of a pair is the mean log-probability of a token of the chosen answer minus that of the rejected one, in
    nats. Means, because by their sums the shorter answer would be the likelier one.
    """

    mean: float
    share: float
    pairs: int


def pairs(comparisons: Sequence[Comparison], chat: Chat, max_tokens: int) -> tuple[list[Pair], int]:
    """Return (the best answer of each comparison against the worst, how many exceed max_tokens and are left out).

    Raises UserError, without a file's name, for two answers of the same text, and if no pair is left.
    """
    encoded = [_pair(row, number, chat) for number, row in enumerate(comparisons, 1)]
    fitting = [pair for pair in encoded if max(len(pair.chosen), len(pair.rejected)) <= max_tokens]
    if not fitting:
        raise UserError(
            f"none of {len(encoded)} pairs has {max_tokens} tokens at most; give shorter ones, or a larger window"
        )
    return fitting, len(encoded) - len(fitting)


def _pair(row: Comparison, number: int, chat: Chat) -> Pair:
    best, worst = (row.conversations[row.ranks.index(rank)] for rank in (min(row.ranks), max(row.ranks)))
    if best[-1]["content"] == worst[-1]["content"]:
        raise UserError(
            f"comparison {number}: the preferred answer and the other have the same text; remove it, or repair it"
        )
    with named_in_errors(f"comparison {number}"):  # what the chat template refuses
        (prompt, chosen), (same, rejected) = chat.answered(best), chat.answered(worst)
    return Pair(prompt + chosen, same + rejected, len(prompt))


def evaluate(model: CausalLM, pairs: Sequence[Pair], budget: Budget) -> Margin:
    """Measure all pairs together. Log-probabilities are float32, sums in float64. budget: tokens per forward pass."""
    sequences = [ids for pair in pairs for ids in (pair.chosen, pair.rejected)]
    answers = [range(pair.start, len(ids)) for pair in pairs for ids in (pair.chosen, pair.rejected)]
    means = [float(part.mean(dtype=torch.float64)) for part in sequence_logprobs(model, sequences, budget, answers)]
    margins = [chosen - rejected for chosen, rejected in zip(means[::2], means[1::2], strict=True)]
    right = sum(1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins)
    return Margin(math.fsum(margins) / len(margins), right / len(margins), len(margins))
