"""The sequences of a rollout as micro-batches, in which a prompt that several share is computed once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from starling_train.core.micro_batches import Beginning, cut_packed
from starling_train.models.micro_batch import MicroBatch, micro_batch
from starling_train.rollout.responses import Rollout


@dataclass(frozen=True)
class Batches:
    """Makes micro-batches of a rollout's sequences (rows).

    group: neighbours that share their prompt; 1: each sequence goes in whole, as one part. Otherwise the prompts are
        parts 0, 1, ..., and the responses follow them. A response always attends in the same way, whichever of its
        group are beside it.
    """

    rollout: Rollout
    device: torch.device
    group: int = 1

    def __len__(self) -> int:
        return len(self.rollout)

    def cut(self, rows: Sequence[int], tokens: int) -> list[list[int]]:
        """Cut rows into micro-batches of at most so many tokens."""
        lengths, beginnings = self.rollout.lengths(), None
        if self.group > 1:
            beginnings = [Beginning(row // self.group, len(self.rollout.prompts[row])) for row in rows]
        cut = cut_packed([lengths[row] for row in rows], tokens, beginnings, pads=self.device.type != "cpu")
        return [[rows[index] for index in indices] for indices in cut]

    def make(self, rows: Sequence[int]) -> MicroBatch:
        """Make the micro-batch of rows."""
        prompts, responses = [self.rollout.prompts[i] for i in rows], [self.rollout.responses[i] for i in rows]
        prompts_of = [row // self.group for row in rows] if self.group > 1 else None
        return micro_batch(prompts, responses, self.device, prompts_of)

    def parts(self, rows: Sequence[int], batch: MicroBatch) -> list[int]:
        """Return the numbers of a micro-batch's parts, in order."""
        return [-1 - part if part < 0 else self.part_of(rows[part]) for part in batch.parts]

    def part_of(self, row: int) -> int:
        """Return the number of a sequence's own part."""
        return row if self.group == 1 else len(self.rollout) // self.group + row

    def lengths(self) -> list[int]:
        """Count the tokens of each part; a response's last one predicts nothing."""
        if self.group == 1:
            return self.rollout.lengths()
        responses = [len(response) - 1 for response in self.rollout.responses]
        return [len(prompt) for prompt in self.rollout.prompts[:: self.group]] + responses
