"""How a reward network takes several conversations at once: packed, padded, or one by one, found by comparing them.

Answers to one prompt begin alike, and where they are packed, that beginning may be there once.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from starling_train.core.micro_batches import Beginning
from starling_train.models.families.ways import LENGTHS, REFUSALS, ROUNDING, probing
from starling_train.models.packing import Layout, Packing
from starling_train.models.reward.net import ClassifierNet, PackedNet, RewardNet

Net = RewardNet | ClassifierNet
WORTH = 8  # tokens of a beginning from which on it is computed apart


@torch.no_grad()
def way_of(net: Net, pad_id: int) -> str:
    """Return `shared`, `packed`, `padded` or `alone`: the first that gives what sequences by themselves give.

    shared: packed, with a common beginning once.

    pad_id: stands behind shorter sequences.
    """
    inner: Any = net.transformer if isinstance(net, RewardNet) else net.classifier
    if len({parameter.device for parameter in inner.parameters()}) > 1:
        return "padded"  # spread over devices, where only that has been used
    with probing(inner) as probed:
        copied: Any = probed
        like: Any = RewardNet(copied, net.v_head) if isinstance(net, RewardNet) else ClassifierNet(copied)
        sequences = _probes(probed)
        try:
            expected = torch.cat([_padded(like, [ids], pad_id) for ids in sequences])
        except REFUSALS:
            return "padded"  # whatever it refuses is told when it is used
        ways: dict[str, Any] = {"shared": _shared, "packed": _packed, "padded": _padded}
        for name, way in list(ways.items())[0 if PackedNet.fits(net) else 2 :]:
            try:
                if _agree(way(like, sequences, pad_id), expected, probed.dtype):
                    return name
            except REFUSALS:
                continue
    return "alone"


@torch.no_grad()
def reads_last(classifier: Any) -> bool:
    """Return whether a classifier's scores are its head's at the last token, as a `RewardNet` reads them."""
    try:
        with probing(classifier) as probed:
            copied: Any = probed
            like = RewardNet(copied.base_model, copied.score)
            for ids in _probes(copied.base_model):
                own = copied(input_ids=ids[None]).logits[0].float()
                read = like(ids[None], torch.ones_like(ids)[None])
                if not _agree(read, own, probed.dtype):
                    return False
    except REFUSALS:
        return True
    return True


def _probes(model: Any) -> list[Tensor]:
    embedding = model.get_input_embeddings().weight
    ids = (torch.arange(sum(LENGTHS)) * 7919 + 13) % max(embedding.shape[0] - 8, 1) + min(7, embedding.shape[0] - 1)
    return list(ids.to(embedding.device).split(LENGTHS))


def _states(net: Net, ids: Tensor, is_real: Tensor) -> Tensor:
    """Return what the head reads, or, of an encoder, what it says: (sequences, n)."""
    if isinstance(net, RewardNet):
        return net.last_states(ids, is_real)
    return net(ids, is_real)[:, None]


def _padded(net: Net, sequences: list[Tensor], pad_id: int) -> Tensor:
    width = max(map(len, sequences))
    ids = torch.full((len(sequences), width), pad_id, device=sequences[0].device)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
    lengths = torch.tensor([len(sequence) for sequence in sequences], device=ids.device)
    is_real = (torch.arange(width, device=ids.device) < lengths[:, None]).long()
    return _states(net, ids, is_real)


def _packed(net: RewardNet, sequences: list[Tensor], pad_id: int) -> Tensor:
    packing = Packing([len(sequence) for sequence in sequences], sequences[0].device)
    ends = torch.tensor(packing.lengths, device=sequences[0].device).cumsum(0) - 1
    return PackedNet(net).last_states(torch.cat(sequences), packing, ends)


def _shared(net: RewardNet, sequences: list[Tensor], pad_id: int) -> Tensor:
    """Let the longest sequence go on from its first half."""
    encoded = [sequence.tolist() for sequence in sequences]
    longest = max(range(len(encoded)), key=lambda index: len(encoded[index]))
    half = encoded[longest][: len(encoded[longest]) // 2]
    beginnings = [Beginning(i, len(half) if i == longest else 0) for i in range(len(encoded))]
    # only what several have in common is put in front
    several, named = [*encoded, [*half, 1]], [*beginnings, beginnings[longest]]
    layout = laid_out(several, [len(ids) - 1 for ids in several], named)
    device = sequences[0].device
    ids, ends = torch.tensor(layout.ids, device=device), torch.tensor(layout.reads[:-1], device=device)
    return PackedNet(net).last_states(ids, layout.packing(device), ends)


def laid_out(encoded: Sequence[list[int]], read_at: Sequence[int], beginnings: Sequence[Beginning] | None) -> Layout:
    """Lay sequences one after the other; where several have a beginning in common, it is there once.

    encoded: their ids.
    read_at: which position of each is read, behind its beginning.
    beginnings: of each; those without tokens, or named once, stand for none.
    """
    layout = Layout()
    shared = Counter(beginning.number for beginning in beginnings or ())
    for index, ids in enumerate(encoded):
        number, tokens = beginnings[index] if beginnings else (0, 0)
        tokens = tokens if shared[number] > 1 else 0  # of one that is alone here, nothing is saved
        if tokens and -1 - number not in layout.parts:
            layout.add(-1 - number, ids[:tokens])
        layout.add(index, ids[tokens:], -1 - number if tokens else None)
        layout.read(layout.parts[index].start + read_at[index] - tokens)
    return layout


def common_beginnings(askers: Sequence[Any], encoded: Sequence[list[int]], read_at: Sequence[int]) -> list[Beginning]:
    """Find what neighbours that were asked the same have in common: the ids that all of them begin with.

    askers: equal for those that were asked the same.
    encoded: the ids of each.
    read_at: the position of each that is read, which stays out of it.
    """
    found: list[Beginning] = []
    first = 0
    while first < len(encoded):
        last = first + 1
        while last < len(encoded) and askers[last] == askers[first]:
            last += 1
        tokens = min(read_at[first:last]) if last - first > 1 else 0
        for ids in encoded[first + 1 : last]:
            pairs = zip(encoded[first][:tokens], ids[:tokens], strict=False)
            tokens = next((index for index, (one, other) in enumerate(pairs) if one != other), tokens)
        found += [Beginning(first, tokens if tokens >= WORTH else 0)] * (last - first)
        first = last
    return found


def _agree(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    limit = ROUNDING.get(dtype, 1e-5) * float(expected.float().abs().max())
    return bool(((found.float() - expected.float()).abs() <= limit).all())  # nan is not
