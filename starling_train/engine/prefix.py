"""Hidden states below the lowest layer that trains: computed once per rollout, used by every pass and every epoch."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Prefix:
    """The states that enter the lowest trained layer, for every real token of a rollout, without padding.

    lengths: tokens of each sequence. They stay on `device` up to `device_gb` (decimal) and lie in pinned host memory
    beyond that. At d = 4096 in bfloat16 a token takes 8 KB.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device, device_gb: float):
        self._lengths, self._device, self._limit = list(lengths), device, device_gb * 1e9
        self._ends = torch.tensor(self._lengths).cumsum(0).tolist()
        self._states: Tensor | None = None
        self._missing = len(self._lengths)

    def put(self, rows: Sequence[int], states: Tensor) -> None:
        """Keep states (tokens, d) of the sequences `rows`, one after the other; each sequence once."""
        self._missing -= len(rows)
        if self._states is None:
            self._states = self._room(states)
        parts = states.split([self._lengths[row] for row in rows])
        for row, part in zip(rows, parts, strict=True):
            self._states[self._place(row)].copy_(part, non_blocking=True)

    @property
    def is_full(self) -> bool:
        """Whether every sequence was put in."""
        return self._missing == 0

    def _room(self, like: Tensor) -> Tensor:
        shape = (self._ends[-1], like.shape[-1])
        is_small = shape[0] * shape[1] * like.element_size() <= self._limit
        if like.is_cuda and not is_small:
            return torch.empty(shape, dtype=like.dtype, pin_memory=True)
        return like.new_empty(shape)

    def get(self, rows: Sequence[int]) -> Tensor:
        """(tokens, d) of the sequences `rows`, one after the other, on the device."""
        assert self._states is not None, "nothing was put in"
        parts = [self._states[self._place(row)] for row in rows]
        if self._states.device == self._device:
            return torch.cat(parts)
        return torch.cat([part.to(self._device, non_blocking=True) for part in parts])

    def _place(self, row: int) -> slice:
        return slice(self._ends[row] - self._lengths[row], self._ends[row])
