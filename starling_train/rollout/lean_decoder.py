"""A decoder of plain layers, computed one token a row with fewer operations than its modules take.

Queries, keys and values come from one product; keys and values are not repeated for the heads that share them; the
rest of a layer is folded into its products. A model is admitted by its parts (`fits`) and by its logits
(`start_check`), not by a list of names.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from starling_train.models.causal_lm import CausalLM
from starling_train.rollout import kernels
from starling_train.rollout.products import Product
from starling_train.rollout.slot_cache import SlotCache
from starling_train.run import machine

FROM = 5_000_000  # parameters: in a smaller model on a CPU, compiling takes longer than all of this saves
COPY_SHARE = 0.25  # of the machine's memory, at most, for the packed copies of all its processes
LAYER = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
ATTENTION_NORMS = {"q_norm", "k_norm"}
MLP = {"gate_proj", "up_proj", "down_proj"}


def fits(policy: CausalLM) -> bool:
    """Return whether a model may be computed like this, by its place, its size and the parts of its layers."""
    decoder: Any = policy.get_decoder()
    parameters = list(policy.parameters())
    count = sum(parameter.numel() for parameter in parameters)
    copies = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) * 2 * count if policy.dtype == torch.bfloat16 else 0
    return (
        policy.config._attn_implementation == "sdpa"
        and not any(hasattr(parameter, "ds_id") for parameter in parameters)  # ZeRO's shards
        # by what the machine has, not by what is free: a run that is resumed decides the same
        and (policy.device.type != "cpu" or (count >= FROM and copies <= COPY_SHARE * machine.memory_bytes()))
        and _parts(decoder) >= {"embed_tokens", "layers", "norm", "rotary_emb"}
        and all(map(_is_plain, decoder.layers))
    )


def _is_plain(layer: Any) -> bool:
    if _parts(layer) != LAYER or not _parts(layer.mlp) >= MLP or not _parts(layer.self_attn) >= ATTENTION:
        return False
    activation = getattr(layer.mlp, "act_fn", None)
    return (
        _parts(layer.mlp) - {"act_fn"} == MLP
        and _parts(layer.self_attn) - ATTENTION in (set(), ATTENTION_NORMS)
        and not [*layer.self_attn.parameters(recurse=False), *layer.mlp.parameters(recurse=False)]
        and (isinstance(activation, nn.SiLU) or type(activation).__name__ == "SiLUActivation")
    )


def _parts(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


def kernels_of(policy: CausalLM) -> kernels.Kernels | None:
    """Return the compiled kernels, where there are any and they compute what this model's layers do."""
    decoder: Any = policy.get_decoder()
    norms = [decoder.norm]
    for layer in decoder.layers:
        norms += [layer.input_layernorm, layer.post_attention_layernorm]
        norms += [part for name, part in layer.self_attn.named_children() if name in ATTENTION_NORMS]
    sizes = {layer.self_attn.head_dim for layer in decoder.layers}
    fit = (
        policy.device.type == "cpu"
        and policy.dtype in kernels.TYPES
        and all(map(_is_rms, norms))
        and max(sizes) <= kernels.LARGEST_HEAD
    )
    return kernels.compiled() if fit else None


class Attention(Protocol):
    """Attention of a step in layers of one kind, as in `rollout.attention`: keeps new keys and values, and attends."""

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor, layer: int, scale: float) -> Tensor:
        """(rows, heads, 1, size) of queries -> the same shape."""


