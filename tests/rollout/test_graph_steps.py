"""What a GPU does in a rollout, on a CPU: captured steps are imitated, which run again and write over their outputs."""

import gc
import weakref
from types import SimpleNamespace

import openchat_tokenizer
import pytest
import torch
from test_slots import Ends
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, GemmaConfig, MistralConfig, Qwen2Config, Qwen3Config

from starling_train.config.sections import RolloutConfig
from starling_train.data.chat import Chat
from starling_train.models import budget
from starling_train.models.budget import Budget
from starling_train.planning.schedule import schedule
from starling_train.rollout import attention, graph_steps, kernels, lean_decoder, slots, start_check
from starling_train.rollout.generate import generate
from starling_train.rollout.graph_steps import GraphSteps, row_counts
from starling_train.rollout.kept_steps import KEEPER

END = 70
SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "pad_token_id": None, "bos_token_id": None,
    "eos_token_id": None,
}  # fmt: skip
MODELS = {
    "mistral": MistralConfig(**SIZES),
    "mistral with a short window": MistralConfig(**SIZES, sliding_window=6),
    "qwen2 with layers of two kinds": Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
    "gemma": GemmaConfig(**SIZES, head_dim=16),  # its norms are none that the lean decoder knows: modules decode
}
CALLS = []


class ImitatedGraph:
    """Runs what it has captured again, and writes the numbers over those of the capture."""

    captured = 0

    def __init__(self, forward, device, memory):
        type(self).captured += 1
        self.forward = forward
        for _ in range(3):  # two for warm-up
            self.outputs = forward()

    @staticmethod
    def memory():
        return (0, 0)

    def replay(self):
        for mine, new in zip(self.outputs, self.forward(), strict=True):
            if mine is not None:
                mine.copy_(new)
        return self.outputs


def row_by_row(queries, keys, values, starts, lengths, capacity, window, scale):
    """What `by_lengths` asks a GPU for: it must read nothing but a row's own keys."""
    of_queries, of_keys = (start.tolist() for start in starts)
    assert starts[0].dtype == starts[1].dtype == lengths.dtype == torch.int32 and queries.is_contiguous()
    assert keys.stride(-1) == 1 and keys.stride(1) == keys.shape[2]  # the heads of a token lie together
    found = []
    for row, length in enumerate(lengths.tolist()):
        assert of_queries[row] + 1 == of_queries[row + 1] and length <= capacity
        first = of_keys[row] + (max(0, length - window) if window else 0)
        own = slice(first, of_keys[row] + length)
        k, v = (part[own].transpose(0, 1)[None] for part in (keys, values))
        found.append(
            scaled_dot_product_attention(queries[row][None, :, None], k, v, scale=scale, enable_gqa=True)[0, :, 0]
        )
    CALLS.append(lengths.tolist())
    return torch.stack(found)


@pytest.fixture(params=["by length", "by mask"])
def gpu(request, monkeypatch):
    """Let a rollout go the way of a GPU, with a kernel that knows lengths and without."""
    monkeypatch.setattr(graph_steps, "Graph", ImitatedGraph)
    monkeypatch.setattr(ImitatedGraph, "captured", 0)
    monkeypatch.setattr(slots, "captures", lambda policy: True)
    monkeypatch.setattr(slots, "rows_that_fit", lambda *given: 1000)
    monkeypatch.setattr(lean_decoder, "FROM", 0)
    monkeypatch.setattr(kernels, "compiled", lambda: None)  # they are for a CPU
    monkeypatch.setattr(start_check, "has_lengths", lambda policy: request.param == "by length")
    monkeypatch.setattr(attention, "by_lengths", row_by_row)
    CALLS.clear()
    return request.param


def make(name):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS[name], attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
        model.lm_head.weight[END] = model.lm_head.weight[10:14].sum(0)
    return model.eval()


def prompts(count=11, longest=20):
    random = torch.Generator().manual_seed(4)
    lengths = torch.randint(2, longest, (count,), generator=random).tolist()
    return [torch.randint(3, 60, (n,), generator=random).tolist() for n in lengths]


def respond(model, chosen, count, greedy=True, keep_layer=None, limit=20):
    torch.manual_seed(7)
    config = RolloutConfig(max_new_tokens=limit, slots=count, stop_strings=[])
    drawn = slots.respond(model, Ends(END), chosen, config, greedy, keep_layer, range(len(chosen)), lambda *done: None)
    return drawn.responses, drawn.entering


