"""From logits to tokens, one uniform random number a token: what is drawn depends on nothing else."""

import torch
from torch import Tensor


def distribution(logits: Tensor, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0) -> Tensor:
    """Return the probabilities to sample from: (b, vocabulary) logits -> float32 probabilities of the same shape.

    Logits are divided by the temperature; then only the `top_k` likeliest tokens stay (0 = all; ties at the border
    stay too), then the fewest likeliest tokens whose probability reaches `top_p` (1 = all), the likeliest always.
    The order and the borders are those of transformers' samplers. Source of top_p: Holtzman et al. 2019
    (arXiv 1904.09751), equation 2.
    """
    scaled = logits.float() / temperature
    if 0 < top_k < scaled.shape[-1]:
        border = scaled.topk(top_k, dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < border, -torch.inf)
    if top_p < 1.0:
        ascending, order = scaled.sort(dim=-1)
        is_tail = ascending.softmax(-1).cumsum(-1) <= 1.0 - top_p
        is_tail[:, -1] = False
        scaled = scaled.masked_fill(torch.zeros_like(is_tail).scatter(1, order, is_tail), -torch.inf)
    return scaled.softmax(-1)


def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Draw tokens (b,) by inverting the cumulative distribution of (b, vocabulary) at uniforms (b,) in [0, 1).

    A token of probability 0 is never drawn.
    """
    cumulative = probabilities.cumsum(-1)
    # relative to the sum as it was rounded, and below it: the last possible token is the last that can be drawn
    total = cumulative[:, -1:]
    targets = torch.minimum(uniforms.to(total)[:, None] * total, total.nextafter(torch.zeros_like(total)))
    tokens = torch.searchsorted(cumulative, targets, right=True).clamp_max(probabilities.shape[-1] - 1)
    if tokens.is_cuda:
        # a sum in parallel need not rise everywhere: from a token of probability 0, back to the last possible one
        indices = torch.arange(probabilities.shape[-1], device=tokens.device)
        tokens = torch.where(probabilities > 0, indices, 0).cummax(-1).values.gather(-1, tokens)
    return tokens.squeeze(-1)
