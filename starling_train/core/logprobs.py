"""Log-probabilities of given tokens without ever holding the tokens x vocabulary matrix."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from starling_train.core.excluded import Exclusions
from starling_train.core.float32_products import product, product_into
from starling_train.core.row_blocks import ROWS, SHORT, filled_up, in_blocks

# Logits held at a time: enough rows for full speed, few enough to stay small beside the model.
CHUNK_ELEMENTS = {"cpu": 2**21, "cuda": 2**25}


class HeadForm(NamedTuple):
    """What some models make of the head's product with a hidden state, z: softcap * tanh(scale * z / softcap).

    scale: e.g. Granite's 1 / logits_scaling. softcap: of the final logits (Gemma 2, arXiv 2408.00118, section 2);
    None: scale * z.
    """

    scale: float = 1.0
    softcap: float | None = None

    def logits(self, products: Tensor) -> Tensor:
        """Return the logits of z, of any shape."""
        scaled = products if self.scale == 1.0 else products * self.scale
        return scaled if self.softcap is None else self.softcap * torch.tanh(scaled / self.softcap)


PLAIN = HeadForm()


def token_logprobs(
    hidden: Tensor,
    head: Tensor,
    tokens: Tensor,
    temperature: float = 1.0,
    chunk: int | None = None,
    low_rank: tuple[Tensor, Tensor] | None = None,
    bias: Tensor | None = None,
    form: HeadForm = PLAIN,
    excluded: Exclusions | None = None,
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
    bias: (vocabulary,) of the head, if it has one.
    form: what becomes of the head's products.
    excluded: ids that are left out of the distribution of each row; no token is one of them.
    """
    chunk = chunk or _rows_at_a_time(hidden, len(head))
    learns = head.requires_grad or low_rank is not None or (bias is not None and bias.requires_grad)
    if torch.is_grad_enabled() and hidden.requires_grad and not learns:
        return _FrozenHead.apply(hidden, head, tokens, temperature, chunk, bias, form, excluded)

    def logits(rows: Tensor) -> Tensor:
        return form.logits(_products(rows, head, bias, low_rank).float())

    return _in_chunks(logits, hidden, tokens, temperature, chunk, learns, excluded)


