"""LoRA adapters: the base computed exactly without them, the same numbers merged, and PEFT's own reading of them."""

import copy

import pytest
import torch
from model_directories import freeze_by, load_causal_lm
from peft import PeftModel
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from starling_train.config.fields import UserError
from starling_train.config.sections import LoraConfig
from starling_train.core.logprobs import token_logprobs
from starling_train.models import adapters
from starling_train.models.actors import Actors
from starling_train.models.micro_batch import micro_batch

WEIGHTS = ["model.layers.1.mlp.down_proj.weight", "model.layers.2.self_attn.q_proj.weight", "lm_head.weight"]
LORA = LoraConfig(rank=3, alpha=6.0)
PROMPTS, RESPONSES = [[1, 5, 9], [2, 7]], [[11, 12, 13, 3], [20, 3]]


def build(tiny_mistral, *, trained: bool = True):
    """(base, the same model with adapters); trained: B is no longer zero."""
    base = tiny_mistral()
    model = copy.deepcopy(base)
    torch.manual_seed(1)
    adapters.add(model, WEIGHTS, LORA)
    if trained:
        for _, layer in adapters.adapted(model):
            torch.nn.init.normal_(layer.lora_B[adapters.NAME].weight, std=0.1)
    return base, model


def logits(model) -> torch.Tensor:
    return model(torch.tensor([PROMPTS[0] + RESPONSES[0]])).logits


def test_a_new_adapter_changes_nothing_and_trains_alone(tiny_mistral):
    base, model = build(tiny_mistral, trained=False)
    assert torch.equal(logits(model), logits(base))
    trains = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    shapes = {name: tuple(p.shape) for name, p in base.named_parameters()}
    expected = {}
    for name in WEIGHTS:
        module, (high, wide) = name.removesuffix(".weight"), shapes[name]
        expected |= {f"{module}.lora_A.default.weight": (3, wide), f"{module}.lora_B.default.weight": (high, 3)}
    assert trains == expected


def test_without_is_the_base_exactly(tiny_mistral):
    base, model = build(tiny_mistral)
    assert not torch.allclose(logits(model), logits(base), atol=1e-3)
    plain = adapters.without(model)
    assert torch.equal(logits(plain), logits(base))
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in base.named_parameters()]


def test_merged_by_hand_and_in_the_same_memory(tiny_mistral):
    base, model = build(tiny_mistral)
    merged = adapters.merged(model)
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-5, atol=1e-5)
    layer = model.model.layers[1].mlp.down_proj
    by_hand = layer.base_layer.weight + 6.0 / 3 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(merged.model.layers[1].mlp.down_proj.weight, by_hand)
    kept = merged.model.layers[0].mlp.down_proj.weight
    assert kept.data_ptr() == model.model.layers[0].mlp.down_proj.weight.data_ptr()
    assert torch.equal(layer.base_layer.weight, base.model.layers[1].mlp.down_proj.weight)  # the policy goes on
    onto = adapters.merged(model, copy.deepcopy(base))  # as for a quantised base
    assert torch.equal(logits(onto), logits(merged))


@pytest.mark.parametrize("critic", ["head", "twin"])
def test_actors_compute_the_plain_forward_and_its_gradients(tiny_mistral, critic):
    """Policy with the adapters, the one on the head too; the reference without; a twin critic with its own."""
    base, model = build(tiny_mistral)
    plain = copy.deepcopy(model)
    actors = Actors(model, critic, lowest=1, temperature=0.7)
    batch = micro_batch(PROMPTS, RESPONSES, "cpu")
    outputs = actors(batch)
    reference = actors.reference_logprobs(batch)
    for found, whole in ((outputs.logprobs, plain), (reference, base)):
        expected = []
        for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
            full = whole(torch.tensor([prompt + response])).logits[0] / 0.7
            rows = full.log_softmax(-1)[len(prompt) - 1 : -1]
            expected.append(rows.gather(-1, torch.tensor(response)[:, None])[:, 0])
        expected = torch.cat(expected)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        if whole is plain:
            expected.sum().backward()
    outputs.logprobs.sum().backward()
    grads = {name: p.grad for name, p in plain.named_parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in grads), name
        if name in grads:
            torch.testing.assert_close(parameter.grad, grads[name], rtol=1e-4, atol=1e-5, msg=name)
    assert not any("lora" in name for name, _ in actors.reference.named_parameters())
    if critic == "twin":
        theirs, ours = (dict(m.named_parameters()) for m in (actors.critic, model.model))
        for name, parameter in theirs.items():
            assert (parameter.data_ptr() != ours[name].data_ptr()) == (".lora_" in name), name


