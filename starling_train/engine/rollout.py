"""Responses to prompts, drawn from the live training weights."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from starling_train.config.sections import RolloutConfig
from starling_train.data import openchat
from starling_train.engine import slots
from starling_train.engine.stop_strings import StopStrings
from starling_train.models.budget import Budget


@dataclass
class Rollout:
    """Prompts and the responses drawn for them, as token ids, in the order of the prompts.

    responses end with the end-of-turn token where `ended` is True; else they were cut by the limit or a stop string.
    entering: the hidden states that entered a layer that was asked for, per sequence, of all its tokens but the last.
    """

    prompts: list[list[int]]
    responses: list[list[int]]
    ended: list[bool]
    entering: list[Tensor] | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.prompts)

    def only(self, rows: Sequence[int]) -> "Rollout":
        """Some of its sequences, in this order."""
        prompts, responses, ended = ([values[i] for i in rows] for values in (self.prompts, self.responses, self.ended))
        entering = None if self.entering is None else [self.entering[i] for i in rows]
        return Rollout(prompts, responses, ended, entering)

    def lengths(self) -> list[int]:
        """Tokens of prompt and response together but for the last, which predicts nothing, per sequence."""
        return [len(p) + len(r) - 1 for p, r in zip(self.prompts, self.responses, strict=True)]


OnDone = Callable[[int, list[int]], None]


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


def _generate_hf(
    policy: nn.Module,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    config: RolloutConfig,
    greedy: bool,
    on_done: OnDone,
    first_place: int = 0,
) -> list[list[int]]:
    """Batch after batch, each until its longest response ends."""
    eos, pad = openchat.end_of_turn_id(tokenizer), openchat.pad_id(tokenizer)
    if first_place:  # processes share one seed, and must not draw the same numbers for other prompts
        torch.manual_seed(torch.initial_seed() + first_place)
    responses: list[list[int]] = [[] for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    policy.generation_config = _settings(config, eos, pad, greedy)
    for start in range(0, len(prompts), config.slots):
        rows = by_length[start : start + config.slots]
        ids, attention = _left_pad([prompts[i] for i in rows], pad, policy.device)
        stop = {"tokenizer": tokenizer} if config.stop_strings else {}
        output = policy.generate(ids, attention_mask=attention, **stop)
        for row, generated in zip(rows, output[:, ids.shape[1] :].tolist(), strict=True):
            responses[row] = _trim(generated, eos, pad)
            on_done(row, responses[row])
    return responses


@contextmanager
def _generating(policy: nn.Module) -> Iterator[None]:
    """The policy without gradients, and afterwards as it was.

    Its own generation_config comes back: `generate` is given exactly our settings, because it would fill in what a
    model's own say of penalties and samplers, and what is sampled would no longer be what is scored. Training mode
    with gradient checkpointing would switch the cache off. Rows of different lengths need a mask, which flash
    attention has none of.
    """
    was_training, own, attention = policy.training, policy.generation_config, policy.config._attn_implementation
    policy.eval()
    if attention.startswith("flash"):
        policy.set_attn_implementation("sdpa")
    try:
        with torch.no_grad():
            yield
    finally:
        policy.train(was_training)
        policy.generation_config = own
        if attention.startswith("flash"):
            policy.set_attn_implementation(attention)


def _settings(config: RolloutConfig, eos: int, pad: int, greedy: bool) -> GenerationConfig:
    sampling = {} if greedy else {"temperature": config.temperature, "top_p": config.top_p, "top_k": config.top_k}
    return GenerationConfig(
        do_sample=not greedy,
        max_new_tokens=config.max_new_tokens,
        eos_token_id=eos,
        pad_token_id=pad,
        stop_strings=list(config.stop_strings) or None,
        **sampling,
    )


def _left_pad(prompts: Sequence[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(len(p) for p in prompts)
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=device)
    attention = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, attention


def _trim(generated: list[int], eos: int, pad: int) -> list[int]:
    """Cut after the end of turn; without one, drop the padding that follows a stop string."""
    if eos in generated:
        return generated[: generated.index(eos) + 1]
    end = len(generated)
    while end > 1 and generated[end - 1] == pad:
        end -= 1
    return generated[:end]
