"""The update of one step: a few epochs of clipped PPO, or APA, over the experience."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from starling_train.config.sections import AlgorithmConfig
from starling_train.core.masked import explained_variance
from starling_train.core.micro_batches import cut_packed
from starling_train.core.ppo import PolicyLoss, apa_policy_loss, ppo_policy_loss, value_loss
from starling_train.models.actors import Actors
from starling_train.models.budget import Budget
from starling_train.models.micro_batch import MicroBatch, micro_batch
from starling_train.run.runtime import Runtime
from starling_train.training.optimizer import Optimizer
from starling_train.training.ppo.experience import Experience, positions
from starling_train.training.zero import ZeroOptimizer

Sums = dict[str, float]
NAMES = ("policy_loss", "entropy", "clipped", "approx_kl", "value_loss", "value_clipped", "first_ratio")


class Updated(NamedTuple):
    """metrics: `policy/`, `value/` and `optim/` of the step. skipped: for each skipped update, the sequences (indices
    into the rollout) that it most likely was skipped for."""

    metrics: dict[str, float]
    skipped: list[list[int]]


def update(
    actors: Actors,
    optimizer: Optimizer | ZeroOptimizer,
    experience: Experience,
    config: AlgorithmConfig,
    generator: torch.Generator,
    train_policy: bool = True,
    budget: Budget | None = None,
    runtime: Runtime | None = None,
) -> Updated:
    """Train on the experience.

    generator: of the order of sequences. train_policy=False: only the critic learns (critic_warmup_steps). budget: of
    tokens per micro-batch (the configuration's if None); when memory runs out, the mini-batch begins again with half.

    A mini-batch is drawn from the sequences of all processes, each sees to its own, and the loss is the mean over all
    real tokens, however they are spread and cut into micro-batches. An update whose loss or gradient is not finite is
    skipped and counted.
    """
    budget = budget or Budget("algorithm.tokens_per_microbatch", config.tokens_per_microbatch)
    runtime = runtime or Runtime()
    first_ratio: float | None = None
    totals: Sums = {}
    norms: list[float] = []
    skipped: list[list[int]] = []
    updates = 0
    for _ in range(config.epochs):
        order = torch.randperm(len(experience.token_counts), generator=generator)
        for minibatch in order.tensor_split(config.minibatches):
            places = minibatch.tolist()
            if not places:  # fewer sequences than mini-batches, after some were left out
                continue
            rows = [experience.row_at[place] for place in places if place in experience.row_at]
            count = sum(experience.token_counts[place] for place in places)
            if isinstance(optimizer, ZeroOptimizer):
                given = (actors, optimizer, experience, rows, config, train_policy)
                sums = budget.only_attempt(partial(_accumulate_zero, *given, count=count, runtime=runtime))
            else:
                add = partial(accumulate, actors, experience, rows, config, train_policy, count=count)
                sums = budget.attempt(add, undo=optimizer.drop_gradients)
            sums = _together(sums, runtime) | {"tokens": count}
            is_finite = math.isfinite(sums["policy_loss"] + sums["value_loss"])
            norm = optimizer.step() if is_finite or optimizer.engine else optimizer.skip()
            norms.append(norm)
            if not optimizer.is_finite(norm):
                skipped.append(_suspects(experience, rows))
            updates += 1
            first_ratio = sums["first_ratio"] if first_ratio is None else first_ratio
            for key in sums.keys() - {"first_ratio"}:
                totals[key] = totals.get(key, 0.0) + sums[key]
        if config.kl.stop is not None and updates and sums["approx_kl"] / sums["tokens"] > config.kl.stop:
            break
    if not updates:  # not one sequence had finite numbers
        norms, skipped, first_ratio = [optimizer.skip()], [[]], math.nan
    metrics = _metrics(totals, updates, experience, runtime) | {
        "policy/ratio_first": first_ratio,
        "optim/gradient_norm": max(norms),
        "optim/skipped": len(skipped),
    }
    return Updated(metrics, skipped)


def _metrics(totals: Sums, updates: int, experience: Experience, runtime: Runtime) -> dict[str, float]:
    """The means that follow from sums over all mini-batches, nan without any, and how well the values fit."""
    updates, tokens = updates or math.nan, totals.get("tokens", math.nan)
    totals = dict.fromkeys(NAMES, math.nan) | totals
    returns, mask = experience.returns, experience.is_response
    fit = explained_variance(runtime.moments(returns - experience.values, mask), runtime.moments(returns, mask))
    return {
        "policy/loss": totals["policy_loss"] / updates,
        "policy/entropy": totals["entropy"] / tokens,
        "policy/clip_fraction": totals["clipped"] / tokens,
        "policy/approx_kl": totals["approx_kl"] / tokens,
        "value/loss": totals["value_loss"] / updates,
        "value/explained_variance": float(fit),
        "value/clip_fraction": totals["value_clipped"] / tokens,
    }


def _together(sums: Sums, runtime: Runtime) -> Sums:
    """Sums over all processes; of the first ratio, the largest."""
    names = [name for name in NAMES if name != "first_ratio"]
    found = dict(zip(names, runtime.sum([sums.get(name, 0.0) for name in names]), strict=True))
    return found | {"first_ratio": runtime.maximum([sums.get("first_ratio", 0.0)])[0]}


def _suspects(experience: Experience, rows: list[int]) -> list[int]:
    """The sequences of a mini-batch whose own numbers are not finite; all of them where only the gradient is not."""
    per_token = (experience.logprobs, experience.reference, experience.values, experience.returns)
    finite = torch.stack([tensor[rows].isfinite().all(-1) for tensor in per_token]).all(0).tolist()
    return [row for row, is_fine in zip(rows, finite, strict=True) if not is_fine] or rows


def accumulate(
    actors: Actors,
    experience: Experience,
    rows: list[int],
    config: AlgorithmConfig,
    train_policy: bool = True,
    tokens: int | None = None,
    count: int | None = None,
) -> Sums:
    """Add the gradients of one mini-batch, micro-batch by micro-batch; returns the sums that metrics are made of.

    tokens: of a micro-batch at most, the configuration's number if None. count: real response tokens of the
    mini-batch, on all processes; those of `rows` if None.
    """
    count = int(experience.is_response[rows].sum()) if count is None else count
    found = []
    for chosen in _micro_batches(experience, rows, tokens or config.tokens_per_microbatch):
        batch, start, part = _prepared(actors, experience, chosen, config, count)
        found.append(_backward(actors, batch, start, part, train_policy))
    return _added(found)


def _accumulate_zero(
    actors: Actors,
    optimizer: ZeroOptimizer,
    experience: Experience,
    rows: list[int],
    config: AlgorithmConfig,
    train_policy: bool,
    tokens: int,
    count: int,
    runtime: Runtime,
) -> Sums:
    """`accumulate` through DeepSpeed, whose processes exchange gradients after every micro-batch: all take as many."""
    groups = list(_micro_batches(experience, rows, tokens))
    wanted = max(1, int(runtime.maximum([len(groups)])[0]))
    found = []
    for index in range(wanted):
        is_last = index == wanted - 1
        if index >= len(groups):
            outputs = optimizer.engine(*_nothing(actors, experience), train_policy)
            optimizer.backward(0.0 * (float(train_policy) * outputs.logprobs.sum() + outputs.values.sum()), is_last)
            continue
        batch, start, part = _prepared(actors, experience, groups[index], config, count)
        outputs = optimizer.engine(batch, start, train_policy)
        policy, value = part.policy(outputs.logprobs, outputs.entropy), part.value(outputs.values)
        loss = policy["policy_loss"] * float(train_policy) + config.value_coefficient * value["value_loss"]
        optimizer.backward(loss, is_last)
        found.append({key: tensor.detach() for key, tensor in (policy | value).items()})
    return _added(found)


def _nothing(actors: Actors, experience: Experience) -> tuple[MicroBatch, Tensor | None]:
    """A micro-batch for nothing but the exchange: of this process's own sequences none may be left, or fit."""
    batch = micro_batch([[0]], [[0]], experience.logprobs.device)
    if experience.prefix is None:
        return batch, None
    policy = actors.policy  # as for the others, without the layers below, whose weights ZeRO-3 would have to gather
    return batch, torch.zeros(1, policy.config.hidden_size, dtype=policy.dtype, device=policy.device)


def _micro_batches(experience: Experience, rows: list[int], tokens: int) -> Iterator[list[int]]:
    lengths = experience.rollout.lengths()
    for group in cut_packed([lengths[i] for i in rows], tokens):
        yield [rows[i] for i in group]


def _prepared(
    actors: Actors, experience: Experience, chosen: list[int], config: AlgorithmConfig, count: int
) -> tuple[MicroBatch, Tensor | None, "_Part"]:
    rollout, prefix, device = experience.rollout, experience.prefix, experience.logprobs.device
    batch = micro_batch([rollout.prompts[i] for i in chosen], [rollout.responses[i] for i in chosen], device)
    start = prefix.get(chosen) if prefix is not None else actors.start(batch)
    return batch, start, _Part(experience, positions(rollout, chosen, device), config, count)


def _added(found: list[dict[str, Tensor]]) -> Sums:
    # tensors until here: on a GPU every number that is read would wait for all work in flight
    if not found:
        return {}
    sums = {key: float(torch.stack([part[key] for part in found]).sum()) for key in found[0] if key != "largest_ratio"}
    return sums | {"first_ratio": float(found[0]["largest_ratio"])}


@dataclass(frozen=True)
class _Part:
    """What the losses of one micro-batch need besides the forward pass. index: its response tokens, flat."""

    experience: Experience
    index: tuple[Tensor, Tensor]
    config: AlgorithmConfig
    count: int  # real tokens of the whole mini-batch

    def policy(self, logprobs: Tensor, entropy: Tensor) -> dict[str, Tensor]:
        """Loss and sums over the real tokens; logprobs, entropy: (n,)."""
        old, advantages = self.experience.logprobs[self.index], self.experience.advantages[self.index]
        real = torch.ones_like(logprobs, dtype=torch.bool)
        found = _policy_loss(logprobs, old, advantages, real, self.config, self.count)
        return {
            "policy_loss": found.loss,
            "entropy": entropy.detach().sum(),
            "clipped": found.clipped,
            "approx_kl": found.approx_kl,
            "largest_ratio": found.largest_ratio,
        }

    def value(self, values: Tensor) -> dict[str, Tensor]:
        """The same for values (n,)."""
        old, returns = self.experience.values[self.index], self.experience.returns[self.index]
        real = torch.ones_like(values, dtype=torch.bool)
        found = value_loss(values, old, returns, real, self.config.value_clip, self.count)
        return {"value_loss": found.loss, "value_clipped": found.clipped}


def _backward(
    actors: Actors, batch: MicroBatch, start: Tensor | None, part: _Part, train_policy: bool
) -> dict[str, Tensor]:
    """Forward and backward of one micro-batch; returns detached losses and sums.

    A critic of its own comes after the policy is done, so that the activations of only one of them are held.
    """
    weight = part.config.value_coefficient
    if actors.critic is None:
        outputs = actors(batch, start, train_policy)
        policy, value = part.policy(outputs.logprobs, outputs.entropy), part.value(outputs.values)
        total = weight * value["value_loss"]
        (total + policy["policy_loss"] if train_policy else total).backward()
    else:
        with torch.set_grad_enabled(train_policy):
            policy = part.policy(*actors.policy_outputs(batch, start))
        if train_policy:
            policy["policy_loss"].backward()
        policy["policy_loss"] = policy["policy_loss"].detach()  # lets go of the policy's graph
        value = part.value(actors.values(batch, start))
        (weight * value["value_loss"]).backward()
    return {key: tensor.detach() for key, tensor in (policy | value).items()}


def _policy_loss(
    logprobs: Tensor, old: Tensor, advantages: Tensor, real: Tensor, config: AlgorithmConfig, count: int
) -> PolicyLoss:
    if config.name == "apa":
        return apa_policy_loss(logprobs, old, advantages, real, config.apa_lambda, count)
    return ppo_policy_loss(logprobs, old, advantages, real, config.clip, count)
