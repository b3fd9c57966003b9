"""Products of 16-bit matrices on a CPU whose every row is the same however many other rows there are.

oneDNN chooses by the number of rows in what order it adds up a row, so that the last bit of a bfloat16 product depends
on what shares a micro-batch; through 30 layers that grows to tens of percents of a probability (benchmarks/RESULTS.md).
With one number of rows for all products, the last block filled up with zeros, there is one order.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad
from torch.overrides import TorchFunctionMode

ROWS = 512  # fewer cost time, the weights being laid out anew for each block; more are mostly padding in small batches
STEP = 256  # a weight's gradient is summed over a multiple of so many rows
SHORT = (torch.bfloat16, torch.float16)


def in_blocks(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether states of this type go through products in blocks; elsewhere as they are."""
    return dtype in SHORT and device.type == "cpu"


def filled_up(rows: Tensor, count: int) -> Tensor:
    """Return (n, d) as (count, d), zeros behind, where rows of this type go in blocks."""
    missing = count - len(rows)
    return pad(rows, (0, 0, 0, missing)) if missing and in_blocks(rows.dtype, rows.device) else rows


class RowBlocks(TorchFunctionMode):
    """While entered, linear layers compute ROWS rows at a time: all of them, adapters in float32 too."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace the product of linear layers."""
        return (_linear if func is linear else func)(*args, **kwargs or {})


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _Linear.apply(input, weight, bias)


class _Linear(torch.autograd.Function):
    """Gradients need no fixed order of summation, but few shapes: oneDNN compiles a kernel for each and keeps it."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.shape = inputs.shape
        # a frozen weight needs no inputs: they are most of what training holds
        ctx.save_for_backward(inputs if ctx.needs_input_grad[1] else None, weight)
        out = _blockwise(inputs.reshape(-1, inputs.shape[-1]), weight.T, bias)
        return out.view(*inputs.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, len(weight))
        of_inputs, of_weight, of_bias = ctx.needs_input_grad
        return (
            _blockwise(rows, weight).view(ctx.shape) if of_inputs else None,
            _summed(rows, inputs.reshape(-1, inputs.shape[-1])) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def _blockwise(rows: Tensor, columns: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return rows (n, d) times columns (d, m), plus bias (m,), ROWS rows at a time."""
    out = rows.new_empty(len(rows), columns.shape[1])
    whole = len(rows) - len(rows) % ROWS
    for start in range(0, whole, ROWS):
        _product(rows[start : start + ROWS], columns, bias, out[start : start + ROWS])
    if whole < len(rows):
        last = rows.new_zeros(ROWS, rows.shape[1])
        last[: len(rows) - whole] = rows[whole:]
        out[whole:] = _product(last, columns, bias, rows.new_empty(ROWS, columns.shape[1]))[: len(rows) - whole]
    return out


def _summed(gradients: Tensor, inputs: Tensor) -> Tensor:
    """Return the weight's gradient (m, d) from (n, m) and (n, d): one product, n filled up to a multiple of STEP."""
    missing = (0, 0, 0, -len(inputs) % STEP)
    return pad(gradients, missing).T @ pad(inputs, missing) if missing[-1] else gradients.T @ inputs


def _product(rows: Tensor, columns: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    return torch.mm(rows, columns, out=out) if bias is None else torch.addmm(bias, rows, columns, out=out)
