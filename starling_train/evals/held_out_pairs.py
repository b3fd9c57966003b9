"""How good is a policy that learns from preferences now? Held-out pairs, answers to their prompts, and skills."""

from collections.abc import Sequence
from typing import Any

import torch

from starling_train.config.dpo import DpoConfig
from starling_train.evals import held_out as held_out_suite
from starling_train.evals.held_out import HeldOut
from starling_train.models.actors import Actors
from starling_train.models.budget import Budget
from starling_train.run.runtime import Runtime
from starling_train.training.dpo import update
from starling_train.training.dpo.update import EncodedRow


@torch.no_grad()
def evaluate(
    held_out: HeldOut,
    actors: Actors,
    pieces: Sequence[Sequence[EncodedRow]],
    config: DpoConfig,
    tokens: Budget,
    slots: Budget,
    runtime: Runtime,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """(`eval/*` metrics, rows for samples.jsonl). pieces: the held-out pairs, see `dpo_update.evaluate`.

    Prompts are answered as in `ppo`'s evaluation, with the same random numbers at every evaluation; nothing scores the
    answers but own functions.
    """
    metrics = update.evaluate(actors, pieces, config.dpo, tokens, runtime)
    rows: list[dict[str, Any]] = []
    if held_out.prompts:
        rollout, conversations = held_out_suite.draw(held_out, actors.policy, config, slots, runtime)
        more: list[dict[str, Any]] = [{} for _ in conversations]
        rows, measured = held_out_suite.described(held_out, rollout, conversations, more, runtime)
        metrics |= measured
    metrics |= held_out_suite.skills(held_out, actors.policy, config, slots, tokens, runtime)
    return metrics, rows[: config.logging.samples]
