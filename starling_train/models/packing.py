"""Sequences side by side in one row, without padding: everything in a decoder but attention goes token by token.

Sequences that begin alike, such as the answers to one prompt, may have their beginning once: each goes on from it.

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
from functools import cached_property
from itertools import accumulate
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
    """Where each sequence lies in a row of tokens.

    lengths: tokens of each, none empty; they follow one another.
    device: where masks and positions are needed.
    begins: of each sequence, the index of the one whose end it goes on from: it sees all of that, too, which itself
        goes on from none. None: where it begins anew; None instead of a list: all do.

    Attributes: `positions` (tokens,), each token's index in its own sequence, counted on from where it begins.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        device: torch.device | str = "cpu",
        begins: Sequence[int | None] | None = None,
    ):
        assert lengths and min(lengths) > 0, "an empty sequence cannot be packed"
        self.lengths, self.longest = list(lengths), max(lengths)
        self.begins = list(begins) if begins and any(one is not None for one in begins) else None
        self.offsets = [0 if one is None else lengths[one] for one in self.begins or [None] * len(lengths)]
        self._whole = max(offset + length for offset, length in zip(self.offsets, lengths, strict=True))
        self._widest = self._whole + -self._whole % STEP + (0 if self.begins is None else STEP)
        self._device = torch.device(device)
        own, counts = torch.cat([torch.arange(length) for length in lengths]), torch.tensor(self.lengths)
        self.positions = (own + torch.tensor(self.offsets).repeat_interleave(counts)).to(device)
        # where each token lies in a padded (sequences, longest) matrix, counted row by row
        rows = torch.arange(len(lengths)).repeat_interleave(counts)
        self._padded_index = (rows * self.longest + own).to(device)
        self._masks: dict[int | None, Tensor] = {}
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

    def with_beginning(self, parts: Sequence[Tensor], index: int) -> Tensor:
        """Return one of (1, heads, tokens, size) of each sequence, with what it goes on from in front of it."""
        begins = None if self.begins is None else self.begins[index]
        return parts[index] if begins is None else torch.cat([parts[begins], parts[index]], dim=2)

    def beginning(self, index: int, starts: Sequence[int]) -> Sequence[int]:
        """Return the positions that a sequence goes on from, in the row. starts: where each sequence lies."""
        begins = None if self.begins is None else self.begins[index]
        return range(0) if begins is None else range(starts[begins], starts[begins] + self.lengths[begins])

    def mask(self, window: int | None, rows: int, length: int, offset: int = 0) -> Tensor | None:
        """Return (1, 1, rows, length), True where a token sees another; None where plain causal attention is enough.

        window: of a sliding window, in tokens, the token itself counted.
        rows: tokens that look.
        length: tokens that are seen.
        offset: of those, the ones before the first that looks.
        """
        if (window is None or window >= length) and not offset:
            return None
        return self._part(self._sees(window), rows, length, offset)

    def added_mask(self, window: int | None, rows: int, length: int, offset: int, dtype: torch.dtype) -> Tensor:
        """Return (1, 1, rows, length) to add to scores: 0 where a token sees another, the lowest number elsewhere."""
        key = (window, dtype)
        if key not in self._added:
            self._added[key] = _to_add(self._sees(window), dtype)
        return self._part(self._added[key], rows, length, offset)

    def _part(self, mask: Tensor, rows: int, length: int, offset: int) -> Tensor:
        """Return (1, 1, rows, length) of a mask of all positions."""
        if offset + rows <= length:
            return mask[None, None, offset : offset + rows, :length]
        # rows of padding behind the last look like the last: a window would leave them nothing to see
        looking = torch.arange(offset, offset + rows, device=self._device).clamp(max=length - 1)
        return mask[looking, :length][None, None]

    def _sees(self, window: int | None) -> Tensor:
        """Return whether a position sees another, of all that there are: that of any sequence is a part of it."""
        if window not in self._masks:
            position = torch.arange(self._widest, device=self._device)
            self._masks[window] = _is_seen(position, position, window)
        return self._masks[window]

    @cached_property
    def anew(self) -> "Rows":
        """Return where those lie that begin anew, if some do not."""
        return Rows(self, [index for index, offset in enumerate(self.offsets) if not offset])

    @cached_property
    def behind(self) -> "Rows":
        """Return where those lie that go on from another."""
        return Rows(self, [index for index, offset in enumerate(self.offsets) if offset])