@pytest.mark.parametrize("name", MODELS)
def test_responses_are_those_of_one_row_at_a_time(name, gpu, monkeypatch):
    model, chosen = make(name), prompts(23)
    for greedy in (True, False):
        found, states = respond(model, chosen, 9, greedy, keep_layer=1)
        with monkeypatch.context() as plain:
            plain.setattr(slots, "captures", lambda policy: False)
            plain.setattr(start_check, "has_lengths", lambda policy: False)
            plain.setattr(lean_decoder, "FROM", 10**12)
            expected, right = respond(model, chosen, 1, greedy, keep_layer=1)
        assert found == expected and len({len(one) for one in found}) > 1
        for mine, theirs in zip(states, right, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    is_lean = name != "gemma"
    assert bool(CALLS) == (is_lean and gpu == "by length")
    assert ImitatedGraph.captured <= 2 * len(row_counts(9))


def test_few_numbers_of_rows_are_captured():
    assert row_counts(32) == [4, 8, 16, 32] and row_counts(24) == [4, 8, 16, 24]
    assert row_counts(4) == [4] and row_counts(3) == [3] and row_counts(1) == [1]


def test_a_rollout_reads_what_the_schedule_counts(gpu, monkeypatch):
    """Positions read and steps, as the plan counts them from lengths alone, are those of the engine."""
    monkeypatch.setattr(graph_steps, "BUCKET", 8)
    monkeypatch.setattr("starling_train.planning.schedule.BUCKET", 8)
    monkeypatch.setattr("starling_train.planning.schedule.BLOCK", 1)
    monkeypatch.setattr(slots, "CAPACITY", 16)
    read, steps = [], []
    call = GraphSteps.__call__

    def counted(self, tokens, positions):
        rows, used = self.shape(positions)
        read.append(rows * used if gpu == "by mask" else sum(positions) + rows)
        steps.append(rows)
        return call(self, tokens, positions)

    monkeypatch.setattr(GraphSteps, "__call__", counted)
    model, chosen = make("mistral"), prompts(30)
    found, _ = respond(model, chosen, 13)
    lengths = [len(prompt) for prompt in chosen], [len(response) for response in found]
    capacity = -(-(max(lengths[0]) + 20) // 16) * 16
    planned = schedule(*lengths, 13, capacity, by_length=gpu == "by length")
    assert (planned.steps, planned.rows, planned.read) == (len(steps), sum(steps), sum(read))


class Memory:
    """A GPU's memory, as `KEEPER` asks for it."""

    def __init__(self, monkeypatch, held=0, total=10**9):
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: held)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=total))


def test_captured_steps_serve_the_next_rollout_with_the_weights_of_then(gpu, monkeypatch):
    Memory(monkeypatch)
    model, chosen = make("mistral"), prompts()
    counts = []

    def draw(longer=0, layer=1, slots=4):
        found = respond(model, [prompt + [5] * longer for prompt in chosen], slots, False, layer)
        counts.append(ImitatedGraph.captured)
        ImitatedGraph.captured = 0
        return found

    with KEEPER.across_rollouts():
        before = draw()
        draw()
        assert counts == [1, 1]  # what an update will hold is not known
        KEEPER.after_update()
        draw()
        with torch.no_grad():  # in place, as an optimizer does
            model.model.layers[0].mlp.down_proj.weight.mul_(-1)
        kept = draw()
        assert draw(longer=5)[0] != kept[0] and counts[2:] == [1, 0, 0]  # within the capacity
        draw(longer=500)
        draw()
        assert counts[5:] == [1 if gpu == "by length" else counts[5], 0 if gpu == "by length" else counts[6]]
        draw(layer=None)
        draw(slots=3)
        assert counts[7] > 0 and counts[8] > 0
        draw()
        model.model.layers[2].mlp.down_proj.weight.data = model.model.layers[2].mlp.down_proj.weight.data.clone()
        draw()  # as ZeRO's stage 3 does: elsewhere
        assert counts[10] > 0
    assert KEEPER.take(model, None) is None and budget.SPARES == []
    fresh = respond(model, chosen, 4, False, 1)
    assert kept[0] == fresh[0] != before[0]
    for mine, theirs in zip(kept[1], fresh[1], strict=True):
        torch.testing.assert_close(mine, theirs)


def test_steps_are_not_kept_where_memory_is_short_or_weights_are_gathered(gpu, monkeypatch):
    model, chosen = make("mistral"), prompts()
    with KEEPER.across_rollouts():
        KEEPER.after_update()
        Memory(monkeypatch, held=9 * 10**8)  # and the cache itself: more than nine tenths
        respond(model, chosen, 4)
        assert not KEEPER.release()
        Memory(monkeypatch, held=8 * 10**8)
        respond(model, chosen, 4)
        assert KEEPER.release()
        next(model.parameters()).ds_id = 0
        respond(model, chosen, 4)
        assert not KEEPER.release()


def test_kept_steps_make_room_before_a_budget_is_halved(gpu, monkeypatch):
    Memory(monkeypatch)
    model, said, amounts = make("mistral"), [], []

    def phase(amount):
        amounts.append(amount)
        if len(amounts) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")
        return amount

    with KEEPER.across_rollouts():
        KEEPER.after_update()
        respond(model, prompts(), 4)
        assert Budget("algorithm.tokens_per_microbatch", 64, said.append).halving(phase) == 32
    assert amounts == [64, 64, 32] and "given up" in said[0] and "is 32" in said[1]


def test_nothing_of_a_run_is_held_after_it(gpu, monkeypatch):
    Memory(monkeypatch)
    model = make("mistral")
    with KEEPER.across_rollouts():
        KEEPER.after_update()
        respond(model, prompts(), 4)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


def test_generate_gives_the_same_by_either_engine(gpu):
    chat = Chat(openchat_tokenizer.small())
    torch.manual_seed(1)
    config = MistralConfig(**SIZES | {"vocab_size": len(chat.tokenizer)})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    chosen = RolloutConfig(slots=4, max_new_tokens=12, stop_strings=[])
    found = generate(model, chat, prompts(9), chosen, greedy=True)
    chosen.engine = "hf"
    assert found.responses == generate(model, chat, prompts(9), chosen, greedy=True).responses
