"""The hidden states that enter a decoder layer, kept while responses are generated, so that scoring reuses them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from starling_train.models.causal_lm import Decoder


class Entered(NamedTuple):
    """The states of a sequence's tokens that entered a layer, (tokens, d) each: of its prompt, and of the others.

    Sequences that were prefilled together may have their prompt's in common: one tensor, held once.
    """

    prompt: Tensor
    rest: Tensor

    @classmethod
    def cut(cls, pieces: list[Tensor], length: int) -> "Entered":
        """Keep the first `length` states of these pieces, of which the first is the prompt's."""
        prompt = pieces[0][:length]
        rest = torch.cat([prompt[:0], *pieces[1:]])
        return cls(prompt, rest[: length - len(prompt)])

    def whole(self) -> Tensor:
        """Return all of them."""
        return torch.cat(self)


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

    def add_prompts(
        self, sequences: Sequence[int], states: Tensor | None, lengths: Sequence[int], rows: Sequence[int]
    ) -> None:
        """Begin sequences with the states of their prompts: the first lengths[i] of rows[i], each row copied once."""
        if states is None:
            return
        copied: dict[int, Tensor] = {}
        for sequence, length, row in zip(sequences, lengths, rows, strict=True):
            if row not in copied:  # not a view, which would keep the padding of the whole batch
                copied[row] = states[row, :length].clone()
            self._by_sequence[sequence].append(copied[row])

    def collect(self, lengths: Sequence[int]) -> list[Entered] | None:
        """Return the first lengths[i] states of every sequence; None if nothing was recorded."""
        if self._layer is None:
            return None
        return [Entered.cut(states, length) for states, length in zip(self._by_sequence, lengths, strict=True)]


class SharedStates:
    """The states that enter the lowest trained layer, for every real token of a rollout, without padding.

    lengths: tokens of each part, a sequence or a piece of one. They stay on `device` up to `device_gb` (decimal) and
    lie in pinned host memory beyond that. At d = 4096 in bfloat16 a token takes 8 KB.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device, device_gb: float):
        self._lengths, self._device, self._limit = list(lengths), device, device_gb * 1e9
        self._ends = torch.tensor(self._lengths).cumsum(0).tolist()
        self._states: Tensor | None = None
        self._missing = {part for part, length in enumerate(self._lengths) if length}

    def put(self, parts: Sequence[int], states: Tensor) -> None:
        """Keep states (tokens, d) of these parts, one after the other; those that are there already stay."""
        if self._states is None:
            self._states = self._allocate(states)
        for part, own in zip(parts, states.split([self._lengths[part] for part in parts]), strict=True):
            if part in self._missing:
                self._missing.remove(part)
                self._states[self._span(part)].copy_(own, non_blocking=True)

    @property
    def is_full(self) -> bool:
        """Whether every part was put in."""
        return not self._missing

    def _allocate(self, like: Tensor) -> Tensor:
        shape = (self._ends[-1], like.shape[-1])
        is_small = shape[0] * shape[1] * like.element_size() <= self._limit
        if like.is_cuda and not is_small:
            return torch.empty(shape, dtype=like.dtype, pin_memory=True)
        return like.new_empty(shape)

    def get(self, parts: Sequence[int]) -> Tensor:
        """Return (tokens, d) of these parts, one after the other, on the device."""
        assert self._states is not None, "nothing was put in"
        each = [self._states[self._span(part)] for part in parts]
        if self._states.device == self._device:
            return torch.cat(each)
        return torch.cat([states.to(self._device, non_blocking=True) for states in each])

    def _span(self, part: int) -> slice:
        return slice(self._ends[part] - self._lengths[part], self._ends[part])
