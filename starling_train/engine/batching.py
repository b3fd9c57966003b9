"""Sequences to micro-batches of tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from starling_train.models.actors import MicroBatch


def micro_batch(prompts: Sequence[list[int]], responses: Sequence[list[int]], device: torch.device | str) -> MicroBatch:
    """Prompts and responses side by side, right-padded, with the positions that predict response tokens.

    A response's last token predicts nothing and is left out. The padding token is 0: no real position ever attends to
    it, and no padded position is read.
    """
    sequences = [(p + r)[:-1] for p, r in zip(prompts, responses, strict=True)]
    length = max(map(len, sequences))
    ids = torch.zeros(len(prompts), length, dtype=torch.long)
    source: list[int] = []
    targets: list[int] = []
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        ids[row, : len(sequences[row])] = torch.tensor(sequences[row])
        first = row * length + len(prompt) - 1
        source.extend(range(first, first + len(response)))
        targets.extend(response)
    return MicroBatch(ids.to(device), torch.tensor(source).to(device), torch.tensor(targets).to(device))


def response_mask(responses: Sequence[list[int]], device: torch.device | str) -> Tensor:
    """(sequences, longest response), True on real tokens."""
    lengths = torch.tensor([len(r) for r in responses])
    return (torch.arange(int(lengths.max()))[None, :] < lengths[:, None]).to(device)
