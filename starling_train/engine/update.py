"""The update of one step: a few epochs of clipped PPO, or APA, over the experience."""

import torch
from torch import Tensor

from starling_train.config import AlgorithmConfig
from starling_train.core.batching import cut_by_tokens
from starling_train.core.masked import explained_variance
from starling_train.core.ppo import PolicyLoss, apa_policy_loss, ppo_policy_loss, value_loss
from starling_train.engine.batching import micro_batch
from starling_train.engine.experience import Experience, positions
from starling_train.engine.optim import Optimizer
from starling_train.models.actors import Actors, Outputs

Sums = dict[str, float]


def update(
    actors: Actors,
    optimizer: Optimizer,
    experience: Experience,
    config: AlgorithmConfig,
    generator: torch.Generator,
    train_policy: bool = True,
) -> dict[str, float]:
    """Train on the experience; returns the `policy/`, `value/` and `optim/` metrics of the step.

    generator: of the order of sequences. train_policy=False: only the critic learns (critic_warmup_steps).
    A mini-batch's loss is the mean over its real tokens, however it is cut into micro-batches. An update whose
    gradient is not finite is skipped and counted.
    """
    first_ratio: float | None = None
    totals: Sums = {}
    norms: list[float] = []
    skipped = updates = 0
    for _ in range(config.epochs):
        order = torch.randperm(len(experience.rollout), generator=generator)
        for minibatch in order.tensor_split(config.minibatches):
            sums = accumulate(actors, experience, minibatch.tolist(), config, train_policy)
            norm = optimizer.step()
            norms.append(norm)
            skipped += not optimizer.is_finite(norm)
            updates += 1
            first_ratio = sums.pop("first_ratio") if first_ratio is None else first_ratio
            for key in sums.keys() - {"first_ratio"}:
                totals[key] = totals.get(key, 0.0) + sums[key]
        if config.kl.stop is not None and sums["approx_kl"] / sums["tokens"] > config.kl.stop:
            break
    tokens = totals["tokens"]
    fit = explained_variance(experience.values, experience.returns, experience.is_response)
    return {
        "policy/loss": totals["policy_loss"] / updates,
        "policy/entropy": totals["entropy"] / tokens,
        "policy/clip_fraction": totals["clipped"] / tokens,
        "policy/approx_kl": totals["approx_kl"] / tokens,
        "policy/ratio_first": first_ratio,
        "value/loss": totals["value_loss"] / updates,
        "value/explained_variance": float(fit),
        "value/clip_fraction": totals["value_clipped"] / tokens,
        "optim/gradient_norm": max(norms),
        "optim/skipped": skipped,
    }


def accumulate(
    actors: Actors, experience: Experience, rows: list[int], config: AlgorithmConfig, train_policy: bool = True
) -> Sums:
    """Add the gradients of one mini-batch, micro-batch by micro-batch; returns the sums that metrics are made of."""
    rollout = experience.rollout
    lengths = rollout.lengths()
    count = int(experience.is_response[rows].sum())
    sums: Sums = {"tokens": count}
    for group in cut_by_tokens([lengths[i] for i in rows], config.tokens_per_microbatch):
        chosen = [rows[i] for i in group]
        batch = micro_batch(
            [rollout.prompts[i] for i in chosen], [rollout.responses[i] for i in chosen], experience.logprobs.device
        )
        outputs = actors(batch, train_policy=train_policy)
        losses = _losses(outputs, experience, positions(experience.is_response, chosen), config, count)
        total = config.value_coefficient * losses["value_loss"]
        if train_policy:
            total = total + losses["policy_loss"]
        total.backward()
        sums.setdefault("first_ratio", float(losses.pop("largest_ratio")))
        for key, value in losses.items():
            sums[key] = sums.get(key, 0.0) + float(value.detach())
    return sums


def _losses(
    outputs: Outputs, experience: Experience, index: tuple[Tensor, Tensor], config: AlgorithmConfig, count: int
) -> dict[str, Tensor]:
    """Losses and sums over the real tokens of one micro-batch; everything here is flat, (n,)."""
    real = torch.ones_like(outputs.logprobs, dtype=torch.bool)
    old, advantages = experience.logprobs[index], experience.advantages[index]
    policy = _policy_loss(outputs.logprobs, old, advantages, real, config, count)
    value = value_loss(
        outputs.values, experience.values[index], experience.returns[index], real, config.value_clip, count
    )
    return {
        "policy_loss": policy.loss,
        "value_loss": value.loss,
        "entropy": outputs.entropy.detach().sum(),
        "clipped": policy.clipped,
        "approx_kl": policy.approx_kl,
        "value_clipped": value.clipped,
        "largest_ratio": policy.largest_ratio,
    }


def _policy_loss(
    logprobs: Tensor, old: Tensor, advantages: Tensor, real: Tensor, config: AlgorithmConfig, count: int
) -> PolicyLoss:
    if config.name == "apa":
        return apa_policy_loss(logprobs, old, advantages, real, config.apa_lambda, count)
    return ppo_policy_loss(logprobs, old, advantages, real, config.clip, count)
