"""Policy, reference and critic in one module, each frozen tensor once."""

import copy

import torch
from torch import Tensor, nn

from starling_train.core.logprobs import token_logprobs
from starling_train.models import adapters
from starling_train.models.micro_batch import MicroBatch, Outputs
from starling_train.models.sharing import freeze_all, twin
from starling_train.models.trunk import Trunk
from starling_train.models.value_head import ValueHead


class Actors(nn.Module):
    """The container that is handed to the engine: one policy, one reference, one critic.

    policy: a causal LM with its final requires_grad flags. With adapters on it, the reference is the model without
    them, and a twin critic has adapters of its own. critic: `head` (a value head on the policy's own last
    hidden state), `twin` (own copies of the trainable tensors), `separate` (own copies of everything, all trainable).
    lowest: index of the lowest decoder layer with a trainable tensor.
    """

    def __init__(self, policy: nn.Module, critic: str, lowest: int, temperature: float = 1.0):
        super().__init__()
        self.policy = policy
        self.reference = freeze_all(adapters.without(twin(policy)))
        self.critic = _critic_trunk(policy, critic)
        self._critic_kind, self.lowest = critic, lowest
        self.value_head = ValueHead(policy.config.hidden_size)
        self.temperature = temperature
        self.look_again()

    def look_again(self) -> None:
        """Make the views of the layers anew, after something was hung onto the layers themselves."""
        decoders = (self.policy.model, self.reference.model, self.critic)
        # plain attributes in a tuple, or Module would register the views' layers a second time
        self._trunks = tuple(None if decoder is None else Trunk(decoder, self.lowest) for decoder in decoders)

    @property
    def device(self) -> torch.device:
        return self.value_head.out.weight.device

    @property
    def shares_start(self) -> bool:
        """Whether policy, reference and twin critic have layers below the lowest that trains in common."""
        return self.lowest > 0 and not self.policy.get_input_embeddings().weight.requires_grad

    @torch.no_grad()
    def start(self, batch: MicroBatch) -> Tensor | None:
        """Hidden states (tokens, d) entering layer `lowest`: those of policy, reference and twin critic alike.

        None where no layers are shared: the embeddings are then looked up again, or train.
        """
        return self._trunks[0].prefix(batch.ids, batch.packing) if self.shares_start else None

    def forward(self, batch: MicroBatch, start: Tensor | None = None, train_policy: bool = True) -> Outputs:
        """Log-probs, entropy and values of the response tokens under the current weights.

        start: what `start` gave for this batch (computed here if None). train_policy=False (critic warm-up): the
        policy's part runs without gradients, so that only the critic learns.
        """
        start = self.start(batch) if start is None else start
        with torch.set_grad_enabled(train_policy and torch.is_grad_enabled()):
            hidden = response_states(self._trunks[0], batch, start)
            logprobs, entropy = self._logprobs(hidden, batch)
        values = self.value_head(hidden) if self.critic is None else self.values(batch, start)
        return Outputs(logprobs, entropy, values)

    def _logprobs(self, hidden: Tensor, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        head = self.policy.lm_head
        low_rank = adapters.low_rank(head)
        return token_logprobs(hidden, head.weight, batch.targets, self.temperature, low_rank=low_rank)

    def policy_outputs(self, batch: MicroBatch, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log-probs and entropy of the response tokens alone: (n,) each."""
        return self._logprobs(response_states(self._trunks[0], batch, start), batch)

    def values(self, batch: MicroBatch, start: Tensor | None = None) -> Tensor:
        """Values of the response tokens, (n,), by a critic with tensors of its own (not `head`)."""
        assert self.critic is not None, "a value head on the policy's states comes with the policy's pass"
        return self.value_head(
            response_states(self._trunks[2], batch, None if self._critic_kind == "separate" else start)
        )

    @torch.no_grad()
    def reference_logprobs(self, batch: MicroBatch, start: Tensor | None = None) -> Tensor:
        """Log-probs of the response tokens under the frozen starting policy: (n,)."""
        start = self.start(batch) if start is None else start
        hidden = response_states(self._trunks[1], batch, start)
        return token_logprobs(hidden, self.reference.lm_head.weight, batch.targets, self.temperature)[0]

    def policy_parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters of the policy, by name."""
        return {f"policy.{n}": p for n, p in self.policy.named_parameters() if p.requires_grad}

    def critic_parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters of the critic, its value head included, by name."""
        parameters = {f"value_head.{n}": p for n, p in self.value_head.named_parameters()}
        if self.critic is not None:
            parameters |= {f"critic.{n}": p for n, p in self.critic.named_parameters() if p.requires_grad}
        return parameters

    def trainable(self) -> dict[str, nn.Parameter]:
        return self.policy_parameters() | self.critic_parameters()


def response_states(trunk: Trunk, batch: MicroBatch, start: Tensor | None) -> Tensor:
    """(n, d) last hidden states that predict the response tokens. start: entering the trunk's cut, None = computed."""
    start = trunk.prefix(batch.ids, batch.packing) if start is None else start
    return trunk.suffix(start, batch.packing, batch.source)


def _critic_trunk(policy: nn.Module, kind: str) -> nn.Module | None:
    if kind == "head":
        return None
    if kind == "twin":
        return twin(policy.model)
    assert kind == "separate", kind
    return copy.deepcopy(policy.model).requires_grad_(True)
