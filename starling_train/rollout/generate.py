"""Responses to prompts, drawn from the live training weights."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from starling_train.config.sections import RolloutConfig
from starling_train.data import openchat
from starling_train.models.budget import Budget
from starling_train.rollout import slots
from starling_train.rollout.responses import OnDone, Rollout
from starling_train.rollout.stop_strings import StopStrings
from starling_train.rollout.transformers_engine import _generate_hf, _generating


def generate(
    policy: nn.Module,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    config: RolloutConfig,
    greedy: bool = False,
    keep_layer: int | None = None,
    budget: Budget | None = None,
    places: Sequence[int] | None = None,
    on_done: OnDone = lambda prompt, response: None,
) -> Rollout:
    """Draw one response per prompt, at most `config.slots` side by side, with the engine that `config` names.

    Uses the global random generator (seed it first). greedy=True takes the likeliest token instead of sampling.
    The policy is back in the mode it came in afterwards. Engine `slots` draws each response with random numbers of
    its own, so that it depends on its place among the prompts and on nothing else; `hf` is transformers' `generate`.
    keep_layer: with `slots`, keep the hidden states that enter this decoder layer (`Rollout.entering`). budget: of
    sequences side by side (the configuration's if None); when memory runs out, all are drawn again with half.
    places: of these prompts among all that the step draws for, on all processes; 0, 1, ... if None. on_done: called
    with the index of a prompt and its response when that has ended, once more if memory ran out behind it.
    """
    budget = budget or Budget("rollout.slots", config.slots)
    state = torch.get_rng_state()
    return budget.attempt(
        lambda count: _generate(
            policy, tokenizer, prompts, replace(config, slots=count), greedy, keep_layer, places, on_done
        ),
        undo=lambda: torch.set_rng_state(state),
    )


def _generate(
    policy: nn.Module,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    config: RolloutConfig,
    greedy: bool,
    keep_layer: int | None,
    places: Sequence[int] | None,
    on_done: OnDone,
) -> Rollout:
    entering = None
    eos = openchat.end_of_turn_id(tokenizer)
    with _generating(policy):
        if config.engine == "hf":
            first = places[0] if places else 0
            responses = _generate_hf(policy, tokenizer, prompts, config, greedy, on_done, first)
        else:
            seed = int(torch.randint(2**62, ()))
            how = slots.Sampling(
                eos=eos,
                max_new_tokens=config.max_new_tokens,
                stops=StopStrings(tokenizer, config.stop_strings),
                seeds=None if greedy else [(seed, place) for place in places or range(len(prompts))],
                temperature=config.temperature,
                top_p=config.top_p,
                top_k=config.top_k,
            )
            responses, entering = slots.generate(policy, prompts, how, config.slots, keep_layer, on_done)
    return Rollout(list(prompts), responses, [r[-1] == eos for r in responses], entering)