class Rows:
    """Some of a packing's sequences as the rows of a padded batch: what looks, and what it sees."""

    def __init__(self, packing: Packing, indices: Sequence[int]):
        starts = [end - length for end, length in zip(accumulate(packing.lengths), packing.lengths, strict=True)]
        spans = [range(starts[index], starts[index] + packing.lengths[index]) for index in indices]
        seen = [[*packing.beginning(index, starts), *span] for index, span in zip(indices, spans, strict=True)]
        self._count, self.longest, self.most = len(spans), max(map(len, spans)), max(map(len, seen))
        places = [row * self.longest + own for row, span in enumerate(spans) for own in range(len(span))]
        # behind what a row sees stands its last token again, which it does not see there
        index = [position for each in seen for position in each + each[-1:] * (self.most - len(each))]
        ends = torch.tensor([len(each) for each in seen])[:, None]
        starting = ends - torch.tensor([len(span) for span in spans])[:, None]
        # rows behind the last, of padding, look like the last: a window would leave them nothing to see
        looking = torch.minimum(starting + torch.arange(self.longest), ends - 1)
        tokens = torch.tensor([position for span in spans for position in span])
        device = packing.positions.device
        self.tokens, self._places, self._index, self._looking = (
            numbers.to(device) for numbers in (tokens, torch.tensor(places), torch.tensor(index), looking)
        )
        self._masks: dict[tuple[int | None, torch.dtype | None], Tensor] = {}

    def pad(self, tensor: Tensor) -> Tensor:
        """Spread (1, heads, tokens, size) out to (rows, heads, longest, size), 0 on padding."""
        _, heads, _, size = tensor.shape
        own = tensor[0].transpose(0, 1)[self.tokens]
        padded = tensor.new_zeros(self._count * self.longest, heads, size).index_copy(0, self._places, own)
        return padded.view(self._count, self.longest, heads, size).transpose(1, 2)

    def pad_seen(self, tensor: Tensor) -> Tensor:
        """Spread (1, heads, tokens, size) out to what each row sees, (rows, heads, most, size)."""
        _, heads, _, size = tensor.shape
        return tensor[0].transpose(0, 1)[self._index].view(self._count, self.most, heads, size).transpose(1, 2)

    def unpad(self, tensor: Tensor) -> Tensor:
        """Return the tokens' own of (rows, longest, heads, size): (tokens, heads, size)."""
        return tensor.flatten(0, 1).index_select(0, self._places)

    def mask(self, window: int | None, dtype: torch.dtype | None) -> Tensor:
        """Return (rows, 1, longest, most), True where a token sees another; of a dtype: what is added to scores."""
        key = (window, dtype)
        if key not in self._masks:
            position = torch.arange(self.most, device=self._looking.device)
            sees = _is_seen(self._looking.flatten(), position, window).view(self._count, 1, self.longest, self.most)
            self._masks[key] = sees if dtype is None else _to_add(sees, dtype)
        return self._masks[key]


def _is_seen(looking: Tensor, position: Tensor, window: int | None) -> Tensor:
    """Return (rows, positions), True where a row at its own position sees another."""
    distance = looking[:, None] - position
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


