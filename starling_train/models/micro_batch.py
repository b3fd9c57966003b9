"""Sequences to micro-batches of tensors."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from starling_train.models.packing import Packing


class MicroBatch(NamedTuple):
    """Sequences cut for one forward pass, one after the other.

    ids: (tokens,) prompt + response without its last token, which predicts nothing. packing: where each sequence lies.
    source: (n,) tokens whose hidden state predicts a response token; targets: (n,) those response tokens; indices: (n,)
    which token of its response each is, from 0. Sequence by sequence, left to right.
    """

    ids: Tensor
    packing: Packing
    source: Tensor
    targets: Tensor
    indices: Tensor


class Outputs(NamedTuple):
    """Per response token, (n,), float32: log-probability and entropy (nats), value (None without a critic)."""

    logprobs: Tensor
    entropy: Tensor
    values: Tensor | None


def micro_batch(prompts: Sequence[list[int]], responses: Sequence[list[int]], device: torch.device | str) -> MicroBatch:
    """Lay prompts and responses one after the other, with the positions that predict response tokens.

    A response's last token predicts nothing and is left out.
    """
    ids: list[int] = []
    source: list[int] = []
    targets: list[int] = []
    indices: list[int] = []
    for prompt, response in zip(prompts, responses, strict=True):
        first = len(ids) + len(prompt) - 1
        source.extend(range(first, first + len(response)))
        targets.extend(response)
        indices.extend(range(len(response)))
        ids += (prompt + response)[:-1]
    packing = Packing([len(p) + len(r) - 1 for p, r in zip(prompts, responses, strict=True)], device)
    token_ids, *others = (torch.tensor(numbers).to(device) for numbers in (ids, source, targets, indices))
    return MicroBatch(token_ids, packing, *others)


def response_mask(responses: Sequence[list[int]], device: torch.device | str) -> Tensor:
    """Return a mask (sequences, longest response), True on real tokens."""
    lengths = torch.tensor([len(r) for r in responses])
    return (torch.arange(int(lengths.max()))[None, :] < lengths[:, None]).to(device)
