"""Sequences to micro-batches of tensors."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from starling_train.models.packing import Layout, Packing


class MicroBatch(NamedTuple):
    """Sequences cut for one forward pass, one after the other.

    ids: (tokens,) prompt + response without its last token, which predicts nothing; a prompt that several share is
        there once, in front of their responses.
    packing: where each part lies, a sequence or a part of one.
    source: tokens whose hidden state predicts a response token, each once.
    among: (n,) which of them predicts each response token; None: they are one each, in order.
    targets: (n,) those response tokens. indices: (n,) which token of its response each is, from 0. Sequence by
        sequence, left to right.
    parts: what `packing` has, in order: i for sequence i, or its response alone where `prompts_of` was given, and
        -1 - p for prompt p.
    """

    ids: Tensor
    packing: Packing
    source: Tensor
    targets: Tensor
    indices: Tensor
    among: Tensor | None = None
    parts: tuple[int, ...] = ()


class Outputs(NamedTuple):
    """Per response token, (n,), float32: log-probability and entropy (nats), value (None without a critic)."""

    logprobs: Tensor
    entropy: Tensor
    values: Tensor | None


def micro_batch(
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    device: torch.device | str,
    prompts_of: Sequence[int] | None = None,
) -> MicroBatch:
    """Lay prompts and responses one after the other, with the positions that predict response tokens.

    A response's last token predicts nothing and is left out.

    prompts_of: the number of each sequence's prompt; a prompt goes in once, whoever shares it. None: each sequence is
        one part with its own.
    """
    layout = Layout()
    for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        if prompts_of is None:
            layout.add(index, (prompt + response)[:-1], None)
            layout.read(layout.end(index) - len(response), len(response))
            continue
        part = -1 - prompts_of[index]
        if part not in layout.parts:
            layout.add(part, prompt, None)
        layout.read(layout.end(part) - 1, 1)
        if len(response) > 1:
            layout.add(index, response[:-1], part)
            layout.read(layout.end(index) - len(response) + 1, len(response) - 1)
    source = list(dict.fromkeys(layout.reads))
    among = None
    if prompts_of is not None:
        at = {position: place for place, position in enumerate(source)}
        among = torch.tensor([at[position] for position in layout.reads]).to(device)
    targets = [token for response in responses for token in response]
    indices = [index for response in responses for index in range(len(response))]
    ids, read, wanted, places = (torch.tensor(n).to(device) for n in (layout.ids, source, targets, indices))
    return MicroBatch(ids, layout.packing(device), read, wanted, places, among, tuple(layout.parts))


def response_mask(responses: Sequence[list[int]], device: torch.device | str) -> Tensor:
    """Return a mask (sequences, longest response), True on real tokens."""
    lengths = torch.tensor([len(r) for r in responses])
    return (torch.arange(int(lengths.max()))[None, :] < lengths[:, None]).to(device)
