"""How good is the policy now? Held-out prompts scored, skills measured, the same way at every evaluation."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from starling_train.config.dpo import DpoConfig
from starling_train.config.fields import UserError
from starling_train.config.ppo import PpoConfig
from starling_train.core.ppo import kl_estimate
from starling_train.data.chat import Chat
from starling_train.data.conversations import with_answer
from starling_train.data.prompts import Prompt
from starling_train.evals import registry
from starling_train.evals.suite import Skill
from starling_train.models.actors import Actors
from starling_train.models.budget import Budget, Budgets
from starling_train.models.causal_lm import CausalLM
from starling_train.rewards import terms
from starling_train.rewards.scorer import Scorer
from starling_train.rollout.generate import generate
from starling_train.rollout.responses import Rollout
from starling_train.run.runtime import Runtime
from starling_train.training.measured import CaseValue, CaseValues, Measured
from starling_train.training.ppo.batches import Batches
from starling_train.training.ppo.experience import forward_all

Measure = Callable[[list[list[dict]]], list[float]]


@dataclass
class HeldOut:
    """Everything an evaluation needs, read and checked before training starts.

    measures: own functions of conversations, by name.
    suites: the skills of the requested suites.
    """

    prompts: list[Prompt]
    chat: Chat
    measures: dict[str, Measure]
    suites: list[Skill]

    @classmethod
    def from_config(cls, config: PpoConfig | DpoConfig, prompts: list[Prompt], chat: Chat) -> "HeldOut":
        """Read what the configuration names. Raises UserError for missing files and functions."""
        measures = {name: _find(name, target) for name, target in config.evaluation.functions.items()}
        return cls(prompts, chat, measures, registry.skills(config, chat))

    def skills(self, policy: CausalLM, slots: Budget, tokens: Budget, runtime: Runtime) -> Measured:
        """Measure the requested suites: `eval/*` metrics, and the cases that they are made of.

        policy: the model.
        slots: sequences side by side.
        tokens: tokens per forward pass.
        runtime: the processes that share the work.
        """
        parts = [skill(policy, slots, tokens, runtime) for skill in self.suites]
        metrics = {name: value for part in parts for name, value in part.metrics.items()}
        cases = {name: outcomes for part in parts for name, outcomes in part.cases.items()}
        return Measured(metrics, [], cases, {name: values for part in parts for name, values in part.values.items()})

    def values(self, rows: list[dict[str, Any]]) -> dict[str, CaseValues]:
        """Return what the user's functions gave to each answer. rows: of all processes."""
        return {
            f"eval/{name}_mean": {str(i): CaseValue(float(row[name])) for i, row in enumerate(rows)}
            for name in self.measures
        }


def _find(name: str, target: str) -> Measure:
    module, _, function = target.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"evaluation.functions.{name}: cannot import {target}: {error}; check the name") from error


@torch.no_grad()
def evaluate(
    held_out: HeldOut,
    actors: Actors,
    reward_model: Scorer,
    config: PpoConfig,
    runtime: Runtime,
    budgets: Budgets,
) -> Measured:
    """Measure the policy on the held-out prompts and the suites.

    Responses are sampled as in training, with the same random numbers at every evaluation; scores are the reward
    model's own, unscaled. Function calling is answered greedily, in percent; perplexity is computed on the suite's
    text.

    held_out: prompts, functions and suites.
    actors: policy and reference.
    reward_model: scores the answers.
    config: the run's configuration.
    runtime: the processes that share the work.
    budgets: of sequences side by side, and of tokens per forward pass.
    """
    rollout, conversations = draw(held_out, actors.policy, config, budgets.slots, runtime)
    columns = [prompt.columns for prompt in runtime.shard(held_out.prompts)]
    scores, of_terms = terms.scored(reward_model, conversations, columns)
    kl = budgets.tokens.halving(lambda tokens: _reference_kl(actors, rollout, tokens))
    more = [
        {"score": scores[i]} | {f"score_{name}": of_terms[name][i] for name in of_terms} | {"kl": float(kl[i])}
        for i in range(len(conversations))
    ]
    rows, measured = described(held_out, rollout, conversations, more, runtime)
    score = _finite(rows, "score")  # as in a step: one odd answer must not hide the others
    metrics = {
        "eval/unscored": len(rows) - len(score),
        "eval/score_mean": float(score.mean()),
        "eval/score_std": float(score.std(correction=0)),
        "eval/kl_reference": sum(row["kl"] for row in rows) / len(rows),
    } | {f"eval/score_{name}": float(_finite(rows, f"score_{name}").mean()) for name in of_terms}
    skills = held_out.skills(actors.policy, budgets.slots, budgets.tokens, runtime)
    values = held_out.values(rows) | skills.values
    return Measured(metrics | measured | skills.metrics, rows[: config.logging.samples], skills.cases, values)


