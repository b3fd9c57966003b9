"""One decoding step: a token for every row, its keys and values into the cache, logits for the next one."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from starling_train.models.causal_lm import CausalLM
from starling_train.models.families.ways import head_of
from starling_train.rollout.attention import SLIDING, LengthAttention, MaskedAttention, Rows, windows_of
from starling_train.rollout.lean_decoder import Attention, LeanDecoder
from starling_train.rollout.products import Product
from starling_train.rollout.slot_cache import SlotCache

Watch = Callable[[nn.Module, Tensor], None]


class DecodeStep:
    """A step for the first rows of the cache, as many as there are tokens. Weights are the model's own, live.

    Attributes: `by_length`, whether a row's keys are read up to its own length, from a cache that is laid out token by
    token; else all rows read as many as are used.
    """

    by_length = False

    def __init__(self, policy: CausalLM, cache: SlotCache, recorded: Callable[[], Tensor | None], watch: Watch):
        """Make the step. recorded, watch: see `follow`."""
        self._policy, self._cache, self._device = policy, cache, policy.device
        self._head = head_of(policy)
        self.follow(recorded, watch)

    def follow(self, recorded: Callable[[], Tensor | None], watch: Watch) -> None:
        """Give what is recorded to a `StateRecorder`.

        recorded: gives the states of the last forward pass that are to be kept, or None.
        watch: is told of states by a step that does not call the forward of the layers.
        """
        self._recorded, self._watch = recorded, watch

    def __call__(self, tokens: Sequence[int], positions: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Decode token i of row i at positions[i] (from 0); returns logits (rows, vocabulary) and recorded states."""
        ids, at = torch.tensor([tokens, positions], device=self._device)
        return self.forward(ids, at, max(positions) + 1)

    def forward(self, ids: Tensor, positions: Tensor, used: int) -> tuple[Tensor, Tensor | None]:
        """Do the same with tensors (rows,). used: a number of positions that holds all of them."""
        self._cache.aim(torch.arange(len(ids), device=ids.device), positions, used)
        hidden = self._policy.get_decoder()(
            input_ids=ids[:, None],
            position_ids=positions[:, None],
            attention_mask=_masks(self._policy, positions, used),
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        return self._head.logits(hidden[:, -1]), self._recorded()


class LeanStep(DecodeStep):
    """The same for a model that `LeanDecoder` computes; on a CPU its weights may be a copy, of now."""

    def __init__(self, policy: CausalLM, cache: SlotCache, recorded: Callable[[], Tensor | None], watch: Watch):
        super().__init__(policy, cache, recorded, watch)
        self._decoder = LeanDecoder(policy)
        self._product = Product(policy.get_output_embeddings(), compiled=self._decoder.kernels)
        self._windows = windows_of(policy)

    def forward(self, ids: Tensor, positions: Tensor, used: int) -> tuple[Tensor, Tensor | None]:
        """Do the same as `DecodeStep`."""
        if self._decoder.kernels is not None:  # they read no position that a row does not have
            windows = {kind: window or 0 for kind, window in self._windows.items()}
            hidden = self._decoder(ids, positions, self._cache, windows, self._watch)
        else:
            self._cache.aim(torch.arange(len(ids), device=ids.device), positions, used)
            hidden = self._decoder(ids, positions, self._cache, self._attention(positions, used), self._watch)
        return self._head.logits(hidden, self._product.unrounded), self._recorded()

    def _attention(self, positions: Tensor, used: int) -> Mapping[str, Attention]:
        seen = _seen(self._policy, positions, used)
        return {kind: MaskedAttention(self._cache, _added(mask, self._policy.dtype)) for kind, mask in seen.items()}


class LengthStep(LeanStep):
    """The same on a GPU whose kernel knows the rows' lengths (`attention.has_lengths`)."""

    by_length = True

    def _attention(self, positions: Tensor, used: int) -> Mapping[str, Attention]:
        rows = Rows(positions, self._cache.capacity)
        return {kind: LengthAttention(self._cache, rows, window) for kind, window in self._windows.items()}


def _masks(policy: CausalLM, positions: Tensor, used: int) -> Tensor | dict[str, Tensor]:
    """Mark which of the `used` positions each row attends to, (rows, 1, 1, used): up to its own, in a sliding window.

    A dictionary by layer type where the decoder has layers of several types, as its own forward expects.
    """
    kinds = set(getattr(policy.config.get_text_config(), "layer_types", None) or ())
    shaped = _seen(policy, positions, used)
    # eager attention adds its mask to the scores; on a GPU every layer would convert another kind anew
    if policy.config._attn_implementation == "eager" or positions.is_cuda:
        shaped = {kind: _added(mask, policy.dtype) for kind, mask in shaped.items()}
    return {kind: shaped[kind] for kind in kinds} if len(kinds) > 1 else shaped[SLIDING]


def _seen(policy: CausalLM, positions: Tensor, used: int) -> dict[str, Tensor]:
    """Mark them by the type of a layer; where there is one type, both have its mask."""
    attended = torch.arange(used, device=positions.device)
    full = attended <= positions[:, None]
    return {
        kind: (full & (attended > positions[:, None] - window) if window else full)[:, None, None]
        for kind, window in windows_of(policy).items()
    }


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Make a mask to add to scores: 0 where it is True, the lowest number elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
