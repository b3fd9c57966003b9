"""Products with the weights of linear layers in many short steps on a CPU: packed once, where that is faster.

A bfloat16 product lays its weights out anew in every call, which takes as long as the product itself when there are
few rows. In float32 nothing is gained (measured, benchmarks/RESULTS.md): the layers' own forward is called.
"""

from typing import Any

import torch
from torch import Tensor, nn

from starling_train.rollout.kernels import TILE_PAIR, Kernels, tiled

ROWS = 64  # for which oneDNN chooses the layout; every number of rows can be multiplied with it


def can_pack(layers: tuple[nn.Module, ...]) -> bool:
    """Return whether weights are packed: of plain layers, no adapter's or quantised ones, in bfloat16 on a CPU."""
    operations: Any = torch.ops.mkldnn
    return (
        all(type(layer) is nn.Linear and layer.weight.dtype == torch.bfloat16 for layer in layers)
        and all(layer.weight.device.type == "cpu" for layer in layers)
        and torch.backends.mkldnn.is_available()
        and hasattr(operations, "_reorder_linear_weight")
        and hasattr(operations, "_linear_pointwise")
        and bool(operations._is_mkldnn_bf16_supported())
    )


class Product:
    """W x + b of layers that read the same input, their outputs side by side.

    Packed weights are a copy: they are those of the moment at which this was made.
    """

    def __init__(self, *layers: nn.Module):
        self._layers = layers
        self._weight: Tensor | None = None
        self._bias: Tensor | None = None
        self._operations: Any = torch.ops.mkldnn
        if can_pack(layers):
            linear: list[Any] = list(layers)
            weights = [layer.weight.detach() for layer in linear]
            joined = weights[0] if len(weights) == 1 else torch.cat(weights)
            self._weight = self._operations._reorder_linear_weight(joined, ROWS)
            if any(layer.bias is not None for layer in linear):
                # where only some have one, the others' is 0
                biases = [layer.weight.new_zeros(layer.out_features) for layer in linear]
                biases = [
                    zero if layer.bias is None else layer.bias for zero, layer in zip(biases, linear, strict=True)
                ]
                self._bias = torch.cat(biases).detach()

    def __call__(self, inputs: Tensor) -> Tensor:
        """(n, in) -> (n, out of all layers)."""
        if self._weight is not None:
            return self._operations._linear_pointwise(inputs, self._weight, self._bias, "none", [], "")
        parts = [layer(inputs) for layer in self._layers]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def silu(self, inputs: Tensor) -> Tensor:
        """Return silu of the product."""
        if self._weight is not None:
            return self._operations._linear_pointwise(inputs, self._weight, self._bias, "swish", [], "")
        return nn.functional.silu(self(inputs))

    def times(self, inputs: Tensor, other: Tensor) -> Tensor:
        """Return the product times `other` (n, out), element by element."""
        return self(inputs) * other if self._weight is None else self._with(inputs, other, "mul")

    def plus(self, inputs: Tensor, other: Tensor) -> Tensor:
        """Return the product plus `other` (n, out)."""
        return self(inputs) + other if self._weight is None else self._with(inputs, other, "add")

    def unrounded(self, inputs: Tensor) -> Tensor:
        """Return the product without rounding it, by a second one for what the first rounded away."""
        rounded = self(inputs)
        return rounded if self._weight is None else rounded.float().add_(self._with(inputs, rounded, "sub"))

    def _with(self, inputs: Tensor, other: Tensor, operation: str) -> Tensor:
        return self._operations._linear_pointwise.binary(inputs, other, self._weight, self._bias, operation)


class Float32Product:
    """W x + b of one layer without rounding it, as `core.float32_products` does.

    compiled: kernels, which read the weights once where the CPU multiplies tiles; else they are read twice.
    """

    def __init__(self, layer: nn.Module, compiled: Kernels | None):
        linear: Any = layer
        self._tiles: Tensor | None = None
        if compiled is not None and compiled.has_tiles and can_pack((layer,)) and linear.in_features % TILE_PAIR == 0:
            self._kernels, self._columns = compiled, linear.out_features
            self._tiles = tiled(linear.weight)
            self._bias = None if linear.bias is None else linear.bias.detach().float()
        else:
            self._product = Product(layer)

    def __call__(self, inputs: Tensor) -> Tensor:
        """(n, in) -> (n, out), float32 where the weights are packed."""
        if self._tiles is not None:
            product = self._kernels.project(inputs.contiguous(), self._tiles, self._columns)
            return product if self._bias is None else product.add_(self._bias)
        return self._product.unrounded(inputs)
