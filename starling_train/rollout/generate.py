"""Responses to prompts, drawn from the live training weights by one of the ENGINES."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from starling_train.config.sections import RolloutConfig
from starling_train.data.chat import Chat
from starling_train.models.budget import Budget
from starling_train.models.causal_lm import CausalLM
from starling_train.rollout import slots, transformers_engine
from starling_train.rollout.responses import Engine, OnDone, Rollout
from starling_train.rollout.start_check import why_not_slots
from starling_train.rollout.transformers_engine import generating
from starling_train.rollout.vllm import engine as vllm_engine
from starling_train.rollout.vllm import server as vllm_server

# by rollout.engine
ENGINES: dict[str, Engine] = {
    "slots": slots.respond,
    "hf": transformers_engine.respond,
    "vllm": vllm_engine.respond,
    "vllm_server": vllm_server.respond,
}


def generate(
    policy: CausalLM,
    chat: Chat,
    prompts: Sequence[list[int]],
    config: RolloutConfig,
    greedy: bool = False,
    keep_layer: int | None = None,
    budget: Budget | None = None,
    indices: Sequence[int] | None = None,
    on_done: OnDone = lambda prompt, response: None,
) -> Rollout:
    """Draw one response per prompt, at most `config.slots` side by side, with the engine that `config` names.

    Uses the global random generator (seed it first). greedy=True takes the likeliest token instead of sampling.
    Afterwards the policy is back in its former mode. Engine `slots` draws each response with random numbers of its own,
    which depend on its index among the prompts and on nothing else; `hf` is transformers' `generate`; `vllm` and
    `vllm_server` draw from a copy of the weights (`docs/rollout.md`).
    keep_layer: with `slots`, keep the hidden states that enter this decoder layer (`Rollout.entering`).
    budget: of sequences side by side (the configuration's if None); when memory runs out, all are drawn again with
    half.
    indices: of these prompts among those of all processes in the step; 0, 1, ... if None.
    on_done: called with a prompt's number here and its response when that has ended, once more if memory ran out
    behind it.
    """
    budget = budget or Budget("rollout.slots", config.slots)
    state = torch.get_rng_state()
    engine = ENGINES["hf" if config.engine == "slots" and why_not_slots(policy) else config.engine]
    indices = indices or range(len(prompts))

    def draw(count: int) -> Rollout:
        limits = replace(config, slots=count)
        with generating(policy):
            drawn = engine(policy, chat, prompts, limits, greedy, keep_layer, indices, on_done)
        ended = [response[-1] in chat.end_ids for response in drawn.responses]
        return Rollout(list(prompts), drawn.responses, ended, drawn.entering, drawn.logprobs)

    return budget.halving(draw, undo=lambda: torch.set_rng_state(state))
