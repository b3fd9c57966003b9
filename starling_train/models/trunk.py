"""A decoder cut in two at a layer, so that what no training changes is computed once.

Below the lowest layer with a trainable tensor, the policy, the reference and the critic compute the same hidden
states. The cut makes two views of the decoder: they hold the same layer modules, so nothing is copied, and they use
the model's own attention masks and rotary embeddings.
"""

import copy

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
        self._suffix = _view(decoder, layers[lowest:])
        self._norm = decoder.norm

    def prefix(self, ids: Tensor) -> Tensor:
        """ids: (b, length), right-padded -> hidden states (b, length, d) entering layer `lowest`."""
        return self._prefix(input_ids=ids, use_cache=False).last_hidden_state

    def suffix(self, hidden: Tensor) -> Tensor:
        """hidden: (b, length, d) entering layer `lowest` -> hidden states after the last layer, not yet normed.

        No padding mask is needed: attention is causal and padding lies to the right of every real token.
        """
        return self._suffix(inputs_embeds=hidden, use_cache=False).last_hidden_state

    def norm(self, hidden: Tensor) -> Tensor:
        return self._norm(hidden)


def _view(decoder: nn.Module, layers: list[nn.Module]) -> nn.Module:
    view = copy.copy(decoder)
    view._modules = dict(decoder._modules) | {"layers": nn.ModuleList(layers), "norm": nn.Identity()}
    # transformers truncates to the configured number of layers, which is never fewer than these
    return view
