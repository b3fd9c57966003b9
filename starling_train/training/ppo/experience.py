"""From responses and scores to what a step learns from: log-probs, values, rewards, advantages, per response token.

A prompt's responses are its group, `algorithm.responses_per_prompt` of them, which lie side by side on one process.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from starling_train.config.fields import UserError
from starling_train.config.ppo import PpoConfig
from starling_train.config.sections import AlgorithmConfig, RewardConfig, ScorerConfig
from starling_train.core.advantages import ADVANTAGES, token_rewards
from starling_train.core.masked import whiten
from starling_train.core.ppo import kl_estimate, truncated_weights
from starling_train.core.running_moments import RunningMoments
from starling_train.data.chat import Chat
from starling_train.data.prompts import Prompt
from starling_train.models.actors import Actors
from starling_train.models.budget import Budget
from starling_train.models.micro_batch import response_mask
from starling_train.rewards import terms
from starling_train.rewards.scorer import Scorer
from starling_train.rollout.generate import generate
from starling_train.rollout.hidden_states import SharedStates
from starling_train.rollout.responses import Rollout
from starling_train.run.runtime import Runtime
from starling_train.training.ppo.batches import Batches
from starling_train.training.ppo.mini_batches import StepSequences

Item = TypeVar("Item")


@dataclass
class Experience:
    """A scored rollout. Tensors are (sequences, longest response) float32 on the device, 0 on padding."""

    batches: Batches  # the rollout, and its micro-batches
    fit: Tensor  # (sequences,) bool: score, log-probs and values are finite; the step learns nothing from the others
    is_response: Tensor  # bool; all False for a sequence that is not fit
    logprobs: Tensor  # of the policy that drew the responses, rescored by the training forward
    reference: Tensor  # log-probs under the reference
    values: Tensor  # 0 without a critic, as the returns
    advantages: Tensor  # whitened over the whole batch, if the algorithm does
    returns: Tensor
    total: Tensor  # (sequences,): score, minus the KL penalty where it is in the reward
    kl_coefficient: float  # of the penalty in the loss, score units per nat; 0 where it is in the reward
    row_at: dict[
        int, int
    ]  # this process's sequences that are learned from, by their index among those of all processes
    token_counts: list[int]  # of the responses of all processes that are learned from, by index
    sequences: StepSequences  # those of all processes, by index: what mini-batches are drawn from
    # hidden states below the lowest layer that trains; None where nothing is shared
    shared_states: SharedStates | None = None

    @property
    def rollout(self) -> Rollout:
        """The responses, in the order of the rows."""
        return self.batches.rollout

    def drawn(self) -> Tensor | None:
        """Return the log-probs under which another engine drew the tokens; None where the live weights drew them."""
        rows = self.rollout.drawn_logprobs
        if rows is None:
            return None
        whole = torch.zeros(self.logprobs.shape)
        for row, numbers in enumerate(rows):
            whole[row, : len(numbers)] = torch.tensor(numbers)
        return whole.to(self.logprobs)

    def corrected(self, cap: float | None) -> "Experience":
        """Weigh each token's advantage as one of the policy's own draws, at most `cap`; not at all if that is None."""
        if cap is not None and (drawn := self.drawn()) is not None:
            weights = truncated_weights(self.logprobs, drawn, cap)
            self.advantages = (self.advantages * weights).where(self.is_response, 0.0)
        return self

    def kl_per_sequence(self) -> Tensor:
        """Return the k1 estimate of the KL to the reference, summed over each response: (sequences,), nats."""
        return kl_estimate(self.logprobs, self.reference).where(self.is_response, 0.0).sum(-1)


def draw(
    actors: Actors,
    chat: Chat,
    batch: Sequence[Prompt],
    config: PpoConfig,
    slots: Budget,
    step: int,
    runtime: Runtime,
) -> Rollout:
    """Draw the responses to each prompt of this process's share of a step, from the live weights.

    A prompt's are side by side.
    """
    runtime.seed_all("rollout", step)
    group = config.algorithm.responses_per_prompt
    ids = [prompt.ids for prompt in repeated(runtime.shard(batch), group)]
    return generate(
        actors.policy,
        chat,
        ids,
        config.rollout,
        keep_layer=layer_to_keep(actors, ids, config),
        budget=slots,
        indices=[group * one + of for one in runtime.shard(range(len(batch))) for of in range(group)],
    )


def repeated(items: Sequence[Item], group: int) -> list[Item]:
    """Return each item `group` times, side by side."""
    return [item for item in items for _ in range(group)]


def layer_to_keep(actors: Actors, prompts: Sequence[list[int]], config: PpoConfig) -> int | None:
    """Choose the layer whose inputs a rollout should keep (`rollout.generate`): the lowest that trains, if they fit.

    None where nothing is shared below it, or where prefix_device_gb is too little for the longest responses; the
    states are then computed when the rollout is scored.
    """
    shared = config.algorithm.responses_per_prompt if actors.shares_prompts else 1
    tokens = sum(map(len, prompts[::shared])) + len(prompts) * config.rollout.max_new_tokens
    size = tokens * actors.policy.config.get_text_config().hidden_size * actors.policy.dtype.itemsize
    fits = size <= config.algorithm.prefix_device_gb * 1e9
    return actors.lowest if actors.shares_states and fits else None


class TermScores(NamedTuple):
    """A term's scores of a step, unscaled, float64; nan where not finite.

    own: (sequences,) of this process.
    of_all: of all processes.
    """

    own: Tensor
    of_all: Tensor

    def finite(self) -> Tensor:
        """Return the finite ones of all processes."""
        return self.of_all[self.of_all.isfinite()]


class Scores(NamedTuple):
    """The reward model's scores of a step, unscaled.

    own: (sequences,) of this process; nan where not finite.
    of_all: the finite ones of all processes.
    terms: those of each term by name, where the reward is a sum.
    truncated: answers of all processes that were too long for the reward model.
    shortened: conversations of all processes that the reward model read without their beginning.
    """

    own: Tensor
    of_all: list[float]
    truncated: int
    shortened: int
    terms: Mapping[str, TermScores] = MappingProxyType({})


def score(
    reward_model: Scorer,
    conversations: list[list[dict]],
    runtime: Runtime,
    columns: Sequence[dict[str, Any]] | None = None,
) -> Scores:
    """Score this process's conversations. Raises UserError, on all processes, if no score is finite.

    reward_model: gives the scores.
    conversations: this process's.
    runtime: the processes.
    columns: of each conversation's row of the data, for a reward function.
    """
    before = reward_model.truncated, reward_model.shortened
    scores, of_terms = terms.scored(reward_model, conversations, columns)
    gathered = {name: _term_scores(values, runtime) for name, values in of_terms.items()}
    own = _finite_or_nan(torch.tensor(scores))
    everyones = runtime.gather(own.tolist())
    of_all = [score for score in everyones if not math.isnan(score)]
    if not of_all:
        raise _none_finite(len(everyones), gathered)
    truncated, shortened = runtime.sum([reward_model.truncated - before[0], reward_model.shortened - before[1]])
    return Scores(own, of_all, int(truncated), int(shortened), gathered)


def _finite_or_nan(scores: Tensor) -> Tensor:
    """Put nan in place of what is not finite: a reward model may give that for an odd answer."""
    return torch.where(scores.isfinite(), scores, torch.nan)


def _term_scores(scores: Sequence[float], runtime: Runtime) -> TermScores:
    own = _finite_or_nan(torch.tensor(scores, dtype=torch.float64))
    return TermScores(own, torch.tensor(runtime.gather(own.tolist()), dtype=torch.float64))


def _none_finite(count: int, of_terms: Mapping[str, TermScores]) -> UserError:
    """Return the error for a step without any score, which names the terms that lack some."""
    lacking = [
        f"reward.terms.{name} lacks {count - len(one.finite())}"
        for name, one in of_terms.items()
        if len(one.finite()) < count
    ]
    told = f" ({', '.join(lacking)})" if lacking else ""
    return UserError(f"reward: none of {count} scores is a finite number{told}; look at some with the command score")


class RewardScale:
    """What makes rewards of scores: the running moments of the sum, and of each term of a sum.

    config: the section.
    remember: keeps moments of a name in the run's state, and restores them (`Session.remember`).
    """

    def __init__(self, config: RewardConfig, remember: Callable[[str, RunningMoments], RunningMoments]):
        self._config = config
        self._moments = remember("scores", RunningMoments())
        self._of_terms = {name: remember(f"scores {name}", RunningMoments()) for name in sorted(config.terms)}

    def update(self, scores: Scores) -> None:
        """Take in a step's scores, of all processes; the terms' first, because the sum is of what is scaled by them."""
        for name, moments in self._of_terms.items():
            moments.update(scores.terms[name].finite().tolist())
        if self._of_terms:
            total = self._sum({name: one.of_all for name, one in scores.terms.items()})
            self._moments.update(total[total.isfinite()].tolist())
        else:
            self._moments.update(scores.of_all)

    def rewards(self, scores: Scores) -> Tensor:
        """Return this process's scores, scaled as the configuration says: (sequences,), nan where there is none."""
        own = self._sum({name: one.own for name, one in scores.terms.items()}) if self._of_terms else scores.own
        return normalise(own, self._moments, self._config)

    def _sum(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Add up the terms, each scaled by itself and times its weight: float32, as a reward model's own scores."""
        total = torch.zeros_like(next(iter(scores.values())))
        for name, moments in self._of_terms.items():
            term = self._config.terms[name]
            total += term.weight * normalise(scores[name], moments, term)
        return total.float()


def normalise(scores: Tensor, moments: RunningMoments, config: ScorerConfig) -> Tensor:
    """Centre and scale scores by the running moments and clip them, if the configuration says so."""
    if config.scale == "none":
        return scores
    scaled = (scores - moments.mean) / max(moments.std, 1e-6)
    return scaled.clamp(-config.clip, config.clip) if config.clip else scaled


def sequence_rewards(scores: Tensor, rollout: Rollout, config: AlgorithmConfig) -> Tensor:
    """Return the scaled scores minus the penalties for unfinished and for long responses."""
    unfinished = torch.tensor([not e for e in rollout.ended], dtype=scores.dtype)
    lengths = torch.tensor([len(r) for r in rollout.responses], dtype=scores.dtype)
    return scores - config.missing_eos_penalty * unfinished - config.length_penalty * lengths / 100.0


@torch.no_grad()
def make_experience(
    actors: Actors,
    rollout: Rollout,
    scores: Tensor,
    config: AlgorithmConfig,
    kl_coefficient: float,
    budget: Budget | None = None,
    runtime: Runtime | None = None,
    left_out: Sequence[bool] | None = None,
) -> Experience:
    """Rescore a rollout under policy, reference and critic, and estimate advantages, whitened over all processes.

    scores: (sequences,) each response's reward at its last token, scaled and with penalties applied; nan without one. A
        number that is not finite would make all advantages of the step nan: its sequence is left out.
    kl_coefficient: weight of the KL penalty, score units per nat.
    budget: of tokens per micro-batch (the configuration's if None); out of memory, all is scored again with half.
    left_out: sequences that are not learned from, though they count among the others to their prompt.
    """
    budget = budget or Budget("algorithm.tokens_per_microbatch", config.tokens_per_microbatch)
    runtime = runtime or Runtime()
    batches = Batches(rollout, actors.device, config.responses_per_prompt if actors.shares_prompts else 1)
    recorded = _recorded_in_rollout(actors, batches, config)

    def score(tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor, SharedStates | None]:
        # recorded states are read only and serve a repetition too; computed ones start anew, each sequence goes in once
        shared_states = _empty_states(batches, config) if recorded is None and actors.shares_states else recorded
        return *forward_all(actors, batches, tokens, shared_states), shared_states

    is_response, logprobs, reference, values, shared_states = budget.halving(score)
    scores = scores.to(logprobs)
    # whatever is not finite stays within its sequence until here; whitening would spread it to all
    fit = torch.stack([x.isfinite().all(-1) for x in (scores[:, None], logprobs, reference, values)]).all(0)
    is_response, scores = is_response & fit[:, None], torch.where(fit, scores, 0.0)
    penalty, in_loss = kl_estimate(logprobs, reference, config.kl.estimator), config.kl.where == "loss"
    rewards = token_rewards(scores, penalty, is_response, 0.0 if in_loss else kl_coefficient)
    estimator = ADVANTAGES[config.name]
    advantages, returns = estimator.of(rewards, values, is_response, config)
    if estimator.whitens:
        advantages = whiten(advantages, is_response, runtime.moments(advantages, is_response))
    is_used = fit if left_out is None else fit & ~torch.tensor(left_out, device=fit.device)
    everyones = _of_all_processes(rollout, is_used, config.responses_per_prompt, runtime)
    learned_from = [one for one in everyones if one.is_learned_from]
    return Experience(
        batches=batches,
        fit=fit,
        is_response=is_response,
        logprobs=logprobs,
        reference=reference,
        values=values,
        advantages=advantages,
        returns=returns,
        total=rewards.sum(-1),
        kl_coefficient=kl_coefficient if in_loss else 0.0,
        row_at={index: one.row for index, one in enumerate(learned_from) if one.rank == runtime.rank},
        token_counts=[one.response for one in learned_from],
        sequences=StepSequences.of(len(everyones), learned_from, config.responses_per_prompt),
        shared_states=shared_states,
    )


class _Sequence(NamedTuple):
    """A sequence as the other processes know it. response, tokens: its lengths without and with its prompt."""

    rank: int
    row: int
    response: int
    tokens: int
    is_learned_from: bool
    number: int = 0


def _of_all_processes(rollout: Rollout, learned_from: Tensor, group: int, runtime: Runtime) -> list[_Sequence]:
    """Return the sequences of all processes, numbered, in one order on all.

    `gather` interleaves as `shard` dealt the prompts out, so that it does not depend on the number of processes.
    """
    of_each = zip(rollout.responses, rollout.lengths(), learned_from.tolist(), strict=True)
    own = [
        _Sequence(runtime.rank, row, len(response), tokens, is_learned_from)
        for row, (response, tokens, is_learned_from) in enumerate(of_each)
    ]
    return [one._replace(number=number) for number, one in enumerate(runtime.gather(own, group))]


def _recorded_in_rollout(actors: Actors, batches: Batches, config: AlgorithmConfig) -> SharedStates | None:
    """Take the hidden states that were recorded during the rollout out of it; None without any."""
    rollout = batches.rollout
    if not rollout.entering or not actors.shares_states:
        return None
    shared_states = _empty_states(batches, config)
    while rollout.entering:  # one by one from the end: no state is held twice for long
        states = rollout.entering.pop()
        row = len(rollout.entering)
        if batches.group == 1:
            shared_states.put([row], states.whole())
            continue
        shared_states.put([row // batches.group], states.prompt)
        shared_states.put([batches.part_of(row)], states.rest)
    rollout.entering = None
    return shared_states


def _empty_states(batches: Batches, config: AlgorithmConfig) -> SharedStates:
    return SharedStates(batches.lengths(), batches.device, config.prefix_device_gb)


@torch.no_grad()
def forward_all(
    actors: Actors, batches: Batches, tokens_per_microbatch: int, shared_states: SharedStates | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Score every response token: (is_response, log-probs, reference log-probs, values), (sequences, longest response).

    Values are 0 without a critic.

    shared_states: takes up the hidden states that policy, reference and critic share.
    """
    rollout = batches.rollout
    is_response = response_mask(rollout.responses, actors.device)
    logprobs, reference, values = (torch.zeros(is_response.shape, device=actors.device) for _ in range(3))
    for rows in batches.cut(range(len(rollout)), tokens_per_microbatch):
        batch = batches.make(rows)
        if shared_states is not None and shared_states.is_full:
            states: Tensor | None = shared_states.get(batches.parts(rows, batch))
        else:
            states = actors.shared_states(batch)
            if shared_states is not None:
                assert states is not None, "there is a prefix only where layers are shared"
                shared_states.put(batches.parts(rows, batch), states)
        outputs = actors(batch, states)
        index = positions(rollout, rows, actors.device)
        logprobs[index] = outputs.logprobs
        if outputs.values is not None:
            values[index] = outputs.values
        reference[index] = actors.reference_logprobs(batch, states)
    return is_response, logprobs, reference, values


def positions(rollout: Rollout, rows: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the indices (row, token) of the response tokens of `rows`, in the order of a micro-batch's flat outputs.

    Computed on the host: reading them from a mask would wait for all work that a GPU has in flight.
    """
    lengths = [len(rollout.responses[row]) for row in rows]
    row = torch.tensor(rows).repeat_interleave(torch.tensor(lengths))
    token = torch.cat([torch.arange(length) for length in lengths])
    return row.to(device), token.to(device)
