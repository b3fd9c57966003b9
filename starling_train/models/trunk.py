"""A decoder cut in two at a layer, so that what no training changes is computed once.

Below the lowest layer with a trainable tensor, the policy, the reference and the critic compute the same hidden
states. The cut makes two views of the decoder: they hold the same weights, nothing is copied, and they use the model's
own layers and rotary embeddings, on packed sequences.
"""

from typing import Any

import torch
from torch import Tensor, nn

from starling_train.models.causal_lm import Decoder
from starling_train.models.packing import PackedLayer, Packing, bare_copy, copy_of, packed_config


class Trunk:
    """The layers of a decoder as `prefix` (token ids to hidden states) and `suffix` (the rest, and the norm).

    decoder: the transformer below the output head (a causal LM's `.model`), without a cache.
    lowest: index of the first layer of the suffix; 0 leaves only the embedding in the prefix.
    """

    def __init__(self, decoder: Decoder, lowest: int):
        config = packed_config(decoder.config)
        layers = [PackedLayer(layer, config) for layer in decoder.layers]
        assert 0 <= lowest <= len(layers), lowest
        self._below, self._above = layers[:lowest], layers[lowest:]
        self._mlp: _ChosenPositions | None = None
        if self._above and hasattr(self._above[-1].layer, "mlp"):
            self._mlp = _ChosenPositions(self._above[-1].layer.get_submodule("mlp"))
            self._above[-1].layer._modules["mlp"] = self._mlp
        self._prefix = _view(decoder, config, self._below)
        self._suffix = _view(decoder, config, self._above, lowest)
        self._norm = decoder.norm

    def prefix(self, ids: Tensor, packing: Packing) -> Tensor:
        """Run the layers below `lowest`: ids (tokens,) -> hidden states (tokens, d) entering it."""
        return _run(self._prefix, self._below, packing, input_ids=ids[None])

    def suffix(self, hidden: Tensor, packing: Packing, read: Tensor) -> Tensor:
        """Run the layers from `lowest` on and the final norm: hidden (tokens, d) -> states (n, d).

        read: (n,) the tokens whose states are needed. Only they go through the last layer's MLP and the norm.
        """
        if self._mlp is not None:
            self._mlp.read = read
        return self._norm(_run(self._suffix, self._above, packing, inputs_embeds=hidden[None])[read])


def _run(view: nn.Module, layers: list[PackedLayer], packing: Packing, **inputs: Tensor) -> Tensor:
    for layer in layers:
        layer.follow()
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
