"""Host memory through which gradients come from a device, and weights go back to it."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


class Staging:
    """A buffer of pinned memory, as large as the largest set of tensors that passes through it at once.

    A copy between pinned memory and a GPU runs at the bus's full rate, and several are under way at once; from any
    other memory the driver copies twice. On a CPU it is memory like any other.
    """

    ALIGNMENT = 64  # bytes, of any element's size and of a line of a cache

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def fetch(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy tensors, all at once; the copies, in their own types, hold until the next `fetch`."""
        views = self._views(tensors)
        for name, tensor in tensors.items():
            views[name].copy_(tensor, non_blocking=True)
        self._wait()
        return views

    def send(self, values: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
        """Round values in host memory to their targets' types there, and copy them into these."""
        views = self._views(targets)
        for name, target in targets.items():
            views[name].copy_(values[name])
            target.copy_(views[name], non_blocking=True)
        self._wait()  # the buffer is written again at once

    def _views(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a part of the buffer for each tensor, of its shape and type."""
        starts, size = {}, 0
        for name, tensor in tensors.items():
            starts[name] = size
            size += math.ceil(tensor.numel() * tensor.element_size() / self.ALIGNMENT) * self.ALIGNMENT
        if size > self._buffer.numel():
            self._buffer = torch.empty(0, dtype=torch.uint8)  # freed before the larger one is there
            self._buffer = torch.empty(size, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        return {
            name: self._buffer[starts[name] :][: tensor.numel() * tensor.element_size()]
            .view(tensor.dtype)
            .view(tensor.shape)
            for name, tensor in tensors.items()
        }

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
