"""Attention of one new token a row over the keys and values in a `SlotCache`: by a mask, or by the rows' lengths.

By lengths, a row reads the keys that it has and no others, and no shape depends on how long the rows are. That is
torch's own FlashAttention 2 (`torch.nn.attention.varlen`), on a GPU from compute capability 8.0 and in 16 bits.
"""

import inspect
from functools import cache as remembered
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from starling_train.models.causal_lm import CausalLM
from starling_train.rollout.slot_cache import SlotCache

FULL, SLIDING = "full_attention", "sliding_attention"
LARGEST_HEAD = 256
CLOSE = {torch.bfloat16: 0.05, torch.float16: 0.01}  # of the kernel's results and exact ones, both of size 1 or so


def windows_of(policy: CausalLM) -> dict[str, int | None]:
    """Return the sliding window of each type of layer, in tokens; where there is one type, both have its window."""
    config = policy.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if set(getattr(config, "layer_types", None) or ()) == {FULL}:
        window = None
    return {FULL: None, SLIDING: window}


class MaskedAttention:
    """Attends over the used part of all rows. mask: (rows, 1, 1, used), to add to scores."""

    def __init__(self, cache: SlotCache, mask: Tensor):
        self._cache, self._mask = cache, mask

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor, layer: int, scale: float) -> Tensor:
        """Keep new keys and values, (rows, key heads, 1, size), and attend: (rows, heads, 1, size) -> the same shape.

        layer: its index. scale: of scores.
        """
        keys, values = self._cache.update(keys, values, layer)
        if queries.device.type == "cpu":
            return scaled_dot_product_attention(queries, keys, values, self._mask, scale=scale, enable_gqa=True)
        return grouped(queries, keys, values, self._mask, scale)


def grouped(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attend with the heads that share keys as that many queries: no fused CUDA kernel takes a mask and fewer keys."""
    together = queries[:, :, 0].unflatten(1, (keys.shape[1], -1))
    return scaled_dot_product_attention(together, keys, values, mask, scale=scale).flatten(1, 2)[:, :, None]


class Rows:
    """Rows that each take a token, for a kernel that knows lengths. positions: of the tokens, (rows,).

    Attributes: `lengths` (rows,), with the new token; `starts`, of each row's query and of its keys, and where the last
    ends, (rows + 1,) each. All are int32.
    """

    def __init__(self, positions: Tensor, capacity: int):
        self.lengths = (positions + 1).to(torch.int32)
        rows = torch.arange(len(positions) + 1, dtype=torch.int32, device=positions.device)
        self.starts = rows, rows * capacity


class LengthAttention:
    """Attends in each row over as many positions as it has. window: only over the last so many of them."""

    def __init__(self, cache: SlotCache, rows: Rows, window: int | None):
        self._cache, self._rows, self._window = cache, rows, window

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor, layer: int, scale: float) -> Tensor:
        """Do the same as `MaskedAttention`."""
        self._cache.write(keys, values, layer)
        keys, values = self._cache.by_token(layer)
        rows, capacity = self._rows, self._cache.capacity
        queries = queries[:, :, 0].contiguous()
        return by_lengths(queries, keys, values, rows.starts, rows.lengths, capacity, self._window, scale)[:, :, None]


def by_lengths(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    starts: tuple[Tensor, Tensor],
    lengths: Tensor,
    capacity: int,
    window: int | None,
    scale: float,
) -> Tensor:
    """Attend with one query a row, (rows, heads, size) -> the same shape, over the row's own keys.

    keys, values: (tokens, key heads, size) of all rows.
    starts: of each row in queries and in keys, and the end of the last, (rows + 1,) each, int32.
    lengths: how many keys of each row are there, (rows,), int32.
    capacity: that none of them exceeds.
    window: only the last so many of them, if not None.
    """
    from torch.nn.attention.varlen import varlen_attn

    limited = window is not None and window < capacity
    found: Any = varlen_attn(
        queries,
        keys,
        values,
        *starts,
        1,
        capacity,
        scale=scale,
        window_size=(window - 1, 0) if limited and window else (-1, -1),
        enable_gqa=True,
        seqused_k=lengths,
    )
    return found


def has_lengths(policy: CausalLM) -> bool:
    """Return whether `by_lengths` serves this model here: its GPU, type and sizes, and the kernel's own results."""
    config = policy.config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    if policy.device.type != "cuda" or policy.dtype not in CLOSE or size > LARGEST_HEAD or size % 8:
        return False
    if torch.cuda.get_device_capability(policy.device)[0] < 8 or not _takes_lengths():
        return False
    return agrees(heads, shared, size, policy.dtype, policy.device, windows_of(policy)[SLIDING])


def _takes_lengths() -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # torch before 2.10
        return False
    return {"seqused_k", "enable_gqa", "window_size"} <= inspect.signature(varlen_attn).parameters.keys()


@remembered
def agrees(heads: int, shared: int, size: int, dtype: torch.dtype, device: torch.device, window: int | None) -> bool:
    """Return whether `by_lengths` gives what plain attention gives, for three rows of random numbers.

    heads, shared, size: heads of queries and of keys, and their size. window: of the model; a short one is tried, too.
    """
    capacity, lengths = 512, [1, 130, 509]
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = (
        torch.randn(shape, generator=generator).to(dtype=dtype, device=device)
        for shape in ((3, heads, size), (3 * capacity, shared, size), (3 * capacity, shared, size))
    )
    rows = torch.arange(4, dtype=torch.int32, device=device)
    used = torch.tensor(lengths, dtype=torch.int32, device=device)
    try:
        for limit in {None, None if window is None else min(window, 100)}:
            found = by_lengths(queries, keys, values, (rows, rows * capacity), used, capacity, limit, size**-0.5)
            for row, length in enumerate(lengths):
                first = max(0, length - limit) if limit else 0
                own = slice(row * capacity + first, row * capacity + length)
                k, v = (
                    part[own].float().transpose(0, 1).repeat_interleave(heads // shared, 0) for part in (keys, values)
                )
                exact = scaled_dot_product_attention(queries[row, :, None].float(), k, v, scale=size**-0.5)[:, 0]
                if not torch.allclose(found[row].float(), exact, atol=CLOSE[dtype], rtol=CLOSE[dtype]):
                    return False
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return False
    return True
