"""A decoder cut in two at a layer, so that what no training changes is computed once.

Below the lowest layer with a trainable tensor, the policy, the reference and the critic compute the same hidden
states. The cut makes two views of the decoder: they hold the same layer modules, so nothing is copied, and they use
the model's own attention masks and rotary embeddings.
"""

import copy

import torch
from torch import Tensor, nn


class Trunk:
    """The layers of a decoder as `prefix` (token ids to hidden states) and `suffix` (on from there, before the norm).

    decoder: the transformer below the output head (a causal LM's `.model`), without a cache.
    lowest: index of the first layer of the suffix; 0 leaves only the embedding in the prefix.
    """

    def __init__(self, decoder: nn.Module, lowest: int):
        layers = list(decoder.layers)
        assert 0 <= lowest <= len(layers), lowest
        self._prefix = _view(decoder, layers[:lowest])
        self._last = _WhereRead(layers[-1]) if lowest < len(layers) and hasattr(layers[-1], "mlp") else None
        above = layers[lowest:] if self._last is None else [*layers[lowest:-1], self._last.layer]
        self._suffix = _view(decoder, above, lowest)
        self._norm = decoder.norm

    def prefix(self, ids: Tensor) -> Tensor:
        """ids: (b, length), right-padded -> hidden states (b, length, d) entering layer `lowest`."""
        return self._prefix(input_ids=ids, use_cache=False).last_hidden_state

    def suffix(self, hidden: Tensor, read: Tensor) -> Tensor:
        """hidden: (b, length, d) entering layer `lowest` -> states (n, d) after the last layer and the final norm.

        read: (n,) the positions, flat in (b x length), that are asked for. Nothing follows the last layer's MLP but
        them, so they alone go through it, through the norm, and through what comes after. No padding mask is needed:
        attention is causal and padding lies to the right of every real token.
        """
        if self._last is not None:
            self._last.prepare(read)
        states = self._suffix(inputs_embeds=hidden, use_cache=False).last_hidden_state
        return self._norm(states.flatten(0, 1)[read])


class _WhereRead:
    """A view of a decoder layer whose MLP computes only the positions that are read; the others keep what they had."""

    def __init__(self, layer: nn.Module):
        self._original = layer
        self.layer = copy.copy(layer)
        self._mlp = _ChosenPositions(layer.mlp)
        self.layer._modules = dict(layer._modules) | {"mlp": self._mlp}

    def prepare(self, read: Tensor) -> None:
        """For the next forward pass, and its repetition under gradient checkpointing."""
        self._mlp.read = read
        for name in ("training", "gradient_checkpointing", "_gradient_checkpointing_func"):
            if hasattr(self._original, name):
                setattr(self.layer, name, getattr(self._original, name))


class _ChosenPositions(nn.Module):
    def __init__(self, mlp: nn.Module):
        super().__init__()
        self.mlp = mlp
        self.read = None

    def forward(self, hidden: Tensor) -> Tensor:
        flat = hidden.flatten(0, 1)
        chosen = self.mlp(flat[self.read][None])[0]
        return torch.zeros_like(flat).index_copy(0, self.read, chosen).view_as(hidden)


def _view(decoder: nn.Module, layers: list[nn.Module], first: int = 0) -> nn.Module:
    view = copy.copy(decoder)
    view._modules = dict(decoder._modules) | {"layers": nn.ModuleList(layers), "norm": nn.Identity()}
    kinds = getattr(decoder.config, "layer_types", None)
    if kinds and len(set(kinds)) > 1:  # layers of several kinds find their masks by their number
        view.config = copy.copy(decoder.config)
        view.config.layer_types = kinds[first : first + len(layers)]
    # transformers truncates to the configured number of layers, which is never fewer than these
    return view