def token_logprobs_by(
    logits: Callable[[Tensor], Tensor],
    vocabulary: int,
    hidden: Tensor,
    tokens: Tensor,
    temperature: float = 1.0,
    chunk: int | None = None,
    excluded: Exclusions | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the same as `token_logprobs` for any way of computing logits; they are computed again for the gradient.

    logits: hidden states (n, d) -> (n, vocabulary). vocabulary: how many there are.
    """
    chunk = chunk or _rows_at_a_time(hidden, vocabulary)
    return _in_chunks(lambda rows: logits(rows).float(), hidden, tokens, temperature, chunk, True, excluded)


def _rows_at_a_time(hidden: Tensor, vocabulary: int) -> int:
    rows = max(16, CHUNK_ELEMENTS.get(hidden.device.type, 2**21) // vocabulary)
    # a last chunk is filled up there
    return min(rows, ROWS) if in_blocks(hidden.dtype, hidden.device) else rows


def _in_chunks(
    logits: Callable[[Tensor], Tensor],
    hidden: Tensor,
    tokens: Tensor,
    temperature: float,
    chunk: int,
    recompute: bool,
    excluded: Exclusions | None,
) -> tuple[Tensor, Tensor]:
    def measure(rows: Tensor, next_tokens: Tensor, without: Exclusions | None) -> tuple[Tensor, Tensor]:
        scores = logits(filled_up(rows, chunk))[: len(rows)]
        scores = scores if temperature == 1.0 else scores / temperature
        if without is not None:
            scores = without.apply_(scores.clone())
        distribution = scores.log_softmax(-1)
        logprob = distribution.gather(-1, next_tokens[:, None]).squeeze(-1)
        return logprob, -(distribution.exp() * distribution).sum(-1)

    logprobs, entropies = [], []
    parts, next_parts = hidden.split(chunk), tokens.split(chunk)
    of_parts = [None] * len(parts) if excluded is None else excluded.split(chunk)
    for rows, next_tokens, without in zip(parts, next_parts, of_parts, strict=True):
        if torch.is_grad_enabled() and recompute:
            logprob, entropy = checkpoint(measure, rows, next_tokens, without, use_reentrant=False)
        else:
            logprob, entropy = measure(rows, next_tokens, without)
        logprobs.append(logprob)
        entropies.append(entropy)
    return torch.cat(logprobs), torch.cat(entropies)


LowRank = tuple[Tensor, Tensor] | None


def _products(hidden: Tensor, head: Tensor, bias: Tensor | None, low_rank: LowRank) -> Tensor:
    products = product(hidden, head, bias)
    if low_rank is not None:
        for factor in low_rank:
            hidden = torch.nn.functional.linear(hidden.to(factor.dtype), factor)
        products = products + hidden
    return products


def _logits_into(room: Tensor, hidden: Tensor, head: Tensor, bias: Tensor | None, form: HeadForm) -> None:
    if head.dtype == room.dtype and bias is None:
        torch.mm(hidden, head.T, out=room)
    elif head.dtype in SHORT:
        product_into(room, hidden, head)
        if bias is not None:
            room += bias
    else:
        room.copy_(torch.nn.functional.linear(hidden, head, bias))
    if form.scale != 1.0:
        room *= form.scale
    if form.softcap is not None:
        room.div_(form.softcap).tanh_().mul_(form.softcap)


class _FrozenHead(torch.autograd.Function):
    """The gradient of a log-probability in the hidden state, kept from the forward pass: logits are computed once.

    d log p(token) / d hidden = (head[token] - sum_v p_v head[v]) / temperature: (n, d), however large the vocabulary.
    With a form, each row of the head counts times the slope of its logit, scale * (1 - (logit / softcap)^2).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        tokens: Tensor,
        temperature: float,
        chunk: int,
        bias: Tensor | None,
        form: HeadForm,
        excluded: Exclusions | None,
    ) -> tuple[Tensor, Tensor]:
        gradient = torch.empty_like(hidden)
        logprobs, entropies = (hidden.new_empty(len(hidden), dtype=torch.float32) for _ in range(2))
        # two buffers for all chunks: fresh memory would cost a CPU a page fault every 4 KB
        most = chunk if in_blocks(hidden.dtype, hidden.device) else min(chunk, len(hidden))
        room = [head.new_empty(most, len(head), dtype=torch.float32) for _ in range(2)]
        of_chunks = None if excluded is None else excluded.split(chunk)
        for start in range(0, len(hidden), chunk):
            rows = slice(start, min(start + chunk, len(hidden)))
            filled = filled_up(hidden[rows], chunk)
            _logits_into(room[0][: len(filled)], filled, head, bias, form)
            probabilities, distribution = (buffer[: rows.stop - start] for buffer in room)
            slope = None if form.softcap is None else 1.0 - (probabilities / form.softcap).square_()
            if temperature != 1.0:
                probabilities /= temperature
            if of_chunks is not None:
                of_chunks[start // chunk].apply_(probabilities)
            torch.ops.aten._log_softmax.out(probabilities, -1, False, out=distribution)
            logprobs[rows] = distribution.gather(-1, tokens[rows, None]).squeeze(-1)
            torch.exp(distribution, out=probabilities)
            entropies[rows] = -torch.einsum("nv,nv->n", probabilities, distribution)
            # one-hot minus p in float32: after rounding, p near 1 would leave nothing but the rounding
            pull = probabilities.neg_().scatter_add_(-1, tokens[rows, None], torch.ones_like(probabilities[:, :1]))
            if slope is not None:
                pull *= slope
            torch.mm(pull.to(head.dtype), head, out=gradient[rows])
        if form.scale != 1.0:
            gradient *= form.scale
        if temperature != 1.0:
            gradient /= temperature
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, of_logprobs: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (of_logprobs[:, None] * gradient).to(gradient.dtype), *(None,) * 7
