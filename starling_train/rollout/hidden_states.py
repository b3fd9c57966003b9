"""The hidden states that enter a decoder layer, kept while responses are generated, so that scoring reuses them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from starling_train.models.causal_lm import Decoder


class StateRecorder:
    """Records states per sequence, in the order of its tokens. layer: which decoder layer they enter; None: nothing."""

    def __init__(self, decoder: Decoder, layer: int | None, sequences: int):
        # after the last layer comes the norm: where only it or the head trains, all layers are below
        self._layer = None if layer is None else [*decoder.layers, decoder.norm][layer]
        self._entered: Tensor | None = None
        self._by_sequence: list[list[Tensor]] = [[] for _ in range(sequences)]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record while this is open: `last` gives the states of the last forward pass."""
        if self._layer is None:
            yield
            return
        hook = self._layer.register_forward_pre_hook(self._see, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    def watch(self, module: nn.Module, states: Tensor) -> None:
        """Be told that these states, (rows, tokens, d), enter a layer or the norm whose forward is not called."""
        if module is self._layer:
            self._entered = states

    def _see(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._entered = inputs[0] if inputs else named["hidden_states"]

    def last(self) -> Tensor | None:
        """Return (rows, tokens, d) of the last forward pass."""
        return self._entered

    def add(self, sequences: Sequence[int | None], states: Tensor | None, lengths: Sequence[int]) -> None:
        """Append the first lengths[i] states of row i to sequences[i]; rows whose sequence is None are padding."""
        if states is None:
            return
        for row, (sequence, length) in enumerate(zip(sequences, lengths, strict=True)):
            if sequence is not None:
                self._by_sequence[sequence].append(states[row, :length])

    def collect(self, lengths: Sequence[int]) -> list[Tensor] | None:
        """Return the first lengths[i] states of every sequence, (lengths[i], d) each; None if nothing was recorded."""
        if self._layer is None:
            return None
        return [torch.cat(states)[:length] for states, length in zip(self._by_sequence, lengths, strict=True)]


class SharedStates:
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
            self._states = self._allocate(states)
        by_row = states.split([self._lengths[row] for row in rows])
        for row, own in zip(rows, by_row, strict=True):
            self._states[self._span(row)].copy_(own, non_blocking=True)

    @property
    def is_full(self) -> bool:
        """Whether every sequence was put in."""
        return self._missing == 0

    def _allocate(self, like: Tensor) -> Tensor:
        shape = (self._ends[-1], like.shape[-1])
        is_small = shape[0] * shape[1] * like.element_size() <= self._limit
        if like.is_cuda and not is_small:
            return torch.empty(shape, dtype=like.dtype, pin_memory=True)
        return like.new_empty(shape)

    def get(self, rows: Sequence[int]) -> Tensor:
        """Return (tokens, d) of the sequences `rows`, one after the other, on the device."""
        assert self._states is not None, "nothing was put in"
        by_row = [self._states[self._span(row)] for row in rows]
        if self._states.device == self._device:
            return torch.cat(by_row)
        return torch.cat([states.to(self._device, non_blocking=True) for states in by_row])

    def _span(self, row: int) -> slice:
        return slice(self._ends[row] - self._lengths[row], self._ends[row])
