"""Does an engine with weights of its own compute what the policy does? Log-probs of a few tokens, compared."""

from collections.abc import Callable, Sequence

import torch

from starling_train.models.causal_lm import CausalLM
from starling_train.models.families.ways import plain_logits

TOKENS = 24
# mean |difference| of log-probs, nats, that rounding explains; another matrix makes whole nats
MOST = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.25}
Logprobs = Callable[[Sequence[int]], list[float]]  # of ids -> of each but the first, after those before it


def probe_ids(policy: CausalLM) -> list[int]:
    """Make ids that are spread over the vocabulary."""
    vocabulary = policy.config.get_text_config().vocab_size
    return [(index * 7919 + 13) % vocabulary for index in range(TOKENS)]


@torch.no_grad()
def gap(policy: CausalLM, logprobs: Logprobs) -> float:
    """Return the mean |log-prob of the engine - ours| over the probe's tokens, in nats; inf where one is not finite."""
    ids = probe_ids(policy)
    there = torch.tensor(logprobs(ids), dtype=torch.float64)
    was_training = policy.training
    policy.eval()
    try:
        logits = plain_logits(policy, torch.tensor(ids, device=policy.get_input_embeddings().weight.device))
    finally:
        policy.train(was_training)
    here = logits[:-1].double().log_softmax(-1).cpu()[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    found = float((here - there).abs().mean())
    return found if found == found else float("inf")


def is_close(policy: CausalLM, found: float) -> bool:
    """Return whether rounding explains a gap."""
    return found <= MOST.get(policy.dtype, MOST[torch.float32])
