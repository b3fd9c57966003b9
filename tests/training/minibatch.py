"""One mini-batch of a PPO update on its own: gradients, and the sums that metrics are made of."""

from functools import partial

from starling_train.config.sections import AlgorithmConfig, OptimConfig
from starling_train.models.actors import Actors
from starling_train.models.budget import Budget
from starling_train.run.runtime import Runtime
from starling_train.training.accumulate import accumulate
from starling_train.training.local import LocalOptimizer
from starling_train.training.ppo import update
from starling_train.training.ppo.experience import Experience


def add_gradients(
    actors: Actors, experience: Experience, rows: list[int], config: AlgorithmConfig
) -> update.MiniBatchSums:
    """Add the gradients of the mini-batch `rows`; returns its sums."""
    count = update.Counts(int(experience.is_response[rows].sum()), len(rows))
    optimizer = LocalOptimizer(actors, actors.groups(), OptimConfig())
    budget = Budget("algorithm.tokens_per_microbatch", config.tokens_per_microbatch)
    losses = update.losses_of(actors, experience, config, True, count)
    parts = accumulate(optimizer, partial(update._micro_batches, experience, rows), losses, [], budget)
    return update._over_processes(parts, Runtime(device="cpu"))


def optimizer_of(actors: Actors, **settings) -> LocalOptimizer:
    """An optimizer whose rates are those of step 1 of 10."""
    optimizer = LocalOptimizer(actors, actors.groups(), OptimConfig(**settings))
    optimizer.set_rates(1, 10)
    return optimizer
