"""Decoding steps on a GPU: captured once for each of a few shapes, then replayed.

A 7B step is some 700 kernels; launched one by one from Python they take longer than they run.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from starling_train.rollout.decode_step import DecodeStep
from starling_train.rollout.slot_cache import SlotCache

BUCKET = 256  # positions: where all rows read as many, it is a multiple of this
LEAST_ROWS = 4
Outputs = tuple[Tensor, Tensor | None]
_side: dict[torch.device, torch.cuda.Stream] = {}


def row_counts(slots: int) -> list[int]:
    """Return the numbers of rows that are captured: powers of 2 from LEAST_ROWS, and all slots."""
    counts = [LEAST_ROWS << power for power in range(slots.bit_length()) if LEAST_ROWS << power < slots]
    return [*counts, slots]


class GraphSteps:
    """Steps for the first rows of a cache, with graphs for a few numbers of rows.

    More rows than are asked for take part: each of them writes over its own first position. Where rows do not read by
    length, there is a graph for every BUCKET of positions as well.
    """

    def __init__(self, step: DecodeStep, cache: SlotCache, slots: int, device: torch.device):
        cache.touch(cache.capacity)
        self.step, self._capacity, self._counts = step, cache.capacity, row_counts(slots)
        self._inputs = torch.zeros(2, slots, dtype=torch.long, device=device)
        self._graphs: dict[tuple[int, int], Graph] = {}
        self._memory = Graph.memory()

    def shape(self, positions: Sequence[int]) -> tuple[int, int]:
        """Return (rows, positions) of the graph that takes a token of each row at these positions."""
        rows = next(count for count in self._counts if count >= len(positions))
        if self.step.by_length:
            return rows, self._capacity
        return rows, min(self._capacity, -(-(max(positions) + 1) // BUCKET) * BUCKET)

    def __call__(self, tokens: Sequence[int], positions: Sequence[int]) -> Outputs:
        """Do the same as `DecodeStep`; logits are good until the next call."""
        asked = len(tokens)
        rows, used = self.shape(positions)
        beyond = [0] * (rows - asked)
        inputs = self._inputs[:, :rows]
        inputs.copy_(torch.tensor([[*tokens, *beyond], [*positions, *beyond]]))
        if (rows, used) not in self._graphs:
            ids, at = inputs
            self._graphs[rows, used] = Graph(lambda: self.step.forward(ids, at, used), ids.device, self._memory)
        logits, states = self._graphs[rows, used].replay()
        return logits[:asked], None if states is None else states[:asked].clone()  # the next replay writes over it


class Graph:
    """A captured forward pass. Its inputs, weights and caches are read where they lay when it was captured."""

    def __init__(self, forward: Callable[[], Outputs], device: torch.device, memory: Any):
        """Capture `forward`, which must do the same when it is called twice. memory: that graphs share."""
        # one stream of a process for all: a library keeps a workspace for every stream that it has seen
        if device not in _side:
            _side[device] = torch.cuda.Stream(device)
        side = _side[device]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # warm-up: libraries take their workspaces, which no graph may do
            for _ in range(2):
                forward()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=memory, stream=side):
            self._outputs = forward()

    @staticmethod
    def memory() -> Any:
        """Make a place for what graphs compute, which those that never run at the same time can share."""
        return torch.cuda.graph_pool_handle()

    def replay(self) -> Outputs:
        """Run it again; returns the same tensors every time, with new numbers."""
        self._graph.replay()
        return self._outputs
