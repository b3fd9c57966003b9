"""The rollout engine `slots`: a fixed number of sequences step together; a finished one's slot is refilled at once.

The running rows are kept together at the front, so that a step computes nothing for the others. On a GPU a step takes
one of a few numbers of rows, for each of which it is captured as a CUDA graph.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from starling_train.config.sections import RolloutConfig
from starling_train.core import sampling
from starling_train.core.micro_batches import cut_by_tokens, overhead_of
from starling_train.core.padding import padded
from starling_train.data.chat import Chat
from starling_train.models.causal_lm import CausalLM
from starling_train.models.families.ways import head_of
from starling_train.rollout.decode_step import DecodeStep
from starling_train.rollout.exclusions import exclusions
from starling_train.rollout.graph_steps import GraphSteps
from starling_train.rollout.hidden_states import StateRecorder
from starling_train.rollout.kept_steps import KEEPER, Steps, Wanted, addresses
from starling_train.rollout.lean_decoder import kernels_of
from starling_train.rollout.responses import Drawn, OnDone
from starling_train.rollout.slot_cache import SlotCache, only_row
from starling_train.rollout.start_check import step_of
from starling_train.rollout.stop_strings import StopStrings

PREFILL_TOKENS = 8192  # of prompts in one forward pass, padded
REFILL_SHARE = 8  # slots are refilled once an eighth of them is free, so that prompts share a forward pass
CAPACITY = 512  # on a GPU a slot holds a multiple of this, so that the longest prompt seldom changes where things lie
CACHE_SHARE = 0.8  # of a GPU's free memory, at most, for keys and values


@torch.no_grad()
def respond(
    policy: CausalLM,
    chat: Chat,
    prompts: Sequence[list[int]],
    config: RolloutConfig,
    greedy: bool,
    keep_layer: int | None,
    indices: Sequence[int],
    on_done: OnDone,
) -> Drawn:
    """Draw a response for each prompt, as `responses.Engine`.

    A response depends on its prompt, its index, the global seed and the weights, not on `config.slots` or on what is
    generated beside it (but for rounding: a matrix product of another shape differs in its last bits). There are fewer
    slots where a GPU has no room for their keys and values. The states of a sequence are those of all its tokens but
    the last, (tokens, d). Neighbours that share one list as their prompt, as a group does, have it computed once.
    """
    seed = int(torch.randint(2**62, ()))
    seeds = None if greedy else [(seed, index) for index in indices]
    return _Decoder(policy, chat, prompts, config, seeds, keep_layer, on_done).run()


class _Prefilled(NamedTuple):
    """Prompts after a forward pass: the logits after each, (n, vocabulary), their keys and values, what is recorded."""

    logits: Tensor
    cache: DynamicCache
    states: Tensor | None

    def only(self, row: int) -> "_Prefilled":
        """Copy what belongs to one of them."""
        states = None if self.states is None else self.states[row : row + 1]
        return _Prefilled(self.logits[row : row + 1].clone(), only_row(self.cache, row), states)


class _Decoder:
    """Decodes all prompts. `_slots[i]`: the number of the prompt whose response grows in row i, None if it is free."""

    def __init__(
        self,
        policy: CausalLM,
        chat: Chat,
        prompts: Sequence[list[int]],
        config: RolloutConfig,
        seeds: Sequence[tuple[int, ...]] | None,
        keep_layer: int | None,
        on_done: OnDone,
    ):
        self._recorder = StateRecorder(policy.get_decoder(), keep_layer, len(prompts))
        self._policy, self._prompts, self._config, self._on_done = policy, prompts, config, on_done
        self._head = head_of(policy)
        self._end_ids, self._excluded = chat.end_ids, exclusions(policy.config, chat, config.min_new_tokens)
        self._stops = StopStrings(chat, chat.stop_strings(config.stop_strings), config.min_new_tokens)
        size = sum(parameter.numel() for parameter in policy.parameters())
        self._overhead = overhead_of(size, policy.config.get_text_config().num_hidden_layers, policy.device.type)
        self._kind = step_of(policy)
        self._kernels = None if self._kind is DecodeStep else kernels_of(policy)
        self._capacity = max(map(len, prompts), default=0) + config.max_new_tokens
        self._count = min(config.slots, len(prompts))
        self._kept: Steps | None = None
        self._captures = captures(policy)
        if self._captures:
            self._size_for_graphs(keep_layer)
        self._waiting = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # longest last: taken from the end
        self._responses: list[list[int]] = [[] for _ in prompts]
        self._slots: list[int | None] = []
        self._begun: _Prefilled | None = None  # the prompt of the next that wait, where others of its group do not
        self._step: DecodeStep | GraphSteps | None = None
        self._cache: SlotCache | None = None
        self._uniforms: Tensor | None = None  # None: the likeliest token is taken
        if seeds is not None and prompts:
            self._uniforms = _uniforms(seeds, config.max_new_tokens).to(policy.device)

    def _size_for_graphs(self, keep_layer: int | None) -> None:
        """Choose rows and capacity on a GPU: those of steps that an earlier rollout has left, or as many as fit."""
        policy, prompts = self._policy, len(self._prompts)
        self._capacity = -(-self._capacity // CAPACITY) * CAPACITY
        self._wanted = Wanted(self._count, self._capacity, keep_layer, self._kind)
        self._kept = KEEPER.take(policy, self._wanted)
        if self._kept is not None:
            self._count = self._kept.rows
            return
        hidden_size = policy.config.get_text_config().hidden_size
        state_bytes = 0 if keep_layer is None else 2 * prompts * self._capacity * hidden_size
        room = rows_that_fit(policy, self._capacity, state_bytes * policy.dtype.itemsize)
        self._count = max(1, min(self._count, room))

    def run(self) -> Drawn:
        with self._recorder.watching():
            while self._waiting or self._running():
                free = self._count - self._running()
                # a refill waits until an eighth of the slots is free: one forward pass then serves many prompts
                if self._waiting and (free == self._count or free * REFILL_SHARE >= self._count):
                    self._prefill_slots(min(free, len(self._waiting)))
                else:
                    self._advance()
        if self._kept is not None:
            KEEPER.offer(self._kept, self._policy)
        # let go of graphs, keys and values at once, unless they are kept: scoring needs the GPU's memory next
        self._step = self._cache = self._kept = self._begun = None
        states = self._recorder.collect([self._length(i) - 1 for i in range(len(self._prompts))])
        return Drawn(self._responses, states)

    def _running(self) -> int:
        return sum(sequence is not None for sequence in self._slots)

    def _prefill_slots(self, count: int) -> None:
        """Put prompts into free slots, a forward pass at a time, and draw the first token of each response."""
        chosen = [self._waiting.pop() for _ in range(count)]
        of_prompts = self._by_prompt(chosen)
        if self._begun is not None:  # others that were asked the same came before
            self._admit(self._begun, [of_prompts.pop(0)])
        waits = bool(self._waiting) and self._prompts[self._waiting[-1]] is self._prompts[chosen[-1]]
        begun = self._begun if waits and not of_prompts else None
        for group in cut_by_tokens([len(self._prompts[s[0]]) for s in of_prompts], PREFILL_TOKENS, self._overhead):
            prefilled = self._prefill([self._prompts[of_prompts[index][0]] for index in group])
            if waits and len(of_prompts) - 1 in group:  # a copy, before a draw changes the logits in place
                begun = prefilled.only(group.index(len(of_prompts) - 1))
            self._admit(prefilled, [of_prompts[index] for index in group])
        self._begun = begun

    def _by_prompt(self, sequences: list[int]) -> list[list[int]]:
        """Put neighbours that are asked the same together."""
        together: list[list[int]] = []
        for sequence in sequences:
            if together and self._prompts[together[-1][0]] is self._prompts[sequence]:
                together[-1].append(sequence)
            else:
                together.append([sequence])
        return together

    def _admit(self, prefilled: _Prefilled, of_prompts: list[list[int]]) -> None:
        """Put the sequences of each prompt that was prefilled into free slots, and draw their first tokens."""
        sequences = [sequence for of_prompt in of_prompts for sequence in of_prompt]
        rows = [row for row, of_prompt in enumerate(of_prompts) for _ in of_prompt]
        is_shared = len(rows) > len(of_prompts)
        self._recorder.add_prompts(sequences, prefilled.states, [len(self._prompts[i]) for i in sequences], rows)
        if self._step is None:
            self._make_cache(prefilled.cache)
        free = [slot for slot, holds in enumerate(self._slots) if holds is None][: len(sequences)]
        assert self._cache is not None, "made with the step"
        self._cache.admit(prefilled.cache, free, rows if is_shared else None)
        for slot, sequence in zip(free, sequences, strict=True):
            self._slots[slot] = sequence
        # the prompt's last logits already give the first token: a prefill draws, too
        logits = prefilled.logits[rows] if is_shared or prefilled is self._begun else prefilled.logits
        self._append(free, sequences, self._draw(logits, sequences))

    def _prefill(self, prompts: list[list[int]]) -> _Prefilled:
        """Run prompts through the model, right-padded."""
        # attention is causal and padding lies to the right: no real position sees it, whatever it is
        ids = padded(prompts)[0].to(self._policy.device)
        cache = DynamicCache()
        hidden = self._policy.get_decoder()(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
        ends = torch.tensor([len(prompt) - 1 for prompt in prompts], device=ids.device)
        logits = self._head.logits(hidden[torch.arange(len(ids), device=ids.device), ends])
        return _Prefilled(logits, cache, self._recorder.last())

    def _make_cache(self, example: DynamicCache) -> None:
        """Make cache and step, or take those that were kept; the cache has the shapes of the first prompts' own."""
        self._slots = [None] * self._count
        recorded, watch = self._recorder.last, self._recorder.watch
        if self._kept is not None:
            self._cache, self._step = self._kept.cache, self._kept.steps
            self._kept.steps.step.follow(recorded, watch)
            return
        self._cache = SlotCache(example, self._count, self._capacity, self._kind.by_length)
        step = self._step = self._kind(self._policy, self._cache, recorded, watch)
        if self._captures:
            steps = self._step = GraphSteps(step, self._cache, self._count, self._policy.device)
            self._kept = Steps(self._wanted, self._count, self._cache, steps, addresses(self._policy))

    def _advance(self) -> None:
        """Draw one more token for every response that grows."""
        self._compact()
        running = [sequence for sequence in self._slots[: self._running()] if sequence is not None]
        # the newest token is not in the cache yet: this step writes it, at the last position so far
        tokens = [self._responses[sequence][-1] for sequence in running]
        filled = [self._length(sequence) - 1 for sequence in running]
        assert self._step is not None, "there is a row that runs"
        logits, entered = self._step(tokens, filled)
        self._recorder.add(running, entered, [1] * len(running))
        self._append(range(len(running)), running, self._draw(logits, running))

    def _length(self, sequence: int) -> int:
        return len(self._prompts[sequence]) + len(self._responses[sequence])

    def _compact(self) -> None:
        """Move rows from the end into free slots, so that the running rows are the first."""
        count = self._running()
        free = [slot for slot, holds in enumerate(self._slots[:count]) if holds is None]
        behind = [slot for slot, holds in enumerate(self._slots) if holds is not None and slot >= count]
        for target, source in zip(free, behind, strict=True):
            sequence = self._slots[source]
            assert self._cache is not None and sequence is not None, "a row that runs"
            # all tokens but the newest, which the next step writes
            self._cache.move(source, target, self._length(sequence) - 1)
            self._slots[target], self._slots[source] = sequence, None

    def _draw(self, logits: Tensor, sequences: Sequence[int]) -> list[int]:
        """Draw a token for each row of logits; `sequences` says whose random numbers are used."""
        config = self._config
        # the k-th token of a prompt always takes its k-th number, whichever slot or step draws it
        count = [len(self._responses[sequence]) for sequence in sequences]
        if self._excluded and (left_out := self._excluded.at(torch.tensor(count, device=logits.device))):
            left_out.apply_(logits)
        if self._uniforms is None:
            return logits.argmax(-1).tolist()
        index = torch.tensor([list(sequences), count], device=logits.device)
        uniforms = self._uniforms[index[0], index[1]]
        if self._kernels is not None and config.top_p == 1 and config.top_k == 0:
            return self._kernels.draw(logits, uniforms, config.temperature).tolist()
        return sampling.draw(
            sampling.distribution(logits, config.temperature, config.top_p, config.top_k), uniforms
        ).tolist()

    def _append(self, rows: Sequence[int], sequences: Sequence[int], tokens: list[int]) -> None:
        """Add a token to the response in each row; those that end with it leave their slots."""
        for row, sequence, token in zip(rows, sequences, tokens, strict=True):
            response = self._responses[sequence]
            response.append(token)
            is_complete = token in self._end_ids or len(response) == self._config.max_new_tokens
            stops = self._stops
            if is_complete or (stops.due(len(response)) and stops.is_in_tail(response)):
                end = stops.end(response)
                if end is not None:  # the text is only looked at every few tokens: what came after the string goes
                    del response[end:]
                if is_complete or end is not None:
                    self._slots[row] = None
                    self._on_done(sequence, response)


