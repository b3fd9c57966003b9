"""Log-probabilities of given sequences under a causal language model, packed: no padding, no tokens x vocabulary."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from starling_train.core.batching import cut_packed
from starling_train.core.logprobs import token_logprobs
from starling_train.models.budget import Budget
from starling_train.models.packing import Packing
from starling_train.models.trunk import Trunk


@torch.no_grad()
def sequence_logprobs(
    model: nn.Module, sequences: Sequence[Sequence[int]], budget: Budget, starts: Sequence[int] | None = None
) -> list[Tensor]:
    """Log-probability of each token but a sequence's first, given those before it: float32 on the CPU, in nats.

    sequences: token ids, two or more each. starts: index, 1 or more, of the first token that is asked for (None: 1);
    what comes before is only read, so that the output head sees what is asked for alone. budget: of tokens at a time;
    out of memory, all is done again with half. Element i of the result has len(sequences[i]) - starts[i] entries, the
    same whatever the budget but for rounding.
    """
    starts = list(starts) if starts is not None else [1] * len(sequences)
    assert all(1 <= start < len(ids) for start, ids in zip(starts, sequences, strict=True)), "nothing to predict"
    trunk, head = Trunk(model.model, 0), model.lm_head.weight

    def forward(tokens: int) -> list[Tensor]:
        found: list[Tensor] = [torch.empty(0)] * len(sequences)
        for group in cut_packed([len(ids) for ids in sequences], tokens):
            parts = _forward(trunk, head, [sequences[i] for i in group], [starts[i] for i in group])
            for i, part in zip(group, parts, strict=True):
                found[i] = part
        return found

    return budget.attempt(forward)


def _forward(trunk: Trunk, head: Tensor, sequences: list[Sequence[int]], starts: list[int]) -> tuple[Tensor, ...]:
    lengths, device = [len(ids) for ids in sequences], head.device
    ids = torch.tensor([token for sequence in sequences for token in sequence])
    ends = torch.tensor(lengths).cumsum(0).tolist()
    wanted = torch.cat(
        [torch.arange(end - n + start, end) for end, n, start in zip(ends, lengths, starts, strict=True)]
    )
    packing = Packing(lengths, device)
    # a token is predicted from the state of the one before it
    hidden = trunk.suffix(trunk.prefix(ids.to(device), packing), packing, (wanted - 1).to(device))
    logprobs, _ = token_logprobs(hidden, head, ids[wanted].to(device))
    return logprobs.cpu().split([n - start for n, start in zip(lengths, starts, strict=True)])
