"""How good is a policy that learns from preferences now? Held-out pairs, answers to their prompts, and skills."""

from collections.abc import Sequence
from typing import Any

import torch

from starling_train.config.dpo import DpoConfig, DpoLossConfig
from starling_train.evals.held_out import HeldOut, described, draw
from starling_train.models.actors import Actors
from starling_train.models.budget import Budget
from starling_train.run.runtime import Runtime
from starling_train.training.dpo import update
from starling_train.training.dpo.update import EncodedPairedRow, compared, means
from starling_train.training.measured import Measured


@torch.no_grad()
def evaluate(
    held_out: HeldOut,
    actors: Actors,
    pieces: Sequence[Sequence[EncodedPairedRow]],
    config: DpoConfig,
    tokens: Budget,
    slots: Budget,
    runtime: Runtime,
) -> Measured:
    """Measure the policy on held-out pairs, prompts and suites.

    Prompts are answered as in `ppo`'s evaluation, with the same random numbers at every evaluation; only the user's own
    functions score the answers.

    held_out: prompts, functions and suites.
    actors: the policy.
    pieces: the held-out pairs, see `pair_metrics`.
    config: the run's configuration.
    tokens: tokens per forward pass.
    slots: sequences side by side.
    runtime: the processes that share the work.
    """
    metrics = pair_metrics(actors, pieces, config.dpo, tokens, runtime)
    rows: list[dict[str, Any]] = []
    if held_out.prompts:
        rollout, conversations = draw(held_out, actors.policy, config, slots, runtime)
        more: list[dict[str, Any]] = [{} for _ in conversations]
        rows, measured = described(held_out, rollout, conversations, more, runtime)
        metrics |= measured
    skills = held_out.skills(actors.policy, slots, tokens, runtime)
    values = held_out.values(rows) | skills.values
    return Measured(metrics | skills.metrics, rows[: config.logging.samples], skills.cases, values)


def pair_metrics(
    actors: Actors,
    pieces: Sequence[Sequence[EncodedPairedRow]],
    config: DpoLossConfig,
    budget: Budget,
    runtime: Runtime,
) -> dict[str, float]:
    """Measure the rewards of held-out pairs: `eval/*` metrics.

    actors: the policy.
    pieces: the rows, with their reference log-probabilities, in the groups in which those were computed: the untrained
        policy then has the same log-probabilities to the last bit.
    config: the loss.
    budget: tokens per forward pass.
    runtime: the processes that share the rows.
    """
    lines: list[list[float]] = []
    for rows in pieces:
        for row, logprobs in zip(rows, update.logprobs_of(actors, rows, budget, runtime), strict=True):
            if row.pairs:
                chosen, rejected = torch.tensor(row.pairs).T
                reference = torch.tensor(row.reference)
                lines += compared(torch.tensor(logprobs), reference, chosen, rejected, config).tolist()
    measured = means(lines)
    return {
        "eval/loss": measured["loss"],
        "eval/preference_accuracy": measured["accuracy"],
        "eval/reward_margin": measured["margin"],
        "eval/chosen_reward": measured["chosen_reward"],
        "eval/rejected_reward": measured["rejected_reward"],
    }
