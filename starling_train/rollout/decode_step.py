"""One decoding step: a token for every row, its keys and values into the cache, logits for the next one."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from starling_train.models.causal_lm import CausalLM
from starling_train.models.families.ways import head_of
from starling_train.rollout.lean_decoder import LeanDecoder
from starling_train.rollout.products import Product
from starling_train.rollout.slot_cache import SlotCache

BUCKET = 256  # positions: a CUDA graph attends over a multiple of this


class DecodeStep:
    """A step for the first rows of the cache, as many as there are tokens. Weights are the model's own, live.

    recorded: gives the states of the last forward pass that are to be kept (see `StateRecorder`), or None.
    """

    def __init__(self, policy: CausalLM, cache: SlotCache, recorded: Callable[[], Tensor | None]):
        self._policy, self._cache, self._device, self._recorded = policy, cache, policy.device, recorded
        self._head = head_of(policy)

    def __call__(self, tokens: Sequence[int], positions: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Decode token i of row i at positions[i] (from 0); returns logits (rows, vocabulary) and recorded states."""
        ids, at = torch.tensor([tokens, positions], device=self._device)
        return self._forward(ids, at, max(positions) + 1)

    def _forward(self, ids: Tensor, positions: Tensor, used: int) -> tuple[Tensor, Tensor | None]:
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
    """The same on a CPU, for a model that `LeanDecoder` computes; its weights may be a copy, of now.

    watch: see `LeanDecoder`.
    """

    def __init__(
        self,
        policy: CausalLM,
        cache: SlotCache,
        recorded: Callable[[], Tensor | None],
        watch: Callable[[nn.Module, Tensor], None],
    ):
        super().__init__(policy, cache, recorded)
        self._decoder, self._product = LeanDecoder(policy, watch), Product(policy.get_output_embeddings())

    def _forward(self, ids: Tensor, positions: Tensor, used: int) -> tuple[Tensor, Tensor | None]:
        if self._decoder.kernels is not None:  # they read no position that a row does not have
            hidden = self._decoder(ids, positions, self._cache, _windows(self._policy))
        else:
            self._cache.aim(torch.arange(len(ids)), positions, used)
            seen = _seen(self._policy, positions, used)
            masks = {kind: _added(mask, self._policy.dtype) for kind, mask in seen.items()}
            hidden = self._decoder(ids, positions, self._cache, masks)
        return self._head.logits(hidden, self._product.float32), self._recorded()


class GraphStep(DecodeStep):
    """The same on a GPU, with fixed rows: captured once for every BUCKET of positions, then replayed.

    A 7B step is some 700 kernels; launched one by one from Python they take longer than they run.
    """

    def __init__(
        self, policy: CausalLM, cache: SlotCache, recorded: Callable[[], Tensor | None], slots: int, capacity: int
    ):
        super().__init__(policy, cache, recorded)
        cache.touch(capacity)
        self._capacity, self._slots = capacity, slots
        self._inputs = torch.zeros(2, slots, dtype=torch.long, device=self._device)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor | None]]] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, tokens: Sequence[int], positions: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        assert len(tokens) == self._slots, "a graph's rows are fixed"
        used = min(self._capacity, -(-(max(positions) + 1) // BUCKET) * BUCKET)
        self._inputs.copy_(torch.tensor([tokens, positions]))
        if used not in self._graphs:
            self._graphs[used] = self._capture(used)
        graph, (logits, states) = self._graphs[used]
        graph.replay()
        return logits, None if states is None else states.clone()  # the next replay writes over it

    def _capture(self, used: int) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor | None]]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # warm-up: libraries take their workspaces, which no graph may do
            for _ in range(2):
                self._forward(self._inputs[0], self._inputs[1], used)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            outputs = self._forward(self._inputs[0], self._inputs[1], used)
        return graph, outputs


def _masks(policy: CausalLM, positions: Tensor, used: int) -> Tensor | dict[str, Tensor]:
    """Mark which of the `used` positions each row attends to, (rows, 1, 1, used): up to its own, in a sliding window.

    A dictionary by layer type where the decoder has layers of several types, as its own forward expects.
    """
    kinds = set(getattr(policy.config.get_text_config(), "layer_types", None) or ())
    shaped = _seen(policy, positions, used)
    if policy.config._attn_implementation == "eager":  # adds its mask to the scores
        shaped = {kind: _added(mask, policy.dtype) for kind, mask in shaped.items()}
    return {kind: shaped[kind] for kind in kinds} if len(kinds) > 1 else shaped["sliding_attention"]


def _seen(policy: CausalLM, positions: Tensor, used: int) -> dict[str, Tensor]:
    """Mark them by the type of a layer; where there is one type, both have its mask."""
    attended = torch.arange(used, device=positions.device)
    full = attended <= positions[:, None]
    return {
        kind: (full & (attended > positions[:, None] - window) if window else full)[:, None, None]
        for kind, window in _windows(policy).items()
    }


def _windows(policy: CausalLM) -> dict[str, int]:
    """Return how many of the last positions a layer of each type attends to; 0: all."""
    config = policy.config.get_text_config()
    only_full = set(getattr(config, "layer_types", None) or ()) == {"full_attention"}
    window = 0 if only_full else getattr(config, "sliding_window", None) or 0
    return {"full_attention": 0, "sliding_attention": window}


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Make a mask to add to scores: 0 where it is True, the lowest number elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
