"""A step of DPO on pairs of answers, and its validation on held-out pairs."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from starling_train.config.dpo import DpoLossConfig
from starling_train.core.micro_batches import cut_packed
from starling_train.core.preference import count_pairs, dpo_losses, drift
from starling_train.data import pairs
from starling_train.data.chat import Chat
from starling_train.data.pairs import PairedRow
from starling_train.models.actors import Actors
from starling_train.models.budget import Budget
from starling_train.models.micro_batch import micro_batch
from starling_train.run import skipped
from starling_train.run.runtime import Runtime
from starling_train.training.accumulate import accumulate
from starling_train.training.optimizer import Optimizer

MEASURED = ("loss", "chosen_reward", "rejected_reward", "chosen_logprob", "rejected_logprob")


@dataclass(frozen=True)
class EncodedPairedRow:
    """A prompt with its answers as token ids, the (better, worse) pairs among them, and the reference's log-probs.

    index: among the rows of a step.
    prompts, responses: of each answer.
    pairs: (better, worse) indices of answers.
    reference: of each answer, nats; empty where it is still to be computed.
    cut: how many answers were cut at max_length.
    """

    index: int
    prompts: list[list[int]]
    responses: list[list[int]]
    pairs: list[tuple[int, int]]
    reference: list[float]
    cut: int = 0

    def tokens(self) -> int:
        return sum(map(len, self.prompts)) + sum(map(len, self.responses))


class DpoUpdate(NamedTuple):
    """metrics: `dpo/` and `optim/`. skipped: indices of the rows that the update was most likely skipped for."""

    metrics: dict[str, float]
    skipped: list[int]


def encode(row: PairedRow, index: int, chat: Chat, max_length: int) -> EncodedPairedRow:
    """Encode a row in the chat's template, its answers cut at max_length tokens. See `EncodedPairedRow`."""
    encoded = [pairs.encode(conversation, chat, max_length) for conversation in row.conversations()]
    prompts, responses = [prompt for prompt, _, _ in encoded], [response for _, response, _ in encoded]
    return EncodedPairedRow(index, prompts, responses, row.pairs, row.reference, sum(cut for _, _, cut in encoded))


def update(
    actors: Actors,
    optimizer: Optimizer,
    rows: Sequence[EncodedPairedRow],
    config: DpoLossConfig,
    runtime: Runtime | None = None,
    budget: Budget | None = None,
    anchor: float = 0.0,
) -> DpoUpdate:
    """Take one optimizer step on the mean over the pairs of all processes; one that is not finite is not applied.

    actors: the policy.
    optimizer: takes the step.
    rows: those of this process.
    config: the loss.
    runtime: the processes.
    anchor: weight of `drift`, the mean over a pair's two answers, in the loss; 0 leaves it out.
    budget: of tokens per micro-batch (the configuration's if None); when memory runs out, the step begins again with
        half.
    """
    runtime = runtime or Runtime()
    budget = budget or Budget("dpo.tokens_per_microbatch", config.tokens_per_microbatch)
    rows = [row for row in rows if row.pairs]
    total = max(1.0, runtime.sum([sum(len(row.pairs) for row in rows)])[0])

    def losses(module: nn.Module, group: Sequence[EncodedPairedRow]) -> Iterator[tuple[Tensor, Tensor]]:
        loss, lines = _loss(module, actors, group, config, anchor)
        yield loss / total, lines

    spare = [EncodedPairedRow(-1, [[0], [0]], [[0], [0]], [(0, 1)], [0.0, 0.0])]
    measured_pairs = accumulate(optimizer, partial(micro_batches, rows), losses, spare, budget)
    lines = runtime.gather([line for pairs in measured_pairs for line in pairs.tolist()])
    measured = means([line[1 : 1 + len(MEASURED)] for line in lines])
    norm = optimizer.step(math.isfinite(measured["loss"]))
    is_applied = math.isfinite(norm)
    metrics = {f"dpo/{name}": value for name, value in measured.items()}
    if anchor:
        metrics["dpo/drift"] = sum(line[-1] for line in lines) / total
    metrics |= {"optim/gradient_norm": norm, "optim/skipped": int(not is_applied)}
    return DpoUpdate(metrics, [] if is_applied else _suspects(lines))


def _suspects(lines: list[list[float]]) -> list[int]:
    """Return the indices of the rows whose own numbers are not finite; all of them where only the gradient is not."""
    wrong = {int(line[0]) for line in lines if not all(map(math.isfinite, line))}
    return sorted(wrong or {int(line[0]) for line in lines})


