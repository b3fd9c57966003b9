"""Policy, reference and critic in one module, each frozen tensor once."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from starling_train.core.excluded import NOTHING, ExcludedIds
from starling_train.models import adapters
from starling_train.models.causal_lm import CausalLM, Decoder
from starling_train.models.families.ways import ways_of
from starling_train.models.micro_batch import MicroBatch, Outputs
from starling_train.models.sharing import freeze_all, twin
from starling_train.models.trunk import AnyTrunk
from starling_train.models.value_head import ValueHead

Groups = tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]


class Trunks(NamedTuple):
    """Views of the decoders' layers from `lowest` on; None for a missing network."""

    policy: AnyTrunk
    reference: AnyTrunk | None
    critic: AnyTrunk | None


class Actors(nn.Module):
    """One policy, one reference, one critic: the module that is handed to the optimizer.

    policy: a causal LM with its final requires_grad flags. If it has adapters, the reference is the model without them,
        and a twin critic has its own.
    critic: `head` (a value head on the policy's own last hidden state), `twin` (own copies of the trainable tensors),
        `separate` (own copies of everything, all trainable), `none`.
    lowest: index of the lowest decoder layer with a trainable tensor.
    has_reference: False if the reference is numbers that were computed before.
    excluded: ids that responses are drawn without; all log-probabilities and entropies are of the distribution over
        the others.
    """

    def __init__(
        self,
        policy: CausalLM,
        critic: str,
        lowest: int,
        temperature: float = 1.0,
        has_reference: bool = True,
        excluded: ExcludedIds = NOTHING,
    ):
        super().__init__()
        self.policy, self.ways = policy, ways_of(policy, lowest)
        self.reference = freeze_all(adapters.without(twin(policy))) if has_reference else None
        self.critic = _critic_trunk(policy, critic)
        self._critic_kind, self.lowest = critic, lowest
        self.value_head = None if critic == "none" else ValueHead(policy.config.get_text_config().hidden_size)
        self.temperature, self.excluded = temperature, excluded
        self.rebuild_views()

    def rebuild_views(self) -> None:
        """Make the views of the layers anew, after something was hung onto the layers themselves."""
        reference = None if self.reference is None else self._trunk_of(self.reference.get_decoder())
        critic = None if self.critic is None else self._trunk_of(self.critic)
        # plain attributes in a tuple, or Module would register the views' layers a second time
        self._trunks = Trunks(self._trunk_of(self.policy.get_decoder()), reference, critic)

    def _trunk_of(self, decoder: Decoder) -> AnyTrunk:
        return self.ways.of(decoder, self.lowest)

    @property
    def device(self) -> torch.device:
        return self.policy.get_output_embeddings().weight.device

    @property
    def shares_states(self) -> bool:
        """Whether policy, reference and twin critic have layers below the lowest that trains in common."""
        return self.lowest > 0 and self.ways.cuts and not self.policy.get_input_embeddings().weight.requires_grad

    @property
    def shares_prompts(self) -> bool:
        """Whether a prompt with several responses may go through the networks once."""
        return self.ways.continues

    @torch.no_grad()
    def shared_states(self, batch: MicroBatch) -> Tensor | None:
        """Return the hidden states (tokens, d) entering layer `lowest`, alike in policy, reference and twin critic.

        None where no layers are shared: the embeddings are then looked up again, or train.
        """
        return self._trunks.policy.prefix(batch.ids, batch.packing) if self.shares_states else None

    def forward(self, batch: MicroBatch, states: Tensor | None = None, train_policy: bool = True) -> Outputs:
        """Return log-probs, entropy and values (None without a critic) of the response tokens under current weights.

        states: `shared_states` of this batch (computed here if None). train_policy=False (critic warm-up): the
        policy runs without gradients, so that only the critic learns.
        """
        states = self.shared_states(batch) if states is None else states
        with torch.set_grad_enabled(train_policy and torch.is_grad_enabled()):
            hidden = response_states(self._trunks.policy, batch, states)
            logprobs, entropy = self._logprobs(self.policy, hidden, batch)
        if self.value_head is None:
            return Outputs(logprobs, entropy, None)
        values = self.value_head(hidden) if self.critic is None else self.values(batch, states)
        return Outputs(logprobs, entropy, values)

    def _logprobs(self, model: CausalLM, hidden: Tensor, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        excluded = self.excluded.at(batch.indices)
        return self.ways.head(model).logprobs(hidden, batch.targets, self.temperature, excluded)

    def policy_outputs(self, batch: MicroBatch, states: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the log-probs and entropy of the response tokens alone: (n,) each."""
        return self._logprobs(self.policy, response_states(self._trunks.policy, batch, states), batch)

    def values(self, batch: MicroBatch, states: Tensor | None = None) -> Tensor:
        """Return the values of the response tokens, (n,), by a critic with tensors of its own (not `head`)."""
        assert self._trunks.critic is not None, "a value head on the policy's states comes with the policy's pass"
        assert self.value_head is not None, "every critic has one"
        # a separate critic trains below `lowest` too
        states = None if self._critic_kind == "separate" else states
        return self.value_head(response_states(self._trunks.critic, batch, states))

    @torch.no_grad()
    def reference_logprobs(self, batch: MicroBatch, states: Tensor | None = None) -> Tensor:
        """Return the log-probs of the response tokens under the frozen starting policy: (n,)."""
        states = self.shared_states(batch) if states is None else states
        assert self.reference is not None and self._trunks.reference is not None, "its log-probs are numbers"
        hidden = response_states(self._trunks.reference, batch, states)
        return self._logprobs(self.reference, hidden, batch)[0]

    def groups(self) -> Groups:
        """Return the trainable parameters of the policy and of the critic, each with a learning rate of its own."""
        return self.policy_parameters(), self.critic_parameters()

    def policy_parameters(self) -> dict[str, nn.Parameter]:
        """Return the trainable parameters of the policy, by name."""
        return {f"policy.{n}": p for n, p in self.policy.named_parameters() if p.requires_grad}

    def critic_parameters(self) -> dict[str, nn.Parameter]:
        """Return the trainable parameters of the critic, its value head included, by name; empty without a critic."""
        parameters: dict[str, nn.Parameter] = {}
        if self.value_head is not None:
            parameters |= {f"value_head.{n}": p for n, p in self.value_head.named_parameters()}
        if self.critic is not None:
            parameters |= {f"critic.{n}": p for n, p in self.critic.named_parameters() if p.requires_grad}
        return parameters

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return all trainable parameters by name."""
        return self.policy_parameters() | self.critic_parameters()


def response_states(trunk: AnyTrunk, batch: MicroBatch, states: Tensor | None) -> Tensor:
    """Return the last hidden states that predict the response tokens, (n, d).

    states: what enters the trunk's lowest layer, computed here if None.
    """
    states = trunk.prefix(batch.ids, batch.packing) if states is None else states
    read = trunk.suffix(states, batch.packing, batch.source)
    if batch.among is None:
        return read
    # a state is read several times; of the two, this one's gradient is added up in one order on this device
    return read.index_select(0, batch.among) if read.device.type == "cpu" else read[batch.among]


def _critic_trunk(policy: CausalLM, kind: str) -> Decoder | None:
    if kind in ("head", "none"):
        return None
    if kind == "twin":
        return twin(policy.get_decoder())
    assert kind == "separate", kind
    return copy.deepcopy(policy.get_decoder()).requires_grad_(True)
