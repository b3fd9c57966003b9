"""Sequences of different lengths as one tensor."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def padded(sequences: Sequence[Sequence[int]], pad: int = 0, side: str = "right") -> tuple[Tensor, Tensor]:
    """Pad sequences to (ids, is_real), each (sequences, longest); is_real is False on padding, which lies on `side`."""
    rows = [torch.tensor(sequence, dtype=torch.long) for sequence in sequences]
    ids = pad_sequence(rows, batch_first=True, padding_value=pad, padding_side=side)
    is_real = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in rows], True, False, side)
    return ids, is_real
