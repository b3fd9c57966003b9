"""A policy without reference and critic, for training whose reference is numbers that were computed before."""

import torch
from torch import Tensor, nn

from starling_train.core.logprobs import token_logprobs
from starling_train.models import adapters
from starling_train.models.actors import response_states
from starling_train.models.micro_batch import MicroBatch
from starling_train.models.trunk import Trunk


class LonePolicy(nn.Module):
    """What is handed to the engine: a causal LM with its final requires_grad flags, and adapters if it has any.

    lowest: index of the lowest decoder layer with a trainable tensor; what lies below runs without gradients.
    """

    def __init__(self, policy: nn.Module, lowest: int):
        super().__init__()
        self.policy, self.lowest = policy, lowest
        self.look_again()

    def look_again(self) -> None:
        """Make the view of the layers anew, after something was hung onto the layers themselves."""
        # a plain attribute in a tuple, or Module would register the view's layers a second time
        self._trunks = (Trunk(self.policy.model, self.lowest),)

    @property
    def device(self) -> torch.device:
        return self.policy.lm_head.weight.device

    @torch.no_grad()
    def start(self, batch: MicroBatch) -> Tensor | None:
        """Hidden states (tokens, d) entering layer `lowest`; None where the embeddings train."""
        if self.policy.get_input_embeddings().weight.requires_grad:
            return None
        return self._trunks[0].prefix(batch.ids, batch.packing)

    def forward(self, batch: MicroBatch, start: Tensor | None = None) -> Tensor:
        """Log-probabilities of the response tokens, (n,), float32. start: what `start` gave for this batch."""
        hidden = response_states(self._trunks[0], batch, start)
        head = self.policy.lm_head
        return token_logprobs(hidden, head.weight, batch.targets, low_rank=adapters.low_rank(head))[0]

    def trainable(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}
