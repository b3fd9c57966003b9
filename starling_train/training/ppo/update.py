"""The update of one step: a few epochs of the algorithm's loss over the experience."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from starling_train.config.sections import AlgorithmConfig
from starling_train.core.masked import explained_variance, weighted_sum
from starling_train.core.ppo import LOSSES, MEANS, RATIOS, drift, kl_estimate, value_loss
from starling_train.models.actors import Actors
from starling_train.models.budget import Budget
from starling_train.models.micro_batch import MicroBatch, micro_batch
from starling_train.run.runtime import Runtime
from starling_train.training.accumulate import Losses, accumulate
from starling_train.training.optimizer import Optimizer
from starling_train.training.ppo import mini_batches
from starling_train.training.ppo.experience import Experience, positions

MiniBatchSums = dict[str, float]
Index = tuple[Tensor, Tensor]  # (row, token) of response tokens in the experience's tensors
OfLoss = tuple[Tensor, dict[str, Tensor]]  # a loss, and the sums that metrics are made of
OF_POLICY = ("policy_loss", "entropy", "clipped", "approx_kl", "kl_loss")
NAMES = (*OF_POLICY, "value_loss", "value_clipped")


class Counts(NamedTuple):
    """What losses are means over: response tokens, and responses, of a whole mini-batch, of all processes."""

    tokens: int
    sequences: int


class PpoUpdate(NamedTuple):
    """The result of a step's update.

    metrics: `policy/`, `value/` and `optim/` of the step.
    skipped: for each skipped update, the sequences (indices into the rollout) that it was most likely skipped for.
    """

    metrics: dict[str, float]
    skipped: list[list[int]]


def update(
    actors: Actors,
    optimizer: Optimizer,
    experience: Experience,
    config: AlgorithmConfig,
    generator: torch.Generator,
    train_policy: bool = True,
    budget: Budget | None = None,
    runtime: Runtime | None = None,
) -> PpoUpdate:
    """Train on the experience.

    generator: of the mini-batches.
    train_policy: False where only the critic learns (critic_warmup_steps).
    budget: of tokens per micro-batch (the configuration's if None); when memory runs out, the mini-batch begins again
        with half.

    A mini-batch has sequences of all processes, about as many tokens of each (`mini_batches`). Each process handles its
    own, and the loss is the mean over all real tokens, however they are sharded and cut into micro-batches. An update
    whose loss or gradient is not finite is skipped and counted.
    """
    budget = budget or Budget("algorithm.tokens_per_microbatch", config.tokens_per_microbatch)
    runtime = runtime or Runtime()
    minibatches: list[MiniBatchSums] = []
    norms: list[float] = []
    skipped: list[list[int]] = []
    for _ in range(config.epochs):
        # the generator is alike on all processes: they draw the same, over the sequences of all of them; fewer than
        # configured where there are fewer sequences, after some were left out
        for indices in mini_batches.draw(experience.sequences, config.minibatches, generator):
            # this process's sequences of the mini-batch, perhaps none: it still takes part in every exchange
            rows = [experience.row_at[index] for index in indices if index in experience.row_at]
            # over all processes: every loss is divided by this, so that the sum of all gradients is that of the mean
            count = Counts(sum(experience.token_counts[index] for index in indices), len(indices))
            losses = losses_of(actors, experience, config, train_policy, count)
            nothing: list[int] = []
            sums = accumulate(optimizer, partial(_micro_batches, experience, rows), losses, nothing, budget)
            minibatches.append(_over_processes(sums, runtime) | {"tokens": count.tokens})
            # a loss that is not finite poisons every gradient; so does a gradient that overflows, which `step` sees
            norms.append(optimizer.step(math.isfinite(minibatches[-1]["policy_loss"] + minibatches[-1]["value_loss"])))
            if not math.isfinite(norms[-1]):
                skipped.append(_suspects(experience, rows))
        # the policy has moved far enough from the one that drew the responses: further epochs would fit noise
        if config.kl.stop is not None and minibatches and _kl_per_token(minibatches[-1]) > config.kl.stop:
            break
    if not minibatches and not runtime.sum([float(experience.fit.sum())])[0]:  # not one sequence had finite numbers
        norms, skipped = [math.nan], [[]]
    metrics = _metrics(minibatches, experience, actors.value_head is not None, runtime) | {
        "policy/ratio_first": minibatches[0]["first_ratio"] if minibatches else math.nan,
        "optim/gradient_norm": max(norms, default=0.0),  # 0: none was learned from
        "optim/skipped": len(skipped),
    }
    return PpoUpdate(metrics, skipped)


def _metrics(
    minibatches: list[MiniBatchSums], experience: Experience, has_critic: bool, runtime: Runtime
) -> dict[str, float]:
    """Return the means over all mini-batches, nan without any, and how well the values of a critic fit."""
    totals = {name: _total(minibatches, name) for name in (*NAMES, "tokens")}
    updates, tokens = len(minibatches) or math.nan, totals["tokens"]
    metrics = {
        "policy/loss": totals["policy_loss"] / updates,
        "policy/entropy": totals["entropy"] / tokens,
        "policy/clip_fraction": totals["clipped"] / tokens,
        "policy/approx_kl": totals["approx_kl"] / tokens,
    }
    if experience.kl_coefficient:
        metrics["policy/kl_loss"] = totals["kl_loss"] / updates
    if not has_critic:
        return metrics
    returns, mask = experience.returns, experience.is_response
    fit = explained_variance(runtime.moments(returns - experience.values, mask), runtime.moments(returns, mask))
    return metrics | {
        "value/loss": totals["value_loss"] / updates,
        "value/explained_variance": float(fit),
        "value/clip_fraction": totals["value_clipped"] / tokens,
    }


def _kl_per_token(sums: MiniBatchSums) -> float:
    return sums["approx_kl"] / sums["tokens"]


def _total(minibatches: list[MiniBatchSums], name: str) -> float:
    total = 0.0 if minibatches else math.nan
    for sums in minibatches:
        total += sums[name]
    return total


def _over_processes(micro_batches: list[dict[str, Tensor]], runtime: Runtime) -> MiniBatchSums:
    """Add up the sums of all micro-batches of all processes. `first_ratio`: largest |ratio - 1| of any first one."""
    # tensors until here: on a GPU every number that is read would wait for all work in flight
    own = {name: [sums[name] for sums in micro_batches if name in sums] for name in NAMES}
    numbers = [float(torch.stack(own[name]).sum()) if own[name] else 0.0 for name in NAMES]
    ratios = [sums["largest_ratio"] for sums in micro_batches if "largest_ratio" in sums]
    first = float(ratios[0]) if ratios else 0.0
    return dict(zip(NAMES, runtime.sum(numbers), strict=True)) | {"first_ratio": runtime.maximum([first])[0]}


def _suspects(experience: Experience, rows: list[int]) -> list[int]:
    """Return a mini-batch's sequences whose own numbers are not finite; all of them if only the gradient is not."""
    per_token = (experience.logprobs, experience.reference, experience.values, experience.returns)
    finite = torch.stack([tensor[rows].isfinite().all(-1) for tensor in per_token]).all(0).tolist()
    return [row for row, is_fine in zip(rows, finite, strict=True) if not is_fine] or rows


def losses_of(
    actors: Actors,
    experience: Experience,
    config: AlgorithmConfig,
    train_policy: bool,
    count: Counts,
) -> Losses[list[int], dict[str, Tensor]]:
    """Return the losses of a micro-batch of sequences (rows of the rollout), for `accumulate`.

    count: of the whole mini-batch, which the losses are a mean over.
    """
    policy_loss, critic_loss = _policy_loss(experience, config, count), _critic_loss(experience, config, count)

    def losses(module: nn.Module, rows: list[int]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        if not rows:  # `accumulate` weighs it zero: a graph through all trainable tensors, for the others' exchange
            outputs = module(*_spare(actors, experience), train_policy)
            values = 0.0 if outputs.values is None else outputs.values.sum()
            yield float(train_policy) * outputs.logprobs.sum() + values, {}
            return
        batch, states = _prepared(actors, experience, rows)
        at = positions(experience.rollout, rows, experience.logprobs.device)
        if actors.critic is not None and module is actors:
            # A critic of its own comes after the policy is done, so that the activations of only one are held.
            # DeepSpeed's wrapper needs one forward and one backward pass a micro-batch instead.
            with torch.set_grad_enabled(train_policy):
                loss, sums = policy_loss(*actors.policy_outputs(batch, states), rows, at)
            if train_policy:
                yield loss, sums  # `accumulate` back-propagates it before it asks for the next
            del loss  # and with it the policy's graph, before the critic makes its own
            loss, value_sums = critic_loss(actors.values(batch, states), at)
            yield loss, value_sums if train_policy else sums | value_sums
            return
        outputs = module(batch, states, train_policy)
        loss, sums = policy_loss(outputs.logprobs, outputs.entropy, rows, at)
        if outputs.values is None:
            yield loss, sums
            return
        critic, value_sums = critic_loss(outputs.values, at)
        yield critic + loss if train_policy else critic, sums | value_sums

    return losses


def _policy_loss(experience: Experience, config: AlgorithmConfig, count: Counts) -> Callable[..., OfLoss]:
    """Return the policy's loss: (log-probs, entropy, rows, their positions) -> loss and sums.

    Log-probs and entropy are flat, (response tokens,), as the model gives them: no padding.
    """
    loss_of, mean = LOSSES[config.name], MEANS[config.loss_mean]
    lengths, divisor = [len(response) for response in experience.rollout.responses], mean.divisor(*count)
    weights = torch.tensor([mean.weight(length, config.loss_length) for length in lengths])
    weights = weights.to(experience.logprobs.device)

    def policy_loss(logprobs: Tensor, entropy: Tensor, rows: list[int], at: Index) -> OfLoss:
        log_ratio, weight = logprobs - experience.logprobs[at], weights[at[0]]
        counted = RATIOS[config.ratio](log_ratio, [lengths[row] for row in rows])
        surrogate = loss_of(counted, experience.advantages[at], weight, config, divisor)
        loss, drifted = surrogate.loss, drift(log_ratio)
        sums = {
            "entropy": entropy.detach().sum(),
            "clipped": surrogate.clipped,
            "approx_kl": drifted.approx_kl,
            "largest_ratio": drifted.largest_ratio,
        }
        if experience.kl_coefficient:
            penalty = kl_estimate(logprobs, experience.reference[at], config.kl.estimator)
            kl_loss = experience.kl_coefficient * weighted_sum(penalty, weight) / divisor
            loss, sums["kl_loss"] = loss + kl_loss, kl_loss.detach()
        return loss, sums | {"policy_loss": loss.detach()}

    return policy_loss


def _critic_loss(experience: Experience, config: AlgorithmConfig, count: Counts) -> Callable[..., OfLoss]:
    """Return the critic's loss: (values, their positions) -> loss and sums; values are flat, too."""

    def critic_loss(values: Tensor, at: Index) -> OfLoss:
        old, returns = experience.values[at], experience.returns[at]
        is_real = torch.ones_like(values, dtype=torch.bool)
        result = value_loss(values, old, returns, is_real, config.value_clip, count.tokens)
        sums = {"value_loss": result.loss.detach(), "value_clipped": result.clipped}
        return config.value_coefficient * result.loss, sums

    return critic_loss


def _spare(actors: Actors, experience: Experience) -> tuple[MicroBatch, Tensor | None]:
    """Make a micro-batch for nothing but the exchange: this process may have no sequence left, or none that is fit."""
    batch = micro_batch([[0]], [[0]], experience.logprobs.device)
    if experience.shared_states is None:
        return batch, None
    policy = actors.policy  # as for the others, without the layers below, whose weights ZeRO-3 would have to gather
    return batch, torch.zeros(1, policy.config.get_text_config().hidden_size, dtype=policy.dtype, device=policy.device)


def _micro_batches(experience: Experience, rows: list[int], tokens: int) -> Iterator[list[int]]:
    yield from experience.batches.cut(rows, tokens)


def _prepared(actors: Actors, experience: Experience, rows: list[int]) -> tuple[MicroBatch, Tensor | None]:
    """Make the micro-batch of some rows, and the hidden states that its passes start from."""
    batches, shared_states = experience.batches, experience.shared_states
    batch = batches.make(rows)
    if shared_states is None:
        return batch, actors.shared_states(batch)
    return batch, shared_states.get(batches.parts(rows, batch))