class Layout:
    """Parts of a row of tokens, named by numbers, as they are put one after the other.

    Attributes: `ids`, the tokens; `parts`, where each lies; `reads`, positions that are to be read.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.parts: dict[int, range] = {}
        self.reads: list[int] = []
        self._begins: list[int | None] = []
        self._index: dict[int, int] = {}

    def add(self, part: int, tokens: Sequence[int], behind: int | None = None) -> None:
        """Put a part at the end. behind: the part that it goes on from, if any."""
        self._index[part] = len(self.parts)
        self.parts[part] = range(len(self.ids), len(self.ids) + len(tokens))
        self._begins.append(None if behind is None else self._index[behind])
        self.ids += tokens

    def end(self, part: int) -> int:
        """Return the position after a part."""
        return self.parts[part].stop

    def read(self, first: int, count: int = 1) -> None:
        """Have neighbouring positions read."""
        self.reads.extend(range(first, first + count))

    def packing(self, device: torch.device | str) -> Packing:
        """Return where the parts lie."""
        return Packing([len(part) for part in self.parts.values()], device, self._begins)


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
    """Attend causally within each sequence, in one call: (1, heads, tokens, size) -> (1, tokens, heads, size).

    In two, where some go on from others: what begins anew needs no mask.
    """
    window, kernel = how.pop("window"), _kernel(how)
    if packing.begins is None:
        mask = _mask_for(how, packing, window, query.dtype, packing.longest, packing.longest)
        return packing.unpad(kernel(module, *map(packing.pad, (query, key, value)), mask, **how))
    anew, behind = packing.anew, packing.behind
    mask = _mask_for(how, packing, window, query.dtype, anew.longest, anew.longest)
    first = anew.unpad(kernel(module, *map(anew.pad, (query, key, value)), mask, **how))
    mask = behind.mask(window, None if _torch_computes(how) else query.dtype)
    seen = behind.pad_seen(key), behind.pad_seen(value)
    second = behind.unpad(kernel(module, behind.pad(query), *seen, mask, **how))
    mixed = first.new_empty(len(packing.positions), *first.shape[1:])
    return mixed.index_copy(0, anew.tokens, first).index_copy(0, behind.tokens, second)[None]


def attend_one_by_one(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, packing: Packing, **how: Any
) -> Tensor:
    """Do the same with a call for each sequence; in 16-bit types with zeros behind it, up to a multiple of STEP.

    No token sees what comes after it, and so none sees the zeros.
    """
    window, kernel, step = how.pop("window"), _kernel(how), STEP if in_blocks(query.dtype, query.device) else 1
    queries, keys, values = (tensor.split(packing.lengths, dim=2) for tensor in (query, key, value))
    mixed = []
    for index, (length, offset) in enumerate(zip(packing.lengths, packing.offsets, strict=True)):
        q = _whole_steps(queries[index], step)
        k, v = (_whole_steps(packing.with_beginning(parts, index), step) for parts in (keys, values))
        mask = _mask_for(how, packing, window, q.dtype, q.shape[2], k.shape[2], offset)
        mixed.append(kernel(module, q, k, v, mask, **how)[:, :length])
    return torch.cat(mixed, dim=1)


def _whole_steps(states: Tensor, step: int) -> Tensor:
    """Put zeros behind (1, heads, tokens, size), up to a multiple of `step` tokens."""
    missing = -states.shape[2] % step
    return pad(states, (0, 0, 0, missing)) if missing else states


def _torch_computes(how: dict[str, Any]) -> bool:
    """Whether torch's kernel knows all of `how`: nothing of it must be left out without a word."""
    return how.keys() <= TORCH_KNOWS


def _kernel(how: dict[str, Any]) -> Callable[..., Tensor]:
    return _by_torch if _torch_computes(how) else _by_the_model


def _mask_for(
    how: dict[str, Any],
    packing: Packing,
    window: int | None,
    dtype: torch.dtype,
    rows: int,
    length: int,
    offset: int = 0,
) -> Tensor | None:
    """Return the mask for the kernel that computes `how`."""
    if _torch_computes(how):
        return packing.mask(window, rows, length, offset)
    return packing.added_mask(window, rows, length, offset, dtype)


def _to_add(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to scores: 0 where a token sees another, the lowest number elsewhere."""
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill(~sees, torch.finfo(dtype).min)


def _by_torch(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **how: Any) -> Tensor:
    return sdpa_attention_forward(module, query, key, value, mask, **how)[0]


def _by_the_model(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **how: Any
) -> Tensor:
    """Attend as the model's own file does where no library kernel is used. Raises NotImplementedError without one."""
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:
        raise NotImplementedError(f"attention with {', '.join(sorted(how.keys() - TORCH_KNOWS))}")
    return eager(module, query, key, value, mask, **how)[0]


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


TORCH_KNOWS = {"dropout", "scaling"}
# what decoders hand through to attention that does not change it
NOT_OF_SCORES = {
    "position_ids", "cache_position", "use_cache", "past_key_values", "output_attentions", "output_hidden_states",
    "output_router_logits", "return_dict", "entering",
}  # fmt: skip
AttentionInterface.register(NAME, _attend)