def _loss(
    module: nn.Module,
    actors: Actors,
    rows: Sequence[EncodedPairedRow],
    config: DpoLossConfig,
    anchor: float,
) -> tuple[Tensor, Tensor]:
    """Return (the sum of the pairs' losses, index and `MEASURED` of every pair (pairs, 6) float64).

    module: what forward passes go through, `Optimizer.module`.
    actors: the policy.
    rows: of the micro-batch.
    config: the loss.
    anchor: as in `update`; with one, the pairs' drift is a seventh column.
    """
    logprobs = _answers(module, actors, rows)
    offsets = torch.tensor([len(row.responses) for row in rows]).cumsum(0).tolist()
    chosen, rejected = (
        torch.tensor(
            [first + pair[side] for first, row in zip([0, *offsets], rows, strict=False) for pair in row.pairs]
        ).to(logprobs.device)
        for side in (0, 1)
    )
    reference = torch.tensor([value for row in rows for value in row.reference]).to(logprobs.device)
    measured = compared(logprobs, reference, chosen, rejected, config)
    indices = torch.tensor([row.index for row in rows for _ in row.pairs], dtype=torch.float64)
    loss, columns = measured[:, 0].sum(), [indices[:, None], measured.detach().double().cpu()]
    if anchor:
        tokens = torch.tensor([len(ids) for row in rows for ids in row.responses]).to(logprobs.device)
        moved = drift(logprobs, reference, tokens)
        of_pairs = (moved[chosen] + moved[rejected]) / 2
        loss = loss + anchor * of_pairs.sum()
        columns.append(of_pairs.detach().double().cpu()[:, None])
    return loss, torch.cat(columns, 1)


def compared(logprobs: Tensor, reference: Tensor, chosen: Tensor, rejected: Tensor, config: DpoLossConfig) -> Tensor:
    """Return `MEASURED` of every pair, (pairs, 5), with gradients.

    logprobs, reference: of answers. chosen, rejected: indices of answers.
    """
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
    """Average over pairs, given lines of `MEASURED`; adds the share in the right order (equal rewards half) and counts.

    NaN without pairs.
    """
    table = torch.tensor(lines, dtype=torch.float64).view(-1, len(MEASURED))
    margins = table[:, 1] - table[:, 2]
    counts = count_pairs(table[:, 1:3].tolist(), [(1, 2)] * len(table))
    return dict(zip(MEASURED, table.mean(0).tolist(), strict=True)) | {
        "accuracy": counts.accuracy if margins.isfinite().all() else math.nan,
        "margin": float(margins.mean()),
        "pairs": len(table),
    }


@torch.no_grad()
def logprobs_of(
    actors: Actors, rows: Sequence[EncodedPairedRow], budget: Budget, runtime: Runtime
) -> list[list[float]]:
    """Return the log-probability of every answer, nats, by row. rows: of all processes, which share them."""
    mine = runtime.shard(rows)

    def compute(tokens: int) -> list[list[float]]:
        logprobs: dict[int, list[float]] = {}
        for group in micro_batches([replace(row, index=index) for index, row in enumerate(mine)], tokens):
            by_row = _answers(actors, actors, group).split([len(row.responses) for row in group])
            logprobs |= {row.index: values.tolist() for row, values in zip(group, by_row, strict=True)}
        return [logprobs[index] for index in range(len(mine))]

    return runtime.gather(budget.halving(compute))


def micro_batches(rows: Sequence[EncodedPairedRow], tokens: int) -> Iterator[list[EncodedPairedRow]]:
    """Yield rows of at most `tokens` together; a row is never cut, so that its pairs are compared in one pass."""
    for group in cut_packed([row.tokens() for row in rows], tokens):
        yield [rows[index] for index in group]


def _answers(module: nn.Module, actors: Actors, rows: Sequence[EncodedPairedRow]) -> Tensor:
    """Return the log-probability of every answer of the rows, (answers,) float32."""
    responses = [ids for row in rows for ids in row.responses]
    batch = micro_batch([ids for row in rows for ids in row.prompts], responses, actors.device)
    per_token = module(batch, actors.shared_states(batch)).logprobs
    return torch.stack([values.sum() for values in per_token.split([len(ids) for ids in responses])])


def counts(rows: Sequence[EncodedPairedRow], runtime: Runtime) -> tuple[int, int, int]:
    """Count (answers, tokens, answers cut at max_length) of the rows of all processes."""
    own = [sum(len(row.responses) for row in rows), sum(row.tokens() for row in rows), sum(row.cut for row in rows)]
    answers, tokens, cut = map(int, runtime.sum(own))
    return answers, tokens, cut


def skipped_rows(step: int, indices: Sequence[int], batch: Sequence[PairedRow]) -> list[dict[str, Any]]:
    """Make rows for skipped.jsonl: the better conversation of each row that an update was skipped for."""
    return [row for i in indices for row in skipped.rows(step, "update", [0], [batch[i].conversations()[0]])]