class LeanDecoder:
    """A decoder from tokens to last hidden states. Weights may be copies of the moment at which it is made."""

    def __init__(self, policy: CausalLM):
        self._decoder: Any = policy.get_decoder()
        self.kernels = kernels_of(policy)
        kinds = getattr(policy.config.get_text_config(), "layer_types", None)
        count = len(self._decoder.layers)
        self._kinds = list(kinds) if kinds and len(set(kinds)) > 1 else ["sliding_attention"] * count
        self._layers = [_Layer(layer, index, self.kernels) for index, layer in enumerate(self._decoder.layers)]

    def __call__(
        self,
        ids: Tensor,
        positions: Tensor,
        cache: SlotCache,
        seen: Mapping[str, Attention] | Mapping[str, int],
        watch: Callable[[nn.Module, Tensor], None],
    ) -> Tensor:
        """Return the last hidden states, (rows, d), of a token in each row.

        ids, positions: (rows,).
        cache: of keys and values.
        seen: by the kind of a layer, with kernels how many of the last positions it attends to, 0 for all; without,
            its attention.
        watch: is called with each layer, and with the last norm, and the states that enter it, (rows, 1, d).
        """
        hidden = self._decoder.embed_tokens(ids)
        cos, sin = self._decoder.rotary_emb(hidden[:, None], position_ids=positions[:, None])
        assert cos.shape[-1] == self._layers[0].size, "all of a head is turned"
        for layer, kind in zip(self._layers, self._kinds, strict=True):
            watch(layer.module, hidden[:, None])
            hidden = layer(hidden, positions, (cos, sin), cache, seen[kind])
        watch(self._decoder.norm, hidden[:, None])
        return _normed(self._decoder.norm, hidden, self.kernels)


class _Layer:
    def __init__(self, layer: Any, index: int, compiled: kernels.Kernels | None):
        attention, mlp = layer.self_attn, layer.mlp
        self.module, self._index, self._kernels = layer, index, compiled
        self.size, self._scale = attention.head_dim, attention.scaling
        self._queries, self._keys = (part.out_features // self.size for part in (attention.q_proj, attention.k_proj))
        self._norms = (attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None
        self._projections = Product(attention.q_proj, attention.k_proj, attention.v_proj, compiled=compiled)
        parts = attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self._out, self._gate, self._up, self._down = (Product(part, compiled=compiled) for part in parts)

    def __call__(
        self, hidden: Tensor, positions: Tensor, angles: tuple[Tensor, Tensor], cache: SlotCache, seen: Any
    ) -> Tensor:
        projected = self._projections(_normed(self.module.input_layernorm, hidden, self._kernels))
        if self._kernels is None:
            mixed = self._attend(projected, angles, seen)
        else:
            weights = None if self._norms is None else (self._norms[0].weight, self._norms[1].weight)
            epsilon = 0.0 if self._norms is None else self._norms[0].variance_epsilon
            whole = cache.whole(self._index)
            mixed = self._kernels.attend(projected, weights, angles, whole, positions, seen, self._scale, epsilon)
        hidden = self._out.plus(mixed, hidden)
        normed = _normed(self.module.post_attention_layernorm, hidden, self._kernels)
        return self._down.plus(self._up.times(normed, self._gate.silu(normed)), hidden)

    def _attend(self, projected: Tensor, angles: tuple[Tensor, Tensor], attend: Attention) -> Tensor:
        """Do the same as `Kernels.attend`, with operations of torch."""
        heads = projected.view(len(projected), -1, self.size)
        turned, values = heads[:, : -self._keys], heads[:, -self._keys :]
        if self._norms is not None:
            parts = turned.split([self._queries, self._keys], 1)
            turned = torch.cat([_normed(norm, part) for norm, part in zip(self._norms, parts, strict=True)], 1)
        turned = _turned(turned, *angles)
        queries, new_keys = turned[:, : self._queries, None], turned[:, self._queries :, None]
        mixed = attend(queries, new_keys, values[:, :, None], self._index, self._scale)
        return mixed.reshape(len(projected), -1)


def _is_rms(norm: Any) -> bool:
    return hasattr(norm, "variance_epsilon") and type(norm).__name__.endswith("RMSNorm")


def _normed(norm: Any, states: Tensor, compiled: kernels.Kernels | None = None) -> Tensor:
    if not _is_rms(norm):
        return norm(states)
    if compiled is not None:
        return compiled.norm(states, norm.weight, norm.variance_epsilon)
    return rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn (rows, heads, size) by its positions' angles, (rows, 1, size)."""
    first, second = heads.chunk(2, -1)
    return heads * cos + torch.cat([-second, first], -1) * sin