def test_a_head_with_an_adapter_by_chunks(tiny_mistral):
    """However many rows go through the head at a time."""
    torch.manual_seed(0)
    hidden, head, down, up = torch.randn(7, 8), torch.randn(30, 8), torch.randn(2, 8), torch.randn(30, 2)
    for tensor in (hidden, down, up):
        tensor.requires_grad_(True)
    tokens = torch.arange(7)
    expected = (hidden @ (head + up @ down).T).log_softmax(-1)[range(7), tokens]
    plain = torch.autograd.grad(expected.sum(), (hidden, down, up))
    for chunk in (1, 3, 100):
        logprobs, entropy = token_logprobs(hidden, head, tokens, chunk=chunk, low_rank=(down, up))
        torch.testing.assert_close(logprobs, expected, rtol=1e-5, atol=1e-5)
        assert entropy.shape == (7,)
        for found, wanted in zip(torch.autograd.grad(logprobs.sum(), (hidden, down, up)), plain, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_plain_peft_reads_what_is_written(tiny_mistral, tmp_path):
    base, model = build(tiny_mistral)
    base.save_pretrained(tmp_path / "base")
    trainable = {f"policy.{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad}
    trainable["value_head.out.weight"] = torch.zeros(1)
    (tmp_path / "step").mkdir()
    names = adapters.write(tmp_path / "step", trainable, "policy.", WEIGHTS, LORA, str(tmp_path / "base"))
    assert sorted(path.name for path in (tmp_path / "step").iterdir() if path.name != "README.md") == sorted(names)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    peft = PeftModel.from_pretrained(loaded, tmp_path / "step")
    torch.testing.assert_close(logits(peft), logits(model), rtol=1e-6, atol=1e-6)
    assert {name for name, _ in adapters.adapted(peft.base_model.model)} == {n.removesuffix(".weight") for n in WEIGHTS}


@pytest.mark.parametrize("load_in", ["4bit", "8bit"])
def test_a_quantised_base_is_shared_and_merged_into_the_plain_one(tmp_path, load_in):
    """Policy, reference and critic compute with the same quantised weights; what is written has the plain ones."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is for GPUs, and an extra of its own")
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "vocab_size": 97}  # blocks of 64
    torch.manual_seed(0)
    base = MistralForCausalLM(MistralConfig(**shape, num_attention_heads=2, num_key_value_heads=1))
    base.save_pretrained(tmp_path)
    weights = WEIGHTS[:2]
    model = load_causal_lm(tmp_path, dtype="float32", load_in=load_in)
    torch.manual_seed(1)
    adapters.add(model, weights, LORA)
    actors = Actors(model, "twin", lowest=1)
    batch = micro_batch(PROMPTS, RESPONSES, "cpu")
    with torch.no_grad():  # with gradients bitsandbytes takes other kernels
        fresh = actors(batch).logprobs  # B is zero
    torch.testing.assert_close(actors.reference_logprobs(batch), fresh, rtol=1e-5, atol=1e-5)
    packed = [name for name, p in model.named_parameters() if not p.is_floating_point()]
    theirs = dict(actors.reference.named_parameters())
    assert len(packed) == 7 * len(model.model.layers)
    assert all(theirs[n.replace(".base_layer", "")] is dict(model.named_parameters())[n] for n in packed)
    for _, layer in adapters.adapted(model):
        torch.nn.init.normal_(layer.lora_B[adapters.NAME].weight, std=0.1)
    merged = adapters.merged(model, load_causal_lm(tmp_path, dtype="float32"))
    layer = model.model.layers[1].mlp.down_proj
    by_hand = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * 2
    difference = merged.model.layers[1].mlp.down_proj.weight - base.model.layers[1].mlp.down_proj.weight
    torch.testing.assert_close(difference, by_hand, rtol=1e-4, atol=1e-6)


def test_what_can_have_no_adapter_is_named(tiny_mistral):
    with pytest.raises(UserError, match=r"freeze.adapter: Target module MistralRMSNorm"):
        adapters.add(tiny_mistral(), [*WEIGHTS, "model.layers.1.input_layernorm.weight"], LORA)


def test_a_tied_head_takes_no_adapter(tiny_mistral):
    model = tiny_mistral()
    model.lm_head.weight = model.model.embed_tokens.weight
    with pytest.raises(UserError, match=r"freeze.head: this model's head is its embeddings"):
        freeze_by(model, ["model.layers.1.mlp.down_proj"], head=True, rank=2)


def test_the_table_counts_adapters(tiny_mistral):
    model = tiny_mistral()
    modules = ["model.layers.1.mlp.down_proj", "model.layers.2.self_attn.q_proj"]
    table = freeze_by(model, modules, head=True, rank=3)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert table.parameters_trained == 3 * sum(sum(shapes[name]) for name in WEIGHTS)
    assert table.parameters_of == sum(p.numel() for p in model.parameters())
    assert set(table.names) == set(WEIGHTS) and table.lowest_layer == 1
    everything = freeze_by(model, ["*"], rank=3)
    assert all("proj" in name for name in everything.names) and len(everything.names) == 7 * len(model.model.layers)
