"""The hidden states that enter a decoder layer, kept while responses are generated: scoring need not compute them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Kept:
    """States per sequence, in the order of its tokens. layer: which decoder layer they enter; None keeps nothing."""

    def __init__(self, decoder: nn.Module, layer: int | None, sequences: int):
        # after the last layer comes the norm: where only it or the head trains, all layers are below
        self._layer = None if layer is None else [*decoder.layers, decoder.norm][layer]
        self._entered: Tensor | None = None
        self._parts: list[list[Tensor]] = [[] for _ in range(sequences)]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While this is open, `last` gives the states of the last forward pass."""
        if self._layer is None:
            yield
            return
        hook = self._layer.register_forward_pre_hook(self._see, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    def _see(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._entered = inputs[0] if inputs else named["hidden_states"]

    def last(self) -> Tensor | None:
        """(rows, tokens, d) of the last forward pass."""
        return self._entered

    def add(self, sequences: Sequence[int | None], states: Tensor | None, lengths: Sequence[int]) -> None:
        """The first lengths[i] states of row i belong to sequences[i], after what it has; None: to nobody."""
        if states is None:
            return
        for row, (sequence, length) in enumerate(zip(sequences, lengths, strict=True)):
            if sequence is not None:
                self._parts[sequence].append(states[row, :length])

    def collect(self, lengths: Sequence[int]) -> list[Tensor] | None:
        """The first lengths[i] states of every sequence, (lengths[i], d) each; None where nothing was kept."""
        if self._layer is None:
            return None
        return [torch.cat(parts)[:length] for parts, length in zip(self._parts, lengths, strict=True)]