def _finite(rows: list[dict[str, Any]], name: str) -> torch.Tensor:
    values = torch.tensor([row[name] for row in rows])
    return values[values.isfinite()]


def draw(
    held_out: HeldOut, policy: CausalLM, config: PpoConfig | DpoConfig, slots: Budget, runtime: Runtime
) -> tuple[Rollout, list[list[dict]]]:
    """Draw responses to this process's share of the held-out prompts; return them, and as whole conversations.

    held_out: the prompts and their chat template.
    policy: the model that answers.
    config: the sampling settings.
    slots: how many sequences run side by side.
    runtime: the processes that share the prompts.
    """
    runtime.seed_all("evaluation")
    prompts = runtime.shard(held_out.prompts)
    ids, indices = [prompt.ids for prompt in prompts], runtime.shard(range(len(held_out.prompts)))
    rollout = generate(policy, held_out.chat, ids, config.rollout, budget=slots, indices=indices)
    return rollout, answered(prompts, rollout, held_out.chat, config)


def described(
    held_out: HeldOut,
    rollout: Rollout,
    conversations: list[list[dict]],
    more: list[dict[str, Any]],
    runtime: Runtime,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Return (rows for samples.jsonl, of all processes; means over them).

    held_out: its own measures give each row a value.
    rollout: this process's responses.
    conversations: the same responses after their prompts.
    more: further entries of each row.
    runtime: the processes to gather from.
    """
    measured = {name: measure(conversations) for name, measure in held_out.measures.items()}
    rows = runtime.gather(
        [
            {"prompt": conversation[-2]["content"], "response": conversation[-1]["content"]}
            | ({"context": conversation[:-2]} if conversation[:-2] else {})
            | more[i]
            | {"ended": rollout.ended[i]}
            | {name: values[i] for name, values in measured.items()}
            for i, conversation in enumerate(conversations)
        ]
    )
    lengths = runtime.gather([len(response) for response in rollout.responses])
    means = {
        "eval/length_mean": sum(lengths) / len(rows),
        "eval/eos_fraction": sum(row["ended"] for row in rows) / len(rows),
        "eval/empty_fraction": sum(not row["response"].strip() for row in rows) / len(rows),
    }
    return rows, means | {f"eval/{name}_mean": sum(row[name] for row in rows) / len(rows) for name in measured}


def answered(prompts: list[Prompt], rollout: Rollout, chat: Chat, config: PpoConfig | DpoConfig) -> list[list[dict]]:
    """Return the prompts' conversations with the decoded responses as last turns.

    prompts: one for each response.
    rollout: the responses.
    chat: the policy's template and tokenizer.
    config: its stop strings are cut off.
    """
    stops, floor = chat.stop_strings(config.rollout.stop_strings), config.rollout.min_new_tokens
    return [
        with_answer(prompt.messages, chat.text(response, stops, floor))
        for prompt, response in zip(prompts, rollout.responses, strict=True)
    ]


def _reference_kl(actors: Actors, rollout: Rollout, tokens_per_microbatch: int) -> torch.Tensor:
    is_response, logprobs, reference, _ = forward_all(actors, Batches(rollout, actors.device), tokens_per_microbatch)
    return kl_estimate(logprobs, reference).where(is_response, 0.0).sum(-1).cpu()
