"""Log-probabilities of given tokens without ever holding the tokens x vocabulary matrix."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Logits held at a time: enough rows for full speed, few enough to stay small beside the model.
CHUNK_ELEMENTS = {"cpu": 2**21, "cuda": 2**25}


def token_logprobs(
    hidden: Tensor,
    head: Tensor,
    tokens: Tensor,
    temperature: float = 1.0,
    chunk: int | None = None,
    low_rank: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each token and the entropy of the distribution it was drawn from.

    Two (n,) float32 tensors, in nats. The entropy has no gradient where the head is frozen.

    hidden: (n, d) last hidden states after the final norm, row i predicting tokens[i].
    head: (vocabulary, d).
    tokens: (n,).
    temperature: what logits are divided by, as in sampling.
    chunk: rows that go through the head at a time, so that memory holds at most chunk x vocabulary logits; None: by the
        size of the vocabulary.
    low_rank: (A, B), (r, d) and (vocabulary, r): the head is head + B A, of which only A and B train.
    """
    chunk = chunk or max(16, CHUNK_ELEMENTS.get(hidden.device.type, 2**21) // len(head))
    learns = head.requires_grad or low_rank is not None
    if torch.is_grad_enabled() and hidden.requires_grad and not learns:
        return _FrozenHead.apply(hidden, head, tokens, temperature, chunk)
    logprobs, entropies = [], []
    for rows, next_tokens in zip(hidden.split(chunk), tokens.split(chunk), strict=True):
        given = (rows, head, next_tokens, temperature, low_rank)
        if torch.is_grad_enabled() and learns:
            logprob, entropy = checkpoint(_chunk, *given, use_reentrant=False)
        else:
            logprob, entropy = _chunk(*given)
        logprobs.append(logprob)
        entropies.append(entropy)
    return torch.cat(logprobs), torch.cat(entropies)


LowRank = tuple[Tensor, Tensor] | None


def _chunk(
    hidden: Tensor, head: Tensor, tokens: Tensor, temperature: float, low_rank: LowRank
) -> tuple[Tensor, Tensor]:
    distribution = _log_distribution(hidden, head, temperature, low_rank)
    logprob = distribution.gather(-1, tokens[:, None]).squeeze(-1)
    return logprob, -(distribution.exp() * distribution).sum(-1)


def _log_distribution(hidden: Tensor, head: Tensor, temperature: float, low_rank: LowRank) -> Tensor:
    logits = torch.nn.functional.linear(hidden, head)
    if low_rank is not None:
        for factor in low_rank:
            hidden = torch.nn.functional.linear(hidden.to(factor.dtype), factor)
        logits = logits + hidden
    logits = logits.float()
    return (logits if temperature == 1.0 else logits / temperature).log_softmax(-1)


def _logits_into(room: Tensor, hidden: Tensor, head: Tensor, temperature: float) -> None:
    if head.dtype == room.dtype:
        torch.mm(hidden, head.T, out=room)
    else:
        room.copy_(torch.nn.functional.linear(hidden, head))
    if temperature != 1.0:
        room /= temperature


class _FrozenHead(torch.autograd.Function):
    """The gradient of a log-probability in the hidden state, kept from the forward pass: logits are computed once.

    d log p(token) / d hidden = (head[token] - sum_v p_v head[v]) / temperature: (n, d), however large the vocabulary.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, tokens: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        gradient = torch.empty_like(hidden)
        logprobs, entropies = (hidden.new_empty(len(hidden), dtype=torch.float32) for _ in range(2))
        # two buffers for all chunks: fresh memory would cost a CPU a page fault every 4 KB
        room = [head.new_empty(min(chunk, len(hidden)), len(head), dtype=torch.float32) for _ in range(2)]
        for start in range(0, len(hidden), chunk):
            rows = slice(start, min(start + chunk, len(hidden)))
            probabilities, distribution = (buffer[: rows.stop - start] for buffer in room)
            _logits_into(probabilities, hidden[rows], head, temperature)
            torch.ops.aten._log_softmax.out(probabilities, -1, False, out=distribution)
            logprobs[rows] = distribution.gather(-1, tokens[rows, None]).squeeze(-1)
            torch.exp(distribution, out=probabilities)
            entropies[rows] = -torch.einsum("nv,nv->n", probabilities, distribution)
            # one-hot minus p in float32: after rounding, p near 1 would leave nothing but the rounding
            pull = probabilities.neg_().scatter_add_(-1, tokens[rows, None], torch.ones_like(probabilities[:, :1]))
            torch.mm(pull.to(head.dtype), head, out=gradient[rows])
        if temperature != 1.0:
            gradient /= temperature
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, of_logprobs: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (of_logprobs[:, None] * gradient).to(gradient.dtype), None, None, None, None
