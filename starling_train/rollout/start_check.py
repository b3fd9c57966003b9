"""Whether the engine `slots` decodes a model as transformers' plain forward does: compared once a model."""

from itertools import accumulate
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import DynamicCache

from starling_train.config.fields import UserError
from starling_train.config.sections import VLLM, RolloutConfig
from starling_train.core.padding import padded
from starling_train.data.chat import Chat
from starling_train.models.causal_lm import CausalLM
from starling_train.models.families.ways import REFUSALS, Comparison, Ways, probing
from starling_train.models.source import first_line
from starling_train.rollout import kernels, lean_decoder
from starling_train.rollout.attention import has_lengths
from starling_train.rollout.decode_step import DecodeStep, LeanStep, LengthStep
from starling_train.rollout.slot_cache import SlotCache
from starling_train.rollout.vllm import engine, server
from starling_train.rollout.vllm.folder import folder_of
from starling_train.run.machine import is_installed
from starling_train.run.out_of_memory import is_out_of_memory

COST = "a batch of responses waits for its longest, and the frozen layers run once more to score it"
DECODED = 4  # tokens of each sequence that are decoded one by one, after the others in one pass
_known: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
_lean: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def check(rollout: RolloutConfig, load_in: str | None, zero_stage: int = 0) -> None:
    """Raise UserError, before anything is loaded, where an engine with weights of its own cannot work.

    load_in: of the policy.
    zero_stage: of the run.
    """
    if rollout.engine not in VLLM:
        return
    if rollout.engine == "vllm" and not is_installed("vllm"):
        raise UserError(
            "rollout.engine: vllm not installed; pip install 'starling-train[vllm]', or use slots, or vllm_server"
        )
    if rollout.engine == "vllm_server":
        folder_of(rollout)
    if load_in:
        raise UserError(f"rollout.engine: {rollout.engine} has no {load_in} copy of the policy; use slots")
    if zero_stage == 3:
        raise UserError(
            f"rollout.engine: {rollout.engine} is given whole tensors, and cluster.zero_stage=3 has shards; use slots, "
            "or stage 2"
        )


def line(model: CausalLM, ways: Ways, engine: str, key: str = "model.path") -> str:
    """Render in one line what falls back for this model, and what that costs; '' where nothing does.

    engine: `rollout.engine`, '' where nothing is generated. key: names the model.
    """
    parts = ways.fallbacks(model)
    if engine == "slots" and (reason := why_not_slots(model)):
        parts.append(f"rollout.engine=hf ({reason}): {COST}")
    return f"{key} ({model.config.model_type}): {'; '.join(parts)}" if parts else ""


def opened(model: CausalLM, chat: Chat, config: RolloutConfig, prompt_tokens: int = 0) -> list[str]:
    """Open an engine with weights of its own, and return the line that says how close its log-probs are.

    Nothing for the others. prompt_tokens: of the longest prompt. Raises UserError where it cannot run the model, has no
    room for the longest answer, or computes something else.
    """
    longest = prompt_tokens + config.max_new_tokens
    if config.engine == "vllm":
        return [engine.line(model, chat, config, longest)]
    return [server.line(model, config, longest)] if config.engine == "vllm_server" else []


def why_not_slots(model: CausalLM) -> str:
    """Return why the engine `slots` cannot decode this model; '' if its logits are the plain forward's."""
    if model not in _known:
        with probing(model) as probed:
            try:
                _known[model] = "" if _agrees(probed) else "other logits than the plain forward's"
            except REFUSALS as error:
                if is_out_of_memory(error):
                    raise
                _known[model] = first_line(error)[:100]
    return _known[model]


def is_lean(model: CausalLM) -> bool:
    """Return whether `LeanStep` may decode this model: its parts are the known ones, its logits the plain forward's."""
    if not lean_decoder.fits(model):
        return False
    if model not in _lean:
        with probing(model) as probed:
            try:
                _lean[model] = _agrees(probed, lean=True)
            except REFUSALS as error:
                if is_out_of_memory(error):
                    raise
                _lean[model] = False
    return _lean[model]


def step_of(model: CausalLM) -> type[DecodeStep]:
    """Return the kind of step that decodes this model here: the fastest whose logits are the plain forward's."""
    if not is_lean(model):
        return DecodeStep
    return LengthStep if has_lengths(model) else LeanStep


def compiler_line(model: CausalLM, engine: str) -> str:
    """Render in one line that the kernels of rollouts on a CPU were not compiled, and what that costs; '' if they were.

    Without them responses may differ by rounding, so that a run which goes on should have what it began with.
    """
    if engine != "slots" or model.device.type != "cpu" or step_of(model) is DecodeStep or kernels.compiled():
        return ""
    return (
        "rollout.engine=slots: no g++ that works was found, without which a decoding step takes about 1.7 times as "
        "long; install g++"
    )


def _agrees(model: CausalLM, lean: bool = False) -> bool:
    """Decode the last tokens of sequences of different lengths side by side, and compare their logits."""
    comparison = Comparison(model)
    starts = dict(
        zip(map(id, comparison.sequences), accumulate(map(len, comparison.sequences), initial=0), strict=False)
    )
    sequences = sorted(comparison.sequences, key=len, reverse=True)  # the rows that still run are then the first
    begun = [max(1, len(part) - DECODED) for part in sequences]
    ids = padded([part[:count].tolist() for part, count in zip(sequences, begun, strict=True)])[0]
    cache = DynamicCache()
    model.get_decoder()(input_ids=ids.to(model.device), past_key_values=cache, use_cache=True)
    slots = SlotCache(cache, len(sequences), len(sequences[0]))
    slots.admit(cache, list(range(len(sequences))))
    step = (LeanStep if lean else DecodeStep)(model, slots, lambda: None, lambda *_: None)
    logits, positions = [], []
    for count in range(len(sequences[0]) - begun[0]):
        rows = [row for row, part in enumerate(sequences) if begun[row] + count < len(part)]
        at = [begun[row] + count for row in rows]
        tokens = [int(sequences[row][position]) for row, position in zip(rows, at, strict=True)]
        logits.append(step(tokens, at)[0])
        positions += [starts[id(sequences[row])] + position for row, position in zip(rows, at, strict=True)]
    return comparison.agree(torch.cat(logits), torch.tensor(positions, device=model.device))
