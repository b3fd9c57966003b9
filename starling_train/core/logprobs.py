"""Log-probabilities of given tokens without ever holding the tokens x vocabulary matrix."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def token_logprobs(
    hidden: Tensor, head: Tensor, tokens: Tensor, temperature: float = 1.0, chunk: int = 1024
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token and entropy of the distribution it was drawn from.

    hidden: (n, d) last hidden states after the final norm, row i predicting tokens[i]; head: (vocabulary, d);
    tokens: (n,). Returns two (n,) float32 tensors, in nats. Logits are divided by the temperature, as in sampling.
    Rows go through the head `chunk` at a time, and are recomputed in the backward pass, so that memory holds
    chunk x vocabulary logits at most.
    """
    logprobs, entropies = [], []
    for rows, wanted in zip(hidden.split(chunk), tokens.split(chunk), strict=True):
        if torch.is_grad_enabled():
            logprob, entropy = checkpoint(_chunk, rows, head, wanted, temperature, use_reentrant=False)
        else:
            logprob, entropy = _chunk(rows, head, wanted, temperature)
        logprobs.append(logprob)
        entropies.append(entropy)
    return torch.cat(logprobs), torch.cat(entropies)


def _chunk(hidden: Tensor, head: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits = torch.nn.functional.linear(hidden, head).float() / temperature
    distribution = logits.log_softmax(-1)
    logprob = distribution.gather(-1, tokens[:, None]).squeeze(-1)
    return logprob, -(distribution.exp() * distribution).sum(-1)
