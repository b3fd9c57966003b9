"""A step of DPO on pairs of answers, and its validation on held-out pairs."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from starling_train.config.dpo import DpoLossConfig
from starling_train.core.micro_batches import cut_packed
from starling_train.core.preference import dpo_losses
from starling_train.data import pairs
from starling_train.data.chat import Chat
from starling_train.data.pairs import PairedRow
from starling_train.models.budget import Budget
from starling_train.models.lone_policy import LonePolicy
from starling_train.models.micro_batch import micro_batch
from starling_train.run.runtime import Runtime
from starling_train.training.accumulate import add_gradients
from starling_train.training.optimizer import Optimizer
from starling_train.training.zero import ZeroOptimizer

MEASURED = ("loss", "chosen_reward", "rejected_reward", "chosen_logprob", "rejected_logprob")


@dataclass(frozen=True)
class EncodedRow:
    """A prompt with its answers as token ids, the (better, worse) pairs among them, and the reference's log-probs.

    place: among the rows of a step. prompts, responses: of each answer. reference: of each answer, nats; empty where
    it is still to be computed.
    """

    place: int
    prompts: list[list[int]]
    responses: list[list[int]]
    pairs: list[tuple[int, int]]
    reference: list[float]
    cut: int = 0

    def tokens(self) -> int:
        return sum(map(len, self.prompts)) + sum(map(len, self.responses))


class Updated(NamedTuple):
    """metrics: `dpo/` and `optim/`. skipped: places of the rows that the update was most likely skipped for."""

    metrics: dict[str, float]
    skipped: list[int]


def encode(row: PairedRow, place: int, chat: Chat, max_length: int) -> EncodedRow:
    """Encode a row in the chat's template, its answers cut at max_length tokens. See `EncodedRow`."""
    found = [pairs.encode(conversation, chat, max_length) for conversation in row.conversations()]
    prompts, responses = [prompt for prompt, _, _ in found], [response for _, response, _ in found]
    return EncodedRow(place, prompts, responses, row.pairs, row.reference, sum(cut for _, _, cut in found))


def update(
    net: LonePolicy,
    optimizer: Optimizer | ZeroOptimizer,
    rows: Sequence[EncodedRow],
    config: DpoLossConfig,
    runtime: Runtime | None = None,
    budget: Budget | None = None,
) -> Updated:
    """One optimizer step on the mean over the pairs of all processes; one that is not finite is not applied.

    rows: those of this process. budget: of tokens per micro-batch (the configuration's if None); when memory runs out,
    the step begins again with half.
    """
    runtime = runtime or Runtime()
    budget = budget or Budget("dpo.tokens_per_microbatch", config.tokens_per_microbatch)
    rows = [row for row in rows if row.pairs]
    found = add_gradients(
        net,
        optimizer,
        lambda tokens: list(micro_batches(rows, tokens)),
        lambda module, group: _loss(module, net, group, config),
        max(1.0, runtime.sum([sum(len(row.pairs) for row in rows)])[0]),
        [EncodedRow(-1, [[0], [0]], [[0], [0]], [(0, 1)], [0.0, 0.0])],
        budget,
        runtime,
    )
    lines = runtime.gather([line for part in found for line in part.tolist()])
    measured = means([line[1:] for line in lines])
    is_finite = math.isfinite(measured["loss"])
    norm = optimizer.step() if is_finite or optimizer.engine else optimizer.skip()
    metrics = {f"dpo/{name}": value for name, value in measured.items()}
    metrics |= {"optim/gradient_norm": norm, "optim/skipped": int(not optimizer.is_finite(norm))}
    return Updated(metrics, [] if optimizer.is_finite(norm) else _suspects(lines))


def _suspects(lines: list[list[float]]) -> list[int]:
    """Places of the rows whose own numbers are not finite; all of them where only the gradient is not."""
    wrong = {int(line[0]) for line in lines if not all(map(math.isfinite, line))}
    return sorted(wrong or {int(line[0]) for line in lines})