def captures(policy: CausalLM) -> bool:
    """Return whether steps of this policy are captured: on a GPU."""
    return policy.device.type == "cuda"


def rows_that_fit(policy: CausalLM, capacity: int, state_bytes: int) -> int:
    """Count the sequences whose keys and values fit into CACHE_SHARE of a GPU's memory, free or cached by torch.

    state_bytes: of hidden states that need room besides, twice over while they are put together.
    """
    config = policy.config.get_text_config()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * heads * head * policy.dtype.itemsize
    free = torch.cuda.mem_get_info(policy.device)[0]
    free += torch.cuda.memory_reserved(policy.device) - torch.cuda.memory_allocated(policy.device)
    return int(CACHE_SHARE * (free - state_bytes) / (per_token * capacity))


def _uniforms(seeds: Sequence[tuple[int, ...]], count: int) -> Tensor:
    """Draw `count` uniform float32 numbers in [0, 1) for each seed, (len(seeds), count), on the CPU.

    A seed is a tuple of numbers >= 0. Streams of different seeds are independent, and the first numbers of a stream
    do not depend on how many are requested.
    """
    streams = [np.random.Generator(np.random.Philox(np.random.SeedSequence(seed))) for seed in seeds]
    return torch.from_numpy(np.stack([stream.random(count, dtype=np.float32) for stream in streams]))
