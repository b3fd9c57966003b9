"""A step of a reward model's training on ranked answers, and its validation."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from starling_train.config.rm import RankingConfig
from starling_train.core.micro_batches import cut_bundles_by_tokens
from starling_train.core.padding import padded
from starling_train.core.preference import PairCounts, count_pairs, kwise_losses
from starling_train.data.nectar import RankedRow
from starling_train.data.ranked import conversations, ranks
from starling_train.models.budget import Budget
from starling_train.models.reward.model import RewardModel
from starling_train.models.reward.net import RewardNet
from starling_train.run import skipped
from starling_train.run.runtime import Runtime
from starling_train.training.accumulate import accumulate
from starling_train.training.optimizer import Optimizer


@dataclass(frozen=True)
class EncodedRankedRow:
    """The answers to one prompt, best first: token ids of each whole conversation, and ranks (equal ones are tied)."""

    sequences: list[list[int]]
    ranks: list[int]

    def tokens(self) -> int:
        return sum(map(len, self.sequences))


def encode(rows: Sequence[RankedRow], model: RewardModel) -> list[EncodedRankedRow]:
    """Encode rows in the reward model's template and tokenizer, truncated on the left as in scoring."""

    def read(conversation: list[dict]) -> list[int]:
        ids = model.encode(conversation)
        return ids[: model.read_at(ids) + 1]  # nothing behind what the head reads has a part in its score

    return [EncodedRankedRow([read(c) for c in conversations(row)], ranks(row.answers)) for row in rows]


@dataclass(frozen=True)
class RankingSums:
    """Sums over the rows of a step or of the validation set. pairs: of the answers to a prompt."""

    rows: int
    loss: float
    scores: Tensor  # (answers,)
    totals: Tensor  # (rows,) sum of each row's scores
    pairs: PairCounts


def update(
    optimizer: Optimizer,
    rows: Sequence[EncodedRankedRow],
    config: RankingConfig,
    runtime: Runtime | None = None,
    budget: Budget | None = None,
) -> dict[str, float]:
    """Take one optimizer step; returns the `rm/` and `optim/` metrics. A gradient that is not finite is not applied.

    The loss is the mean over rows of (K-wise loss + centring x (sum of scores)^2): every row counts the same, whichever
    micro-batch it falls into, and its answers are never cut apart.

    rows: those of this process; the mean is over those of all.
    budget: of tokens per micro-batch (the configuration's if None); when memory runs out, the step begins again with
        half.
    """
    runtime = runtime or Runtime()
    budget = budget or Budget("rm.tokens_per_microbatch", config.tokens_per_microbatch)
    total = int(runtime.sum([len(rows)])[0])

    def losses(module: nn.Module, group: Sequence[EncodedRankedRow]) -> Iterator[tuple[Tensor, RankingSums]]:
        loss, sums = _loss(module, group, config.centring)
        yield loss / total, sums

    spare = [EncodedRankedRow([[0], [0]], [0, 1])]
    micro_batches = accumulate(optimizer, partial(_micro_batches, rows), losses, spare, budget)
    sums = _together(runtime.gather(micro_batches))
    norm = optimizer.step()
    return {
        "rm/loss": sums.loss / sums.rows,
        "rm/accuracy": sums.pairs.accuracy,
        "rm/score_mean": float(sums.scores.mean()),
        "rm/score_std": float(sums.scores.std(correction=0)),
        "rm/centring": float(sums.totals.square().mean()),
        "optim/gradient_norm": norm,
        "optim/skipped": int(not math.isfinite(norm)),
    }


def _loss(net: nn.Module, rows: Sequence[EncodedRankedRow], centring: float) -> tuple[Tensor, RankingSums]:
    """Return (the sum of the rows' losses, what metrics are made of)."""
    scores, is_answer, rank = _forward(net, rows)
    losses = kwise_losses(scores, is_answer, rank)
    totals = torch.where(is_answer, scores, 0.0).sum(-1)
    return (losses + centring * totals.square()).sum(), _sums(rows, losses, scores, is_answer)


