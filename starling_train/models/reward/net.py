"""The networks behind a reward model: token ids -> one score a row. They can be trained as any module."""

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from starling_train.core.float32_products import InFloat32
from starling_train.models.causal_lm import CausalLM, Decoder
from starling_train.models.packing import Packing, can_pack
from starling_train.models.trunk import Trunk


class RewardNet(nn.Module):
    """A decoder without a language-model head, and a linear head that makes one score of a hidden state."""

    def __init__(self, transformer: Decoder, v_head: nn.Linear) -> None:
        super().__init__()
        self.transformer = transformer
        self.v_head = v_head

    @classmethod
    def from_config(cls, config, dtype: torch.dtype = torch.float32) -> "RewardNet":
        """Make a fresh network; its head is zero, so that the K-wise loss starts at its known value, log(K!)/(K-1)."""
        from transformers import AutoModel

        head = nn.Linear(config.hidden_size, 1, bias=False, dtype=dtype)
        nn.init.zeros_(head.weight)
        return cls(AutoModel.from_config(config, dtype=dtype), head)

    # what `selection.freeze` needs of a causal language model; here the output head is the reward head
    @property
    def config(self) -> Any:
        return self.transformer.config

    def get_input_embeddings(self) -> nn.Embedding:
        return self.transformer.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Linear:
        return self.v_head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        read_at: Tensor | None = None,
    ) -> Tensor:
        """Score right-padded ids (batch, tokens): (batch,), float32.

        read_at: (batch,) the position that the head reads; the last one of the mask if None.
        position_ids: only for `position=card`, where padding is attended from.
        """
        last = self.last_states(input_ids, attention_mask, position_ids, read_at)
        return self.scores(last.to(self.v_head.weight.device))

    def scores(self, states: Tensor) -> Tensor:
        """Score the hidden states that the head reads, (batch, d): (batch,), float32 from the product on."""
        with InFloat32(self.v_head.weight):
            return self.v_head(states).squeeze(-1).float()

    def last_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        read_at: Tensor | None = None,
    ) -> Tensor:
        """Return the hidden states that the head reads: (batch, d). The arguments are `forward`'s."""
        # padding on the right is never attended to by what is left of it; without a mask the attention kernels are the
        # fast causal ones
        mask = None if position_ids is None else attention_mask
        hidden = self.transformer(
            input_ids=input_ids, attention_mask=mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state
        read_at = attention_mask.sum(-1) - 1 if read_at is None else read_at
        return hidden[torch.arange(len(hidden), device=hidden.device), read_at.to(hidden.device)]


# what a selection can train
Network = CausalLM | RewardNet


class PackedNet:
    """A `RewardNet` that scores packed sequences: no padding, and the last layer's MLP at what is read alone."""

    def __init__(self, net: RewardNet):
        self._net, self._trunk = net, Trunk(net.transformer, 0)

    @staticmethod
    def fits(net: nn.Module) -> TypeGuard[RewardNet]:
        """Return whether a net may be seen like this: a decoder whose layers lie on one device."""
        layers = getattr(getattr(net, "transformer", None), "layers", None)
        return isinstance(net, RewardNet) and layers is not None and can_pack(layers)

    def __call__(self, ids: Tensor, packing: Packing, read_at: Tensor) -> Tensor:
        """Score packed sequences: (sequences,), float32. ids: (tokens,); read_at: (sequences,) where the head reads."""
        return self._net.scores(self.last_states(ids, packing, read_at))

    def last_states(self, ids: Tensor, packing: Packing, read_at: Tensor) -> Tensor:
        """Return the hidden states that the head reads: (sequences, d)."""
        return self._trunk.suffix(self._trunk.prefix(ids, packing), packing, read_at)


class ClassifierNet(nn.Module):
    """A classifier with a head of its own, which reads where it always reads: an encoder's, mostly."""

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        self.classifier = classifier

    @property
    def config(self) -> Any:
        return self.classifier.config

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        read_at: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Score right-padded ids (batch, tokens): (batch,), float32. token_type_ids: 1 in the second text of a pair."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        with InFloat32(*self._last_weights()):
            output = self.classifier(input_ids=input_ids, attention_mask=attention_mask, **types)
        return output.logits.squeeze(-1).float()

    def _last_weights(self) -> list[Tensor]:
        """Return the matrix of the head that gives the score, whatever comes before it: a dense layer, a norm."""
        base = self.classifier.base_model
        heads = [child for child in self.classifier.children() if child is not base]
        return [p for head in heads for p in head.parameters() if p.dim() == 2 and len(p) == 1]
