"""TODO docstring."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from starling_train.config.sections import RolloutConfig
from starling_train.data import openchat
from starling_train.rollout.responses import OnDone


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
