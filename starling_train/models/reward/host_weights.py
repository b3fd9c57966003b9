"""A network whose weights are in host memory, and on a device only while it computes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from starling_train.run.out_of_memory import in_one_line

NO_ROOM = (
    "reward.offload: out of memory ({first}) as the reward model's weights came to the device; lower rollout.slots, "
    "train fewer matrices, take its weights in 4 bits instead (reward.load_in=4bit), or serve it (reward.kind=server)"
)


class HostWeights:
    """The weights of a network that does not train: copied to a device for a while, and dropped there after it.

    They are pinned where the device is a GPU, so that 13 GB take about half a second. Buffers, which are small, stay on
    the device.
    """

    def __init__(self, net: nn.Module, device: torch.device) -> None:
        self._device = device
        is_gpu = device.type == "cuda"
        self._weights = {p: p.detach().pin_memory() if is_gpu else p.detach() for p in net.parameters()}
        for parameter, weight in self._weights.items():
            parameter.data = weight
        for module in net.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(device)

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Run with the weights on the device. Raises OutOfMemory where they do not fit there."""
        try:
            with in_one_line(lambda first: NO_ROOM.format(first=first)):
                for parameter, weight in self._weights.items():
                    parameter.data = torch.empty_like(weight, device=self._device).copy_(weight, non_blocking=True)
            yield
        finally:
            for parameter, weight in self._weights.items():
                parameter.data = weight
