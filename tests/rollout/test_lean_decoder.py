"""The lean way through a decoder on a CPU, beside transformers' own: what it admits, and that it gives the same."""

import gc
import weakref

import families
import openchat_tokenizer
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from starling_train.config.sections import LoraConfig, RolloutConfig
from starling_train.data.chat import Chat
from starling_train.models import adapters
from starling_train.rollout import decode_step, kernels, lean_decoder
from starling_train.rollout.generate import generate
from starling_train.rollout.products import Product, can_pack
from starling_train.rollout.slot_cache import SlotCache
from starling_train.rollout.start_check import compiler_line, is_lean

SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
CONFIGS = {
    "llama, tied, with biases": (LlamaConfig, {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "mistral with a short window": (MistralConfig, {"sliding_window": 6}),
    "qwen2 with layers of two kinds": (
        Qwen2Config, {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": (Qwen3Config, {"head_dim": 16}),
}  # fmt: skip
PROMPTS = [[1, 17, 23, 5], [1, 9], [1, 44, 3, 120, 7, 61, 88, 19, 30, 12, 50], [1, 2, 3], [4] * 9]
TILES = kernels.compiled() is not None and kernels.compiled().has_tiles
BFLOAT16 = can_pack((nn.Linear(8, 8, dtype=torch.bfloat16),))


@pytest.fixture(autouse=True)
def every_size(monkeypatch):
    monkeypatch.setattr(lean_decoder, "FROM", 0)


@pytest.fixture(scope="module")
def chat():
    return Chat(openchat_tokenizer.small())


def model_of(name, chat, **more):
    kind, changes = CONFIGS[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        kind(vocab_size=len(chat.tokenizer), **SIZES, **changes), attn_implementation="sdpa", **more
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases of 0 and norms of 1 prove nothing
                parameter.add_(torch.randn_like(parameter) / 4)
            else:
                parameter.mul_(4)
    return model.eval()


def run(model, chat, monkeypatch, lean, greedy=True, **more):
    with monkeypatch.context() as patch:
        if not lean:
            patch.setattr(lean_decoder, "FROM", 10**12)
        torch.manual_seed(3)
        config = RolloutConfig(slots=3, max_new_tokens=20, stop_strings=[])
        return generate(model, chat, PROMPTS, config, greedy, **more)


@pytest.mark.parametrize("by", ["kernels", "torch", "modules"])
def test_keys_values_and_copies_of_weights_go_with_the_rollout(by, chat, monkeypatch):
    """By counting references alone: what is in a circle waits for a full collection, gigabytes and steps later."""
    if by != "kernels":
        monkeypatch.setattr(kernels, "compiled", lambda: None)
    elif kernels.compiled() is None:
        pytest.skip("no g++ on this machine")
    model, held = model_of("qwen3", chat, dtype=torch.bfloat16), []
    for kind in (SlotCache, Product):
        make = kind.__init__

        def made(self, *arguments, _make=make, **more):
            _make(self, *arguments, **more)
            held.append(weakref.ref(self))

        monkeypatch.setattr(kind, "__init__", made)
    gc.collect()
    gc.disable()
    try:
        run(model, chat, monkeypatch, by != "modules", keep_layer=1)
        assert len(held) >= 1 and not [one() for one in held if one() is not None]
    finally:
        gc.enable()


@pytest.mark.parametrize("by", ["kernels", "torch"])
@pytest.mark.parametrize("name", CONFIGS)
def test_responses_and_kept_states_are_those_of_the_modules(name, by, chat, monkeypatch):
    if by == "torch":
        monkeypatch.setattr(kernels, "compiled", lambda: None)
    elif kernels.compiled() is None:
        pytest.skip("no g++ on this machine")
    model = model_of(name, chat)
    assert (lean_decoder.kernels_of(model) is None) == (by == "torch")
    assert is_lean(model)
    steps = []
    call = decode_step.LeanStep.__call__
    monkeypatch.setattr(decode_step.LeanStep, "__call__", lambda *given: steps.append(0) or call(*given))
    for greedy in (True, False):
        for layer in (1, 3):  # 3: what enters the last norm
            lean = run(model, chat, monkeypatch, True, greedy, keep_layer=layer)
            count = len(steps)
            plain = run(model, chat, monkeypatch, False, greedy, keep_layer=layer)
            assert count == len(steps) > 0 and lean.responses == plain.responses
            for mine, theirs in zip(lean.entering, plain.entering, strict=True):
                torch.testing.assert_close(mine.whole(), theirs.whole(), atol=2e-5, rtol=2e-5)
    assert len({tuple(response) for response in lean.responses}) > 2


@pytest.mark.parametrize("name", list(families.FAMILIES))
def test_any_family_gives_what_generate_gives_whether_or_not_it_is_lean(name, chat):
    model = families.model_of(name, vocab_size=len(chat.tokenizer), seed=1)
    config = {"slots": 2, "max_new_tokens": 10, "stop_strings": []}
    ours = generate(model, chat, PROMPTS, RolloutConfig(engine="slots", **config), greedy=True)
    theirs = generate(model, chat, PROMPTS, RolloutConfig(engine="hf", **config), greedy=True)
    assert ours.responses == theirs.responses


def test_a_second_copy_that_is_too_large_for_the_machine_is_not_made(chat, monkeypatch):
    model = model_of("qwen3", chat, dtype=torch.bfloat16)
    size = sum(parameter.numel() for parameter in model.parameters())
    monkeypatch.setattr(lean_decoder.machine, "memory_bytes", lambda: 4 * 2 * size)  # a quarter of it
    assert lean_decoder.fits(model)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert not lean_decoder.fits(model)
    assert lean_decoder.fits(model.float())  # makes none


def test_what_differs_in_parts_or_in_numbers_is_not_lean(chat, monkeypatch):
    model = model_of("qwen3", chat)
    with monkeypatch.context() as patch:
        patch.setattr(lean_decoder, "FROM", 50_000_000)
        assert not is_lean(model)  # small
    assert is_lean(model)
    eager = model_of("qwen3", chat)
    eager.set_attn_implementation("eager")
    assert not is_lean(eager)
    gated = model_of("qwen3", chat)
    gated.model.layers[1].mlp.act_fn = nn.GELU()
    assert not is_lean(gated)
    scaled = model_of("qwen3", chat)
    scaled.model.layers[0].register_forward_hook(lambda module, inputs, output: output * 1.5)
    assert lean_decoder.fits(scaled) and not is_lean(scaled)  # only its logits tell


def test_an_adapter_counts(chat, monkeypatch):
    model = model_of("llama, tied, with biases", chat)
    before = run(model, chat, monkeypatch, True).responses
    adapters.add(model, ["model.layers.1.self_attn.q_proj.weight", "model.layers.2.mlp.up_proj.weight"], LoraConfig())
    for _, layer in adapters.adapted(model):
        nn.init.normal_(layer.lora_B["default"].weight, std=2.0)
    assert is_lean(model)
    lean = run(model, chat, monkeypatch, True).responses
    assert lean == run(model, chat, monkeypatch, False).responses != before


def test_weights_that_change_between_rollouts_are_seen(chat, monkeypatch):
    model = model_of("qwen3", chat, dtype=torch.bfloat16)
    assert is_lean(model)
    before = run(model, chat, monkeypatch, True).responses
    assert run(model, chat, monkeypatch, True).responses == before
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.neg_()
    assert run(model, chat, monkeypatch, True).responses != before


def test_a_run_that_is_resumed_draws_the_same_to_the_bit(chat, monkeypatch, tmp_path):
    model = model_of("qwen3", chat, dtype=torch.bfloat16)
    first = run(model, chat, monkeypatch, True, greedy=False, keep_layer=2)
    model.save_pretrained(tmp_path)
    del model  # what was packed for it, and that it was compared, goes with it
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa", dtype=torch.bfloat16)
    second = run(again, chat, monkeypatch, True, greedy=False, keep_layer=2)
    assert first.responses == second.responses and is_lean(again)
    assert all(
        torch.equal(one.whole(), other.whole()) for one, other in zip(first.entering, second.entering, strict=True)
    )


@pytest.mark.skipif(not BFLOAT16, reason="oneDNN has no bfloat16 products on this CPU")
@pytest.mark.parametrize("tiles", [False, pytest.param(True, marks=pytest.mark.skipif(not TILES, reason="no AMX"))])
@pytest.mark.parametrize(
    ("rows", "size", "outputs"), [(1, 32, (5,)), (5, 48, (32, 16)), (70, 96, (32, 35)), (64, 64, (64,))]
)
def test_packed_products_are_the_plain_ones_up_to_rounding(tiles, rows, size, outputs):
    torch.manual_seed(0)
    layers = [nn.Linear(size, count, bias=count != 16, dtype=torch.bfloat16) for count in outputs]
    assert can_pack(tuple(layers))
    inputs, other = torch.randn(rows, size).bfloat16(), torch.randn(rows, sum(outputs)).bfloat16()
    exact = torch.cat(
        [inputs.double() @ layer.weight.double().T + (0 if layer.bias is None else layer.bias) for layer in layers], 1
    )
    product = Product(*layers, compiled=kernels.compiled() if tiles else None)
    found = {
        "plain": (product(inputs), exact), "silu": (product.silu(inputs), exact * exact.sigmoid()),
        "times": (product.times(inputs, other), exact * other), "plus": (product.plus(inputs, other), exact + other),
    }  # fmt: skip
    for name, (mine, right) in found.items():
        torch.testing.assert_close(mine.double(), right.double(), atol=0.02, rtol=0.01, msg=name)
    unrounded = product.unrounded(inputs)
    assert unrounded.dtype == torch.float32
    limit = 2e-6 if tiles and size % 32 == 0 else 1e-4
    torch.testing.assert_close(unrounded.double(), exact, atol=limit, rtol=limit)
    assert not torch.allclose(found["plain"][0].double(), exact, atol=1e-4, rtol=1e-4)
    if tiles:  # a row stands alone
        assert torch.equal(product.unrounded(inputs[-1:]), unrounded[-1:])
        assert torch.equal(product.plus(inputs[-1:], other[-1:]), found["plus"][0][-1:])


def test_what_is_not_packed_is_the_layers_own():
    layers = nn.Linear(8, 4), nn.Linear(8, 2)
    assert not can_pack(layers)
    inputs, other = torch.randn(3, 8), torch.randn(3, 6)
    product, plain = Product(*layers), torch.cat([layer(inputs) for layer in layers], 1)
    assert torch.equal(product(inputs), plain) and torch.equal(product.silu(inputs), nn.functional.silu(plain))
    assert torch.equal(product.times(inputs, other), plain * other)
    assert torch.equal(product.plus(inputs, other), plain + other)
    with torch.no_grad():
        layers[0].weight.neg_()  # live
    assert not torch.equal(product(inputs), plain)


def test_a_start_without_a_compiler_says_what_it_costs(chat, monkeypatch):
    model = model_of("llama, tied, with biases", chat, dtype=torch.float32)
    monkeypatch.setattr(kernels, "compiled", lambda: None)
    assert "no g++ that works was found" in compiler_line(model, "slots")
    assert compiler_line(model, "hf") == compiler_line(model, "") == ""
    monkeypatch.setattr(lean_decoder, "FROM", 10**9)  # a small model has no use for them
    assert compiler_line(model, "slots") == ""
