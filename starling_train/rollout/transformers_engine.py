"""The rollout engine `hf`: transformers' `generate`, batch after batch, each until its longest response ends."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList, StopStringCriteria

from starling_train.config.sections import RolloutConfig
from starling_train.core.excluded import ExcludedIds
from starling_train.core.padding import padded
from starling_train.data.chat import Chat
from starling_train.models.causal_lm import CausalLM
from starling_train.rollout.exclusions import exclusions
from starling_train.rollout.responses import Drawn, OnDone


def respond(
    policy: CausalLM,
    chat: Chat,
    prompts: Sequence[list[int]],
    config: RolloutConfig,
    greedy: bool,
    keep_layer: int | None,
    indices: Sequence[int],
    on_done: OnDone,
) -> Drawn:
    """Draw a response for each prompt, as `responses.Engine`; no hidden states are kept."""
    if indices and indices[0]:  # processes share one seed, but must not draw the same numbers for different prompts
        torch.manual_seed(torch.initial_seed() + indices[0])
    responses: list[list[int]] = [[] for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    policy.generation_config = _settings(config, chat, greedy, exclusions(policy.config, chat, config.min_new_tokens))
    for start in range(0, len(prompts), config.slots):
        rows = by_length[start : start + config.slots]
        ids, is_real = padded([prompts[i] for i in rows], chat.pad_id, "left")
        stop = _stopping(config, chat, ids.shape[1])
        output = policy.generate(ids.to(policy.device), attention_mask=is_real.long().to(policy.device), **stop)
        for row, generated in zip(rows, output[:, ids.shape[1] :].tolist(), strict=True):
            responses[row] = trim(generated, chat.end_ids, chat.pad_id)
            on_done(row, responses[row])
    return Drawn(responses)


@contextmanager
def generating(policy: CausalLM) -> Iterator[None]:
    """Put the policy into generation mode, without gradients, and back afterwards.

    Its own generation_config is restored: `generate` gets exactly our settings, because it would fill in penalties and
    samplers from the model's own, and what is sampled would no longer be what is scored. Training mode with gradient
    checkpointing would switch the cache off. Rows of different lengths need a mask, which flash attention does not
    support.
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


class _LaterStops(StoppingCriteria):
    """Stop strings that end a row only where they are complete behind its first tokens."""

    def __init__(self, chat: Chat, strings: list[str], first: int):
        self._stops, self._first = StopStringCriteria(chat.tokenizer, strings), first

    def __call__(self, input_ids: Any, scores: Any, **more: Any) -> Any:
        if input_ids.shape[1] <= self._first:
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        return self._stops(input_ids, scores, **more)


def _stopping(config: RolloutConfig, chat: Chat, prompt_tokens: int) -> dict[str, Any]:
    """Return what `generate` needs for stop strings: the tokenizer, or criteria that know the floor of a response."""
    strings = chat.stop_strings(config.stop_strings)
    if not strings:
        return {}
    if not config.min_new_tokens:
        return {"tokenizer": chat.tokenizer}
    later = _LaterStops(chat, strings, prompt_tokens + config.min_new_tokens)
    return {"stopping_criteria": StoppingCriteriaList([later])}


def _settings(config: RolloutConfig, chat: Chat, greedy: bool, excluded: ExcludedIds) -> GenerationConfig:
    sampling = {} if greedy else {"temperature": config.temperature, "top_p": config.top_p, "top_k": config.top_k}
    return GenerationConfig(
        do_sample=not greedy,
        max_new_tokens=config.max_new_tokens,
        min_new_tokens=config.min_new_tokens or None,
        suppress_tokens=list(excluded.always) or None,
        eos_token_id=sorted(chat.end_ids),
        pad_token_id=chat.pad_id,
        stop_strings=None if config.min_new_tokens else chat.stop_strings(config.stop_strings) or None,
        **sampling,
    )


def trim(generated: list[int], end_ids: Collection[int], pad: int) -> list[int]:
    """Cut after the end of turn; without one, drop the padding that follows a stop string."""
    for position, token in enumerate(generated):
        if token in end_ids:
            return generated[: position + 1]
    end = len(generated)
    while end > 1 and generated[end - 1] == pad:
        end -= 1
    return generated[:end]
