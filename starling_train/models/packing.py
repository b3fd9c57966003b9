"""Sequences side by side in one row, without padding: everything in a decoder but attention goes token by token.

Matrix products then see as many rows as a micro-batch has tokens, however uneven the sequences are. Attention goes
sequence by sequence, or on a GPU, where many small kernels are slow, pads to the longest sequence. What torch's kernel
does not compute (capped scores, sinks) is computed by the model's own eager function.

In 16-bit types on a CPU, products go over blocks of rows (`core.row_blocks`), so that the states of a sequence are the
same to the bit whatever else is in the row. On a GPU they may differ by rounding.
"""

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from starling_train.core.row_blocks import RowBlocks, in_blocks
from starling_train.models.sharing import Model

CHECKPOINT = "_gradient_checkpointing_func"  # transformers calls a layer's forward by it
# oneDNN compiles a kernel for each length of a sequence, and keeps it (benchmarks/RESULTS.md)
STEP = 64
NAME = "starling_packed"  # transformers makes no mask for a kind of attention whose masks it does not know


class Packing:
    """Where each sequence lies in a row of tokens. lengths: tokens of each, none empty; they follow one another.

    Attributes: `positions` (tokens,), each token's index in its own sequence.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | str = "cpu"):
        assert lengths and min(lengths) > 0, "an empty sequence cannot be packed"
        self.lengths, self.longest = list(lengths), max(lengths)
        self._widest = self.longest + -self.longest % STEP
        self._device = torch.device(device)
        self.positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
        # where each token lies in a padded (sequences, longest) matrix, counted row by row
        rows = torch.arange(len(lengths)).repeat_interleave(torch.tensor(self.lengths))
        self._padded_index = rows.to(device) * self.longest + self.positions
        self._masks: dict[int, Tensor] = {}
        self._added: dict[tuple[int | None, torch.dtype], Tensor] = {}

    def pad(self, tensor: Tensor) -> Tensor:
        """Spread (1, heads, tokens, size) out to (sequences, heads, longest, size), 0 on padding."""
        if len(self.lengths) == 1:
            return tensor
        _, heads, _, size = tensor.shape
        padded = tensor.new_zeros(len(self.lengths) * self.longest, heads, size)
        padded = padded.index_copy(0, self._padded_index, tensor[0].transpose(0, 1))
        return padded.view(len(self.lengths), self.longest, heads, size).transpose(1, 2)

    def unpad(self, tensor: Tensor) -> Tensor:
        """Pack (sequences, longest, heads, size) to (1, tokens, heads, size)."""
        return tensor if len(self.lengths) == 1 else tensor.flatten(0, 1).index_select(0, self._padded_index)[None]

    def mask(self, window: int | None, length: int) -> Tensor | None:
        """Return (1, 1, length, length), True where a token sees another; None where plain causal attention is enough.

        window: of a sliding window, in tokens, the token itself counted.
        """
        if window is None or window >= length:
            return None
        if window not in self._masks:  # that of the longest sequence; a shorter one's is its corner
            position = torch.arange(self._widest, device=self._device)
            distance = position[:, None] - position
            self._masks[window] = (distance >= 0) & (distance < window)
        return self._masks[window][None, None, :length, :length]

    def added_mask(self, window: int | None, length: int, dtype: torch.dtype) -> Tensor:
        """Return (1, 1, length, length) to add to scores: 0 where a token sees another, the lowest number elsewhere."""
        key = (window, dtype)
        if key not in self._added:
            position = torch.arange(self._widest, device=self._device)
            distance = position[:, None] - position
            sees = distance >= 0 if window is None else (distance >= 0) & (distance < window)
            zeros = torch.zeros(sees.shape, dtype=dtype, device=self._device)
            self._added[key] = zeros.masked_fill(~sees, torch.finfo(dtype).min)
        return self._added[key][None, None, :length, :length]


def can_pack(layers: Sequence[nn.Module]) -> bool:
    """Return whether these decoder layers may be seen through `PackedLayer`: their forward is their class's own.

    A layer that a library spread over devices computes whatever that library put in place of its forward.
    """
    return all(
        hasattr(getattr(layer, "self_attn", None), "config") and "forward" not in vars(layer) | vars(layer.self_attn)
        for layer in layers
    )


class PackedLayer:
    """A view of a decoder layer that attends within packed sequences: `layer`, on the same weights, nothing copied."""

    def __init__(self, original: Any, config: Any):
        """Make the view. config: `packed_config` of the decoder's own."""
        self._original, self.layer = original, bare_copy(original)
        # our own attention module on the same weights: its config names our kernel, the original's stays untouched
        attention = bare_copy(original.self_attn)
        attention.config = config
        self.layer._modules = dict(original._modules) | {"self_attn": attention}

    def follow(self, blocks: bool) -> None:
        """Take over the original's mode: training, and gradient checkpointing. blocks: see `core.row_blocks`."""
        for name in ("training", "gradient_checkpointing", CHECKPOINT):
            if hasattr(self._original, name):
                setattr(self.layer, name, getattr(self._original, name))
        if blocks and hasattr(self.layer, CHECKPOINT):
            setattr(self.layer, CHECKPOINT, _in_blocks(getattr(self.layer, CHECKPOINT)))


