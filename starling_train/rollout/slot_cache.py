"""Keys and values of sequences that step together, each at its own length, in memory that is allocated once."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

GROWTH = 32  # tokens by which the part of the cache that is touched grows


class SlotCache:
    """A cache for transformers' decoders: per layer (slots, heads, capacity, head size), for keys and for values.

    `admit` copies in the keys and values of prompts. For a decoding step, `aim` says where each row's next token goes;
    the attention layers then call `update`, which writes it there and returns the used part of every row.
    """

    is_compileable = False  # an attribute that transformers reads; nothing here is for torch.compile

    def __init__(self, like: Any, slots: int, capacity: int, token_by_token: bool = False):
        """Take over the layers' shapes, dtype and device from `like`, a transformers cache that holds something.

        token_by_token: all heads of a token lie together in memory, as `by_token` needs, else all tokens of a head.
        """

        def empty(tensor: Tensor) -> Tensor:
            heads, size = tensor.shape[1], tensor.shape[3]
            if token_by_token:
                return tensor.new_empty(slots, capacity, heads, size).transpose(1, 2)
            return tensor.new_empty(slots, heads, capacity, size)

        self._keys, self._values = ([empty(tensor) for tensor in tensors] for tensors in _tensors(like))
        self.capacity, self._touched, self._used = capacity, 0, 0
        self._rows = self._positions = torch.empty(0, dtype=torch.long)

    @property
    def size_in_bytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(tensor.numel() * tensor.element_size() for tensor in [*self._keys, *self._values])

    def admit(self, prompts: Any, rows: list[int], sources: list[int] | None = None) -> None:
        """Take over `prompts` (a transformers cache of one right-padded batch), one into each of `rows`.

        sources: which of them; 0, 1, ... if None.
        """
        keys, values = _tensors(prompts)
        longest = keys[0].shape[2]
        self.touch(longest)
        index = torch.tensor(rows, device=keys[0].device)
        source = None if sources is None else torch.tensor(sources, device=keys[0].device)
        for mine, theirs in zip([*self._keys, *self._values], [*keys, *values], strict=True):
            mine[index, :, :longest] = theirs if source is None else theirs[source]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of one row over another."""
        for tensor in [*self._keys, *self._values]:
            tensor[target, :, :length] = tensor[source, :, :length]

    def touch(self, used: int) -> None:
        """Make the first `used` positions of all rows finite: what is masked weighs 0 in attention, and 0 x nan is nan.

        Memory that no position needs yet stays untouched, and on a CPU costs nothing.
        """
        if used > self._touched:
            end = min(self.capacity, used + GROWTH)
            for tensor in [*self._keys, *self._values]:
                tensor[:, :, self._touched : end] = 0
            self._touched = end

    def aim(self, rows: Tensor, positions: Tensor, used: int) -> None:
        """Point the next `update` at `rows`, 0 to n - 1, at these positions (n,), all below `used`."""
        self.touch(used)
        self._rows, self._positions, self._used = rows, positions, used

    def write(self, keys: Tensor, values: Tensor, layer: int) -> None:
        """Write one token a row, (n, heads, 1, head size) of both."""
        for tensor, new in ((self._keys[layer], keys), (self._values[layer], values)):
            tensor[self._rows, :, self._positions] = new[:, :, 0]

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write one token a row, (n, heads, 1, head size); returns (n, heads, used, head size) of both."""
        self.write(keys, values, layer)
        return self._keys[layer][: len(keys), :, : self._used], self._values[layer][: len(keys), :, : self._used]

    def by_token(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return views (slots x capacity, heads, head size) of a layer's keys and values: a token's heads together."""
        keys, values = (part[layer].transpose(1, 2) for part in (self._keys, self._values))
        return keys.view(-1, *keys.shape[2:]), values.view(-1, *values.shape[2:])

    def whole(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values, (slots, heads, capacity, head size) each, unwritten places too."""
        return self._keys[layer], self._values[layer]


def only_row(cache: Any, row: int) -> DynamicCache:
    """Copy the keys and values of one row of a transformers cache."""
    copied = DynamicCache()
    for layer, (keys, values) in enumerate(zip(*_tensors(cache), strict=True)):
        copied.update(keys[row : row + 1], values[row : row + 1], layer)  # which copies
    return copied


def _tensors(cache: Any) -> tuple[list[Tensor], list[Tensor]]:
    return [layer.keys for layer in cache.layers], [layer.values for layer in cache.layers]
