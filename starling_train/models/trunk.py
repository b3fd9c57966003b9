"""A decoder cut in two at a layer, so that what no training changes is computed once.

Below the lowest layer with a trainable tensor, the policy, the reference and the critic compute the same hidden
states. The cut makes two views of the decoder: they hold the same weights, nothing is copied, and they use the model's
own layers and rotary embeddings, on packed sequences.
"""

from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from starling_train.core.row_blocks import RowBlocks, in_blocks
from starling_train.models.causal_lm import Decoder
from starling_train.models.packing import PackedLayer, Packing, bare_copy, copy_of, packed_config


class AnyTrunk(Protocol):
    """A decoder in two halves, the second of which is all that training needs again and again."""

    def prefix(self, ids: Tensor, packing: Packing) -> Tensor:
        """Return what enters the second half: ids (tokens,) -> (tokens, ...)."""

    def suffix(self, entering: Tensor, packing: Packing, read: Tensor) -> Tensor:
        """Return the states after the final norm, (n, d), of the tokens `read` (n,). entering: `prefix`'s result."""


class Trunk:
    """The layers of a decoder as `prefix` (token ids to hidden states) and `suffix` (the rest, and the norm).

    decoder: the transformer below the output head, without a cache.
    lowest: index of the first layer of the suffix; 0 leaves only the embedding in the prefix.
    """

    def __init__(self, decoder: Decoder, lowest: int):
        layers, config = _packed_layers(decoder)
        assert 0 <= lowest <= len(layers), lowest
        self._below, self._above = layers[:lowest], layers[lowest:]
        self._mlp = _choose_positions(self._above)
        self._prefix = _view(decoder, config, self._below)
        self._suffix = _view(decoder, config, self._above, lowest)
        self._norm = decoder.norm
        for packed in self._above[:1]:
            packed.layer.register_forward_pre_hook(_enter, with_kwargs=True)

    def prefix(self, ids: Tensor, packing: Packing) -> Tensor:
        """Run the layers below `lowest`: ids (tokens,) -> hidden states (tokens, d) entering it."""
        return _run(self._prefix, self._below, packing, input_ids=ids[None])

    def suffix(self, entering: Tensor, packing: Packing, read: Tensor) -> Tensor:
        """Run the layers from `lowest` on and the final norm: hidden states (tokens, d) -> states (n, d).

        read: (n,) the tokens whose states are needed. Only they go through the last layer's MLP and the norm.
        """
        if not self._above:
            return self._norm(entering[read])
        if self._mlp is not None:
            self._mlp.read = read
        hidden = entering[None]
        output = _run(self._suffix, self._above, packing, inputs_embeds=hidden, entering=hidden)
        return self._norm(output[read])


def _enter(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Give a layer the states as they are: some decoders scale what they take for embeddings (Granite, Gemma)."""
    # by keyword through the decoder's own forward, so that gradient checkpointing finds it again
    named = dict(named)
    entering = named.pop("entering")
    return ((entering, *inputs[1:]), named) if inputs else ((), named | {"hidden_states": entering})


class WholeTrunk:
    """All layers of a decoder at once, on packed sequences: for decoders that look at the token ids in every layer."""

    def __init__(self, decoder: Decoder):
        self._layers, config = _packed_layers(decoder)
        self._view = _view(decoder, config, self._layers)
        self._norm = decoder.norm

    def prefix(self, ids: Tensor, packing: Packing) -> Tensor:
        """Return the ids themselves."""
        return ids

    def suffix(self, entering: Tensor, packing: Packing, read: Tensor) -> Tensor:
        """Run all layers and the final norm: ids (tokens,) -> states (n, d) of the tokens `read`."""
        return self._norm(_run(self._view, self._layers, packing, input_ids=entering[None])[read])


def _packed_layers(decoder: Decoder) -> tuple[list[PackedLayer], Any]:
    config = packed_config(decoder.config)
    return [PackedLayer(layer, config) for layer in decoder.layers], config


def _choose_positions(layers: list[PackedLayer]) -> "_ChosenPositions | None":
    """Make the last layer's MLP compute only what is read; None for a layer without one."""
    if not layers or not hasattr(layers[-1].layer, "mlp"):
        return None
    mlp = _ChosenPositions(layers[-1].layer.get_submodule("mlp"))
    layers[-1].layer._modules["mlp"] = mlp
    return mlp


def _run(view: Any, layers: list[PackedLayer], packing: Packing, **inputs: Tensor) -> Tensor:
    blocks = in_blocks(view.dtype, packing.positions.device)
    for layer in layers:
        layer.follow(blocks)
    with RowBlocks() if blocks else nullcontext():
        output = view(**inputs, position_ids=packing.positions[None], use_cache=False, packing=packing)
    return output.last_hidden_state[0]


class _ChosenPositions(nn.Module):
    """An MLP that computes only the positions that are read (in `read`); the others keep what they had."""

    def __init__(self, mlp: nn.Module):
        super().__init__()
        self.mlp = mlp
        self.read: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        # `read` is still this micro-batch's under gradient checkpointing: it is recomputed before the next one starts
        assert self.read is not None, "`Trunk.suffix` says what is read"
        chosen = self.mlp(hidden[:, self.read])
        return torch.zeros_like(hidden).index_copy(1, self.read, chosen)


def _view(decoder: Decoder, config: Any, layers: list[PackedLayer], first: int = 0) -> Decoder:
    view = bare_copy(decoder)
    above = nn.ModuleList([layer.layer for layer in layers])
    view._modules = dict(decoder._modules) | {"layers": above, "norm": nn.Identity()}
    view.config = config
    kinds = getattr(config, "layer_types", None)
    if kinds and len(set(kinds)) > 1:  # layers of several kinds find their masks by their number
        view.config = copy_of(config)
        view.config.layer_types = kinds[first : first + len(layers)]
    # transformers truncates to the configured number of layers, which is never fewer than these
    return view
