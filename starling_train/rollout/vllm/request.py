"""What vLLM is asked for, by its own names, and what is taken of its answer: in Python and over HTTP."""

import math
from collections.abc import Sequence
from typing import Any

from starling_train.config.sections import RolloutConfig
from starling_train.data.chat import Chat
from starling_train.models.causal_lm import CausalLM
from starling_train.rollout.exclusions import exclusions
from starling_train.rollout.stop_strings import StopStrings

# a server takes what is not said from the model's generation_config.json
NEUTRAL = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "min_p": 0.0}
LEAST_BIAS = -100.0  # the lowest that vLLM takes for a logit: 4e-44 of a probability


def sampling(policy: CausalLM, chat: Chat, config: RolloutConfig, greedy: bool) -> dict[str, Any]:
    """Return the settings of a request by vLLM's names, the same in SamplingParams and in its completions route."""
    excluded = exclusions(policy.config, chat, config.min_new_tokens)
    asked: dict[str, Any] = {
        "max_tokens": config.max_new_tokens,
        "min_tokens": config.min_new_tokens,
        "temperature": 0.0 if greedy else config.temperature,
        "top_p": 1.0 if greedy else config.top_p,
        "top_k": 0 if greedy else config.top_k,
        "stop_token_ids": sorted(chat.end_ids),
        "ignore_eos": True,  # the model's own: our ids are given
        "logprobs": 0,  # of the tokens drawn
        **NEUTRAL,
    }
    if excluded.always:
        asked["logit_bias"] = dict.fromkeys(excluded.always, LEAST_BIAS)
    if stops := chat.stop_strings(config.stop_strings):
        asked |= {"stop": stops, "include_stop_str_in_output": True}
    return asked


class Ends:
    """Where responses end: as engine `slots` cuts them, whatever was drawn behind a stop string."""

    def __init__(self, chat: Chat, config: RolloutConfig):
        strings = chat.stop_strings(config.stop_strings)
        self._stops = StopStrings(chat, strings, config.min_new_tokens) if strings else None

    def cut(self, ids: Sequence[int], logprobs: Sequence[float]) -> tuple[list[int], list[float]]:
        """Return a response and its log-probs up to its end."""
        end = self._stops.end(ids) if self._stops else None
        return list(ids[:end]), [one if one is not None else -math.inf for one in logprobs[:end]]