@torch.no_grad()
def evaluate(
    net: RewardNet, rows: Sequence[EncodedRankedRow], config: RankingConfig, runtime: Runtime | None = None
) -> dict[str, float]:
    """Return the mean K-wise loss and pair accuracy, also by the distance of the two ranks; equal scores count half.

    rows: of all processes, which share them.
    """
    runtime = runtime or Runtime()
    groups = _micro_batches(runtime.shard(rows), config.tokens_per_microbatch)
    sums = _together(runtime.gather([_loss(net, group, 0.0)[1] for group in groups]))
    by_distance = {
        f"eval/preference_accuracy_distance_{distance}": right / pairs
        for distance, (right, pairs) in sums.pairs.by_distance.items()
    }
    return {
        "eval/kwise_loss": sums.loss / sums.rows,
        "eval/preference_accuracy": sums.pairs.accuracy,
    } | by_distance


def _micro_batches(rows: Sequence[EncodedRankedRow], tokens: int) -> Iterator[list[EncodedRankedRow]]:
    for group in cut_bundles_by_tokens([list(map(len, row.sequences)) for row in rows], tokens):
        yield [rows[index] for index in group]


def _forward(net: nn.Module, chosen: Sequence[EncodedRankedRow]) -> tuple[Tensor, Tensor, Tensor]:
    """Return (scores, is_answer, rank) of one micro-batch, each (rows, K)."""
    device = next(net.parameters()).device
    sequences = [ids for row in chosen for ids in row.sequences]
    # padded on the right, to which no real position attends
    ids, is_real = padded(sequences)
    flat = net(ids.to(device), is_real.long().to(device))
    counts = torch.tensor([len(row.sequences) for row in chosen])
    is_answer = torch.arange(int(counts.max()))[None, :] < counts[:, None]
    rank = torch.zeros(is_answer.shape, dtype=torch.long)
    rank[is_answer] = torch.tensor([rank for row in chosen for rank in row.ranks])
    is_answer = is_answer.to(device)
    # masked_scatter keeps the graph, and its backward is deterministic
    scores = torch.zeros(is_answer.shape, device=device).masked_scatter(is_answer, flat)
    return scores, is_answer, rank.to(device)


def _sums(rows: Sequence[EncodedRankedRow], losses: Tensor, scores: Tensor, is_answer: Tensor) -> RankingSums:
    scores = scores.detach()
    flat = scores[is_answer].cpu()  # row by row
    by_row = flat.split([len(row.sequences) for row in rows])
    pairs = count_pairs(map(Tensor.tolist, by_row), [row.ranks for row in rows])
    totals = torch.where(is_answer, scores, 0.0).sum(-1)
    loss = float(losses.detach().sum())
    return RankingSums(len(losses), loss, flat, totals.cpu(), pairs)


def _together(sums: Sequence[RankingSums]) -> RankingSums:
    return RankingSums(
        sum(one.rows for one in sums),
        sum(one.loss for one in sums),
        torch.cat([one.scores for one in sums]),
        torch.cat([one.totals for one in sums]),
        PairCounts.sum([one.pairs for one in sums]),
    )


def counts(
    rows: Sequence[EncodedRankedRow], truncated: int, shortened: int, runtime: Runtime
) -> tuple[int, int, int, int]:
    """Count (answers, tokens, answers that lost their beginning, conversations that did) of all processes' rows.

    rows: this process's.
    truncated: of its answers, likewise.
    shortened: of its conversations.
    runtime: adds up.
    """
    own = [sum(len(row.sequences) for row in rows), sum(row.tokens() for row in rows), truncated, shortened]
    answers, tokens, truncated, shortened = map(int, runtime.sum(own))
    return answers, tokens, truncated, shortened


def skipped_rows(step: int, batch: Sequence[RankedRow]) -> list[dict[str, Any]]:
    """Make rows for skipped.jsonl: every row of the step, because any may be why the update was skipped."""
    return skipped.rows(step, "update", range(len(batch)), [row.messages for row in batch])
