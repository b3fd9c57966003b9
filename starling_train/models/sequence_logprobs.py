"""Log-probabilities of given sequences under a causal language model, packed: no padding, no tokens x vocabulary."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from starling_train.core.excluded import NOTHING, ExcludedIds
from starling_train.core.micro_batches import cut_packed
from starling_train.models.budget import Budget
from starling_train.models.causal_lm import CausalLM
from starling_train.models.families.head import Head
from starling_train.models.families.ways import ways_of
from starling_train.models.packing import Packing
from starling_train.models.trunk import AnyTrunk


@torch.no_grad()
def sequence_logprobs(
    model: CausalLM,
    sequences: Sequence[Sequence[int]],
    budget: Budget,
    positions: Sequence[Sequence[int]] | None = None,
    excluded: ExcludedIds = NOTHING,
) -> list[Tensor]:
    """Return log-probabilities of given tokens, given those before them: float32 on the CPU, in nats.

    sequences: token ids, two or more each.
    positions: of each sequence, which tokens to predict, counted from 0, 1 or more; None: all but the first. The others
        are only read, and do not go through the output head.
    budget: of tokens at a time; out of memory, all is repeated with half.
    excluded: ids that are left out of the distributions; the first of a sequence's positions begins its response.

    Element i of the result has an entry for each of positions[i], the same whatever the budget but for rounding.
    """
    positions = [range(1, len(ids)) for ids in sequences] if positions is None else positions
    assert all(indices and min(indices) > 0 for indices in positions), "nothing to predict"
    ways = ways_of(model)
    trunk, head = ways.of(model.get_decoder(), 0), ways.head(model)

    def forward(tokens: int) -> list[Tensor]:
        logprobs: list[Tensor] = [torch.empty(0)] * len(sequences)
        for group in cut_packed([len(ids) for ids in sequences], tokens):
            by_sequence = _forward(trunk, head, [sequences[i] for i in group], [positions[i] for i in group], excluded)
            for i, values in zip(group, by_sequence, strict=True):
                logprobs[i] = values
        return logprobs

    return budget.halving(forward)


def _forward(
    trunk: AnyTrunk,
    head: Head,
    sequences: list[Sequence[int]],
    positions: list[Sequence[int]],
    excluded: ExcludedIds,
) -> tuple[Tensor, ...]:
    ids = torch.tensor([token for sequence in sequences for token in sequence])
    starts = accumulate([len(sequence) for sequence in sequences[:-1]], initial=0)
    indices = torch.cat([torch.tensor(within) + start for start, within in zip(starts, positions, strict=True)])
    device = head.weight.device
    packing = Packing([len(sequence) for sequence in sequences], device)
    # a token is predicted from the state of the one before it
    hidden = trunk.suffix(trunk.prefix(ids.to(device), packing), packing, (indices - 1).to(device))
    within = torch.cat([torch.arange(len(part)) for part in positions]).to(device) if excluded else indices
    logprobs, _ = head.logprobs(hidden, ids[indices].to(device), excluded=excluded.at(within))
    return logprobs.cpu().split([len(within) for within in positions])
