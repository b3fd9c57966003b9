"""Products of 16-bit matrices with float32 results: logits and scores, whose differences are what is learned from.

A bfloat16 logit between 16 and 32 is a multiple of 0.125, so log-probabilities of a rounded product are wrong by
percents. On a GPU cuBLAS gives the sums as they are accumulated. On a CPU a second product recovers what the first
rounded away, sum - rounded(sum), to 2^-16 of a logit; it needs no float32 copy of the weights, and was the fastest of
what was tried (benchmarks/RESULTS.md).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from starling_train.core.row_blocks import SHORT

FEW = 2**16  # weights that are converted rather than multiplied twice: a reward head's


def product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return inputs (..., d) times weight (n, d) as (..., n), plus bias (n,): float32 if both are of a 16-bit type.

    The gradients are computed in the weights' type. Other types give what a linear layer gives.
    """
    if weight.dtype not in SHORT or inputs.dtype != weight.dtype:
        return linear(inputs, weight, bias)
    if weight.numel() <= FEW:
        return linear(inputs.float(), weight.float(), None if bias is None else bias.float())
    products = _Product.apply(inputs.reshape(-1, inputs.shape[-1]), weight).view(*inputs.shape[:-1], len(weight))
    return products if bias is None else products + bias.float()


def product_into(room: Tensor, inputs: Tensor, weight: Tensor) -> None:
    """Write inputs (m, d), of a 16-bit type, times weight (n, d) into `room` (m, n), float32. There is no gradient."""
    if inputs.device.type == "cuda":
        torch.mm(inputs, weight.T, out_dtype=torch.float32, out=room)
    else:
        rounded = inputs @ weight.T
        room.copy_(rounded).add_(torch.addmm(rounded, inputs, weight.T, beta=-1))


class InFloat32(TorchFunctionMode):
    """While entered, linear layers with one of these weights give float32, by `product`. Their hooks run as always."""

    def __init__(self, *weights: Tensor):
        super().__init__()
        self._weights: Sequence[Tensor] = weights

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace the product of linear layers."""
        if func is linear and any(args[1] is weight for weight in self._weights):
            return product(*args, **kwargs or {})
        return func(*args, **kwargs or {})


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(inputs if ctx.needs_input_grad[1] else None, weight)
        room = inputs.new_empty(len(inputs), len(weight), dtype=torch.float32)
        product_into(room, inputs, weight)
        return room

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        gradient = gradient.to(weight.dtype)
        of_inputs, of_weight = ctx.needs_input_grad
        return gradient @ weight if of_inputs else None, gradient.T @ inputs if of_weight else None