def _in_blocks(checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Let a layer that is computed again for its gradient, after the decoder's forward, do so in blocks as well."""

    def checkpointed(forward: Callable[..., Any], *inputs: Any, **how: Any) -> Any:
        def in_blocks(*given: Any, **named: Any) -> Any:
            with RowBlocks():
                return forward(*given, **named)

        return checkpoint(in_blocks, *inputs, **how)

    return checkpointed


def packed_config(config: Any) -> Any:
    """Copy a decoder's configuration and name this kind of attention in it."""
    changed = copy_of(config)
    changed._attn_implementation_internal = NAME
    return changed


@contextmanager
def without_hooks(module: nn.Module) -> Iterator[None]:
    """Run forward passes without the hooks on the modules, as when ZeRO has gathered all weights."""
    # ZeRO's hooks would gather and release the weights around every layer of every pass
    removed = []
    for submodule in module.modules():
        for name in ("_forward_hooks", "_forward_pre_hooks"):
            hooks = getattr(submodule, name)
            removed.append((hooks, dict(hooks)))
            hooks.clear()
    try:
        yield
    finally:
        for hooks, before in removed:
            hooks.clear()
            hooks.update(before)


def bare_copy(module: Model) -> Model:
    """Copy a module shallowly, without its own hooks; those on its parts, which have the weights, stay."""
    copied = copy_of(module)
    for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        setattr(copied, name, OrderedDict())
    return copied


def copy_of(thing: Any) -> Any:
    """Copy shallowly: the parts are the original's, but parts can be replaced."""
    copied = object.__new__(type(thing))
    copied.__dict__.update(thing.__dict__)
    return copied


def attend_padded(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, packing: Packing, **how: Any) -> Tensor:
    """Attend causally within each sequence, in one call: (1, heads, tokens, size) -> (1, tokens, heads, size)."""
    query, key, value = (packing.pad(tensor) for tensor in (query, key, value))
    return packing.unpad(_kernel(how)(module, query, key, value, packing, packing.longest, **how))


def attend_one_by_one(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, packing: Packing, **how: Any
) -> Tensor:
    """Do the same with a call for each sequence; in 16-bit types with zeros behind it, up to a multiple of STEP.

    No token sees what comes after it, and so none sees the zeros.
    """
    kernel, step = _kernel(how), STEP if in_blocks(query.dtype, query.device) else 1
    mixed = []
    for states in zip(*(tensor.split(packing.lengths, dim=2) for tensor in (query, key, value)), strict=True):
        length = states[0].shape[2]
        missing = -length % step
        q, k, v = (pad(part, (0, 0, 0, missing)) for part in states) if missing else states
        mixed.append(kernel(module, q, k, v, packing, length + missing, **how)[:, :length])
    return torch.cat(mixed, dim=1)


def _kernel(how: dict[str, Any]) -> Callable[..., Tensor]:
    """Choose torch's kernel, unless `how` has more than it knows: it must not be left out without a word."""
    return _by_torch if how.keys() <= TORCH_KNOWS else _by_the_model


def _by_torch(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    length: int,
    window: int | None,
    **how: Any,
) -> Tensor:
    return sdpa_attention_forward(module, query, key, value, packing.mask(window, length), **how)[0]


def _by_the_model(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    length: int,
    window: int | None,
    **how: Any,
) -> Tensor:
    """Attend as the model's own file does where no library kernel is used. Raises NotImplementedError without one."""
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:
        raise NotImplementedError(f"attention with {', '.join(sorted(how.keys() - TORCH_KNOWS))}")
    return eager(module, query, key, value, packing.added_mask(window, length, query.dtype), **how)[0]


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    packing: Packing | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    assert attention_mask is None, "packed sequences need no mask"
    if packing is None:
        raise NotImplementedError("its layers hand nothing on to their attention")
    # another call costs a CPU less than padding does; on a GPU it is the other way round
    attend = attend_one_by_one if query.device.type == "cpu" else attend_padded
    how = {name: given for name, given in more.items() if given is not None and name not in NOT_OF_SCORES}
    return attend(
        module, query, key, value, packing, window=sliding_window, dropout=dropout, scaling=scaling, **how
    ), None


TORCH_KNOWS = {"window", "dropout", "scaling"}
# what decoders hand through to attention that does not change it
NOT_OF_SCORES = {
    "position_ids", "cache_position", "use_cache", "past_key_values", "output_attentions", "output_hidden_states",
    "output_router_logits", "return_dict", "entering",
}  # fmt: skip
AttentionInterface.register(NAME, _attend)