def _loss(
    module: nn.Module, net: LonePolicy, rows: Sequence[EncodedRow], config: DpoLossConfig
) -> tuple[Tensor, Tensor]:
    """(sum of the pairs' losses, place and `MEASURED` of every pair (pairs, 6) float64). module: net, or its engine."""
    logprobs = _answers(module, net, rows)
    offsets = torch.tensor([len(row.responses) for row in rows]).cumsum(0).tolist()
    chosen, rejected = (
        torch.tensor(
            [first + pair[side] for first, row in zip([0, *offsets], rows, strict=False) for pair in row.pairs]
        ).to(logprobs.device)
        for side in (0, 1)
    )
    reference = torch.tensor([value for row in rows for value in row.reference]).to(logprobs.device)
    found = compared(logprobs, reference, chosen, rejected, config)
    places = torch.tensor([row.place for row in rows for _ in row.pairs], dtype=torch.float64)
    return found[:, 0].sum(), torch.cat([places[:, None], found.detach().double().cpu()], 1)


def compared(logprobs: Tensor, reference: Tensor, chosen: Tensor, rejected: Tensor, config: DpoLossConfig) -> Tensor:
    """`MEASURED` of every pair, (pairs, 5), with gradients. logprobs, reference: of answers, which the others index."""
    losses = dpo_losses(
        logprobs[chosen],
        logprobs[rejected],
        reference[chosen],
        reference[rejected],
        config.beta,
        config.loss,
        config.label_smoothing,
    )
    return torch.stack([*losses, logprobs[chosen], logprobs[rejected]], 1)


def means(lines: Sequence[Sequence[float]]) -> dict[str, float]:
    """Means over pairs, whose lines are `MEASURED`; with the share in the right order, equal rewards half, and counts.

    NaN without pairs.
    """
    table = torch.tensor(lines, dtype=torch.float64).view(-1, len(MEASURED))
    margins = table[:, 1] - table[:, 2]
    right = (margins > 0).double() + 0.5 * (margins == 0).double()
    return dict(zip(MEASURED, table.mean(0).tolist(), strict=True)) | {
        "accuracy": float(right.mean()) if margins.isfinite().all() else math.nan,
        "margin": float(margins.mean()),
        "pairs": len(table),
    }


@torch.no_grad()
def logprobs_of(net: LonePolicy, rows: Sequence[EncodedRow], budget: Budget, runtime: Runtime) -> list[list[float]]:
    """Log-probability of every answer, nats, by row. rows: of all processes, which share them."""
    mine = runtime.share(rows)

    def compute(tokens: int) -> list[list[float]]:
        found: dict[int, list[float]] = {}
        for group in micro_batches([replace(row, place=place) for place, row in enumerate(mine)], tokens):
            parts = _answers(net, net, group).split([len(row.responses) for row in group])
            found |= {row.place: part.tolist() for row, part in zip(group, parts, strict=True)}
        return [found[place] for place in range(len(mine))]

    return runtime.gather(budget.attempt(compute))


def micro_batches(rows: Sequence[EncodedRow], tokens: int) -> Iterator[list[EncodedRow]]:
    """Rows of at most so many tokens together; a row is never cut, so that its pairs are compared in one pass."""
    for group in cut_packed([row.tokens() for row in rows], tokens):
        yield [rows[index] for index in group]


def _answers(module: nn.Module, net: LonePolicy, rows: Sequence[EncodedRow]) -> Tensor:
    """Log-probability of every answer of the rows, (answers,) float32."""
    responses = [ids for row in rows for ids in row.responses]
    batch = micro_batch([ids for row in rows for ids in row.prompts], responses, net.device)
    per_token = module(batch, net.start(batch))
    return torch.stack([part.sum() for part in per_token.split([len(ids) for ids in responses])])
