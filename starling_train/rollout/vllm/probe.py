"""Does an engine with weights of its own compute what the policy does? Log-probs of a few tokens, compared."""

from collections.abc import Callable, Sequence

import torch

from starling_train.config.fields import UserError
from starling_train.models.causal_lm import CausalLM
from starling_train.models.families.ways import plain_logits
from starling_train.rollout.vllm import weights

TOKENS = 24
# mean |difference| of log-probs, nats, that rounding explains; another matrix makes whole nats
MOST = {torch.float32: 1e-4, torch.float16: 0.1, torch.bfloat16: 0.25}
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


class Copies:
    """Gives an engine what it needs of a policy's weights, and compares.

    engine: its name, for messages.
    remedy: what to do where it computes something else.
    """

    def __init__(self, engine: str, remedy: str):
        self._engine, self._remedy = engine, remedy
        self._takes_all = False  # because parts alone were not enough

    def give(self, policy: CausalLM, has_rest: bool, send: Callable[[set[str] | None], float]) -> float:
        """Give what trains, or all weights, and return the gap afterwards. Raises UserError where it is too large.

        has_rest: what does not train is there already.
        send: gives the weights of these names, or all, and returns the gap.
        """
        if has_rest and not self._takes_all:
            names = weights.rounded_up(weights.trained_names(policy), weights.weights_of(policy))
            found = send(names)
            if is_close(policy, found):
                return found
            self._takes_all = True
            print(
                f"rollout.engine={self._engine}: given {len(names)} tensors, those that train, its log-probs are off "
                f"by {found:.2g} nats a token; it is given all from now on",
                flush=True,
            )
        found = send(None)
        if not is_close(policy, found):
            raise UserError(
                f"rollout.engine: {self._engine}'s log-probs of this {policy.config.model_type} are off by {found:.2g} "
                f"nats a token, given the policy's weights; {self._remedy}"
            )
        return found
