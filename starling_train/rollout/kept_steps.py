"""Captured steps, with the keys and values they read, kept from one rollout of a run to the next.

Capturing takes tenths of a second a graph, and each gives torch's cached memory back. What is captured stays right for
as long as all weights lie where they lay, which is compared: an optimizer updates them in place, but ZeRO's stage 3
gathers them anew.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from starling_train.models import budget
from starling_train.models.causal_lm import CausalLM
from starling_train.rollout.decode_step import DecodeStep
from starling_train.rollout.graph_steps import GraphSteps
from starling_train.rollout.slot_cache import SlotCache

SPARE = 0.1  # of a GPU's memory that must stay free beside all that a run has ever held and what is kept


class Wanted(NamedTuple):
    """What a rollout needs. layer: whose states it records, or None."""

    slots: int
    capacity: int
    layer: int | None
    kind: type[DecodeStep]


class Steps(NamedTuple):
    """Steps with their cache. rows: fewer than were wanted, where no more fit. addresses: of the policy's weights."""

    wanted: Wanted
    rows: int
    cache: SlotCache
    steps: GraphSteps
    addresses: tuple[int, ...]


class Keeper:
    """Keeps the steps of one policy, in a run that says so and when it knows that they leave enough memory."""

    def __init__(self) -> None:
        self._kept: Steps | None = None
        self._is_open = self._knows_peak = False

    @contextmanager
    def across_rollouts(self) -> Iterator[None]:
        """Keep steps while this is open."""
        self._is_open, self._knows_peak = True, False
        budget.SPARES.append(self.release)
        try:
            yield
        finally:
            budget.SPARES.remove(self.release)
            self._is_open = False
            self.release()

    def after_update(self) -> None:
        """Be told that the run has held as much memory as a step takes."""
        self._knows_peak = True

    def take(self, policy: CausalLM, wanted: Wanted) -> Steps | None:
        """Return kept steps that serve; what does not is let go of."""
        kept = self._kept
        if kept is not None and kept.addresses == addresses(policy) and _serves(kept.wanted, wanted):
            return kept
        self.release()
        return None

    def offer(self, steps: Steps, policy: CausalLM) -> None:
        """Keep these steps if that is safe: after a first update, and if a tenth of the memory stays free beside."""
        if steps is self._kept or not (self._is_open and self._knows_peak) or _is_sharded(policy):
            return
        held = torch.cuda.max_memory_allocated(policy.device) + steps.cache.size_in_bytes
        if held <= (1 - SPARE) * torch.cuda.get_device_properties(policy.device).total_memory:
            self._kept = steps

    def release(self) -> bool:
        """Let go of what is kept; returns whether there was something."""
        had, self._kept = self._kept is not None, None
        return had


def addresses(policy: CausalLM) -> tuple[int, ...]:
    """Return where all weights and buffers of a model lie."""
    return tuple(tensor.data_ptr() for tensor in [*policy.parameters(), *policy.buffers()])


def _serves(kept: Wanted, wanted: Wanted) -> bool:
    return kept._replace(capacity=wanted.capacity) == wanted and kept.capacity >= wanted.capacity


def _is_sharded(policy: CausalLM) -> bool:
    return any(hasattr(parameter, "ds_id") for parameter in policy.parameters())


KEEPER = Keeper()
