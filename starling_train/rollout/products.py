"""Products with the weights of linear layers in many short steps on a CPU: packed once, where that is faster.

A bfloat16 product lays its weights out anew in every call, which takes as long as the product itself when there are
few rows. In float32 nothing is gained (measured, benchmarks/RESULTS.md): the layers' own forward is called.
"""

from typing import Any

import torch
from torch import Tensor, nn

from starling_train.rollout.kernels import Kernels, TiledWeight

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

    compiled: kernels, which multiply faster where the CPU has tiles; else oneDNN does.
    """

    def __init__(self, *layers: nn.Module, compiled: Kernels | None = None):
        self._layers = layers
        self._weight: Tensor | None = None
        self._tiles: TiledWeight | None = None
        self._operations: Any = torch.ops.mkldnn
        if can_pack(layers):
            weight, self._bias = _joined(layers)
            if compiled is not None and compiled.has_tiles and TiledWeight.fits(weight):
                self._kernels, self._tiles = compiled, TiledWeight(weight, self._bias)
            else:
                self._weight = self._operations._reorder_linear_weight(weight, ROWS)

    def __call__(self, inputs: Tensor) -> Tensor:
        """(n, in) -> (n, out of all layers)."""
        if self._tiles is not None:
            return self._kernels.product(inputs, self._tiles)
        if self._weight is not None:
            return self._operations._linear_pointwise(inputs, self._weight, self._bias, "none", [], "")
        parts = [layer(inputs) for layer in self._layers]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def unrounded(self, inputs: Tensor) -> Tensor:
        """Return the product in float32, as `core.float32_products` does; layers that are not packed return their own.

        oneDNN rounds, so there a second product recovers what was lost.
        """
        if self._tiles is not None:
            return self._kernels.product(inputs, self._tiles, dtype=torch.float32)
        product = self(inputs)
        return product if self._weight is None else product.float().add_(self._with(inputs, product, "sub"))

    def silu(self, inputs: Tensor) -> Tensor:
        """Return silu of the product."""
        if self._tiles is not None:
            return self._kernels.product(inputs, self._tiles, "silu")
        if self._weight is not None:
            return self._operations._linear_pointwise(inputs, self._weight, self._bias, "swish", [], "")
        return nn.functional.silu(self(inputs))

    def times(self, inputs: Tensor, other: Tensor) -> Tensor:
        """Return the product times `other` (n, out), element by element."""
        if self._tiles is not None:
            return self._kernels.product(inputs, self._tiles, "times", other)
        return self(inputs) * other if self._weight is None else self._with(inputs, other, "mul")

    def plus(self, inputs: Tensor, other: Tensor) -> Tensor:
        """Return the product plus `other` (n, out)."""
        if self._tiles is not None:
            return self._kernels.product(inputs, self._tiles, "plus", other)
        return self(inputs) + other if self._weight is None else self._with(inputs, other, "add")

    def _with(self, inputs: Tensor, other: Tensor, operation: str) -> Tensor:
        return self._operations._linear_pointwise.binary(inputs, other, self._weight, self._bias, operation)


def _joined(layers: tuple[nn.Module, ...]) -> tuple[Tensor, Tensor | None]:
    """Return the layers' weights and biases, one below the other; 0 where only others have a bias."""
    linear: list[Any] = list(layers)
    weights = [layer.weight.detach() for layer in linear]
    biases = [layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias for layer in linear]
    has_bias = any(layer.bias is not None for layer in linear)
    joined = weights[0] if len(weights) == 1 else torch.cat(weights)
    return joined, torch.cat(biases).detach() if has_bias else None
