"""Families of models beside transformers' plain, unpadded forward: tiny random weights in the published layouts."""

import warnings

import families
import openchat_tokenizer
import pytest
import torch
from model_directories import freeze_by
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from starling_train.config.fields import UserError
from starling_train.config.sections import LoraConfig, RolloutConfig
from starling_train.core.logprobs import PLAIN, HeadForm
from starling_train.data.chat import Chat
from starling_train.models import adapters, causal_lm, factored, packing
from starling_train.models.actors import Actors
from starling_train.models.budget import Budget
from starling_train.models.families.ways import ways_of
from starling_train.models.micro_batch import micro_batch
from starling_train.models.sequence_logprobs import sequence_logprobs
from starling_train.rollout.generate import generate
from starling_train.rollout.start_check import line, why_not_slots
from starling_train.selection.listing import matrices_of
from starling_train.training.start_check import fallbacks

PROMPTS = [[1, 17, 23, 5], [1, 9], [1, 44, 3, 120, 7, 61, 88, 19, 30, 12, 50]]
RESPONSES = [[31, 2], [90, 14, 77, 6, 150, 21, 2], [40, 41, 42]]
CUT = [name for name in families.FAMILIES if name not in ("stablelm", "gpt_neox", "gpt2")]


def plain(model, prompt, response):
    """Log-probabilities of a response by the model's own forward of the one sequence."""
    logits = model(input_ids=torch.tensor([(prompt + response)[:-1]])).logits[0, len(prompt) - 1 :]
    return logits.float().log_softmax(-1).gather(-1, torch.tensor(response)[:, None]).squeeze(-1)


def train_from(model, lowest: int) -> None:
    """Everything in the layers from `lowest` on trains."""
    model.requires_grad_(False)
    for layer in model.get_decoder().layers[lowest:]:
        layer.requires_grad_(True)


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("lowest", [0, 2])
def test_log_probs_and_gradients_are_those_of_the_plain_forward(name, lowest):
    model = families.model_of(name)
    train_from(model, lowest)
    actors = Actors(model, "twin", lowest)
    assert actors.ways.cuts and fallbacks(actors, "slots") == []
    batch = micro_batch(PROMPTS, RESPONSES, "cpu")
    outputs = actors(batch)
    expected = torch.cat([plain(model, p, r) for p, r in zip(PROMPTS, RESPONSES, strict=True)])
    torch.testing.assert_close(outputs.logprobs, expected, atol=1e-5, rtol=0)
    assert torch.equal(actors.reference_logprobs(batch), outputs.logprobs.detach())  # ratio 1, KL 0

    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    weights = torch.linspace(-1, 1, len(expected))
    ours = torch.autograd.grad((outputs.logprobs * weights).sum(), list(trained.values()), allow_unused=True)
    theirs = torch.autograd.grad((expected * weights).sum(), list(trained.values()), allow_unused=True)
    for parameter, mine, other in zip(trained, ours, theirs, strict=True):
        assert (mine is None) == (other is None), parameter
        if mine is not None:
            torch.testing.assert_close(mine, other, atol=2e-5, rtol=2e-4, msg=parameter)


@pytest.mark.parametrize("name", [n for n in families.FAMILIES if n not in CUT])
def test_what_cannot_be_packed_is_padded_and_still_right(name):
    model = families.model_of(name).requires_grad_(False)
    model.get_output_embeddings().weight.requires_grad_(True)
    actors = Actors(model, "head", 4)
    (said,) = fallbacks(actors, "slots")
    assert "not packed" in said and "\n" not in said and not actors.shares_states
    batch = micro_batch(PROMPTS, RESPONSES, "cpu")
    expected = torch.cat([plain(model, p, r) for p, r in zip(PROMPTS, RESPONSES, strict=True)])
    torch.testing.assert_close(actors(batch).logprobs, expected, atol=1e-5, rtol=0)
    assert torch.equal(actors.reference_logprobs(batch), actors(batch).logprobs.detach())


@pytest.mark.parametrize("name", list(families.FAMILIES))
def test_greedy_responses_are_those_of_generate(name):
    chat = Chat(openchat_tokenizer.small())
    model = families.model_of(name, vocab_size=len(chat.tokenizer), seed=1)
    config = {"slots": 2, "max_new_tokens": 10, "stop_strings": []}
    ours = generate(model, chat, PROMPTS, RolloutConfig(engine="slots", **config), greedy=True)
    theirs = generate(model, chat, PROMPTS, RolloutConfig(engine="hf", **config), greedy=True)
    assert why_not_slots(model) == "" and ours.responses == theirs.responses
    assert len({tuple(response) for response in ours.responses}) > 1, "the same answer to everything proves little"


@pytest.mark.parametrize("name", ["gemma2", "granite", "gpt2"])
def test_log_probs_of_whole_sequences(name):
    model = families.model_of(name)
    sequences = [p + r for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    found = sequence_logprobs(model, sequences, Budget("tokens", 20))
    for ids, values in zip(sequences, found, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(values, plain(model, ids[:1], ids[1:]), atol=1e-5, rtol=0)


def test_how_each_head_makes_logits_is_found_by_comparing():
    found = {name: ways_of(families.model_of(name)).form for name in ("qwen3", "gemma2", "granite", "cohere")}
    assert found == {
        "qwen3": PLAIN, "gemma2": HeadForm(softcap=1.0), "granite": HeadForm(scale=1 / 8),
        "cohere": HeadForm(scale=0.0625),
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_types_agree_too(dtype):
    model = families.model_of("qwen3", dtype=dtype)
    assert ways_of(model, 2).cuts and why_not_slots(model) == "" and model.dtype == dtype


class Squared(LlamaForCausalLM):
    """An architecture with a way of its own from hidden states to logits."""

    def forward(self, *arguments, **named):
        output = super().forward(*arguments, **named)
        return CausalLMOutputWithPast(
            logits=output.logits + 0.2 * output.logits**2, past_key_values=output.past_key_values
        )


def adds_embeddings_again(model):
    """The last layer adds what the embeddings gave out: no layer above a cut can know that."""
    seen, decoder = {}, model.get_decoder()
    decoder.embed_tokens.register_forward_hook(lambda module, inputs, output: seen.update(embedded=output))
    decoder.layers[-1].input_layernorm.register_forward_hook(lambda module, inputs, output: output + seen["embedded"])


def looks_at_the_token_before(model):
    """A layer adds the token before, whosever sequence that belongs to."""
    norm = model.get_decoder().layers[1].input_layernorm
    norm.register_forward_hook(
        lambda module, inputs, output: output + output.roll(1, 1).index_fill(1, torch.tensor([0]), 0)
    )


def depends_on_the_longest(model):
    """Every token depends on how long the rows of a pass are."""
    model.get_decoder().layers[1].mlp.register_forward_hook(lambda module, inputs, output: output / inputs[0].shape[1])


def asks_its_cache(model):
    """The decoder asks its cache something that ours does not answer."""

    def ask(module, inputs, named):
        if named.get("past_key_values") is not None:
            named["past_key_values"].get_seq_length()

    model.get_decoder().register_forward_pre_hook(ask, with_kwargs=True)


@pytest.mark.parametrize(
    "change,trunk",
    [
        (lambda model: None, "cut"),
        (adds_embeddings_again, "whole"),
        (looks_at_the_token_before, "padded"),
        (depends_on_the_longest, "alone"),
    ],
)
def test_a_made_up_architecture_falls_back_to_what_is_right(change, trunk):
    model = families.model_of("llama3")
    change(model)
    train_from(model, 2)
    actors = Actors(model, "twin", 2)
    assert actors.ways.trunk == trunk and actors.shares_states == (trunk == "cut")
    said = fallbacks(actors, "")
    assert len(said) == (trunk != "cut") and all("each run all 4 layers" in text for text in said)
    expected = torch.cat([plain(model, p, r) for p, r in zip(PROMPTS, RESPONSES, strict=True)])
    batch = micro_batch(PROMPTS, RESPONSES, "cpu")
    torch.testing.assert_close(actors(batch).logprobs, expected, atol=1e-5, rtol=0)
    assert torch.equal(actors.reference_logprobs(batch), actors(batch).logprobs.detach())


def test_a_head_of_no_known_form_is_computed_by_the_model_s_own_forward():
    model = Squared(families.config_of("llama3"))
    with torch.no_grad():
        for parameter, other in zip(model.parameters(), families.model_of("llama3").parameters(), strict=True):
            parameter.copy_(other)
    train_from(model.eval(), 2)
    actors = Actors(model, "head", 2)
    assert actors.ways.form is None and "its own forward" in fallbacks(actors, "slots")[0]
    outputs = actors(micro_batch(PROMPTS, RESPONSES, "cpu"))
    expected = torch.cat([plain(model, p, r) for p, r in zip(PROMPTS, RESPONSES, strict=True)])
    torch.testing.assert_close(outputs.logprobs, expected, atol=1e-5, rtol=0)
    trained = [p for p in model.parameters() if p.requires_grad]
    for ours, theirs in zip(
        torch.autograd.grad(outputs.logprobs.sum(), trained), torch.autograd.grad(expected.sum(), trained), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-4)


def test_what_the_slots_cannot_decode_transformers_does():
    chat = Chat(openchat_tokenizer.small())
    model = families.model_of("llama3", vocab_size=len(chat.tokenizer))
    asks_its_cache(model)
    said = line(model, ways_of(model), "slots")
    assert "rollout.engine=hf" in said and "get_seq_length" in said and ways_of(model).cuts
    config = {"slots": 2, "max_new_tokens": 6, "stop_strings": []}
    ours = generate(model, chat, PROMPTS, RolloutConfig(engine="slots", **config), greedy=True)
    theirs = generate(model, chat, PROMPTS, RolloutConfig(engine="hf", **config), greedy=True)
    assert ours.responses == theirs.responses


def test_a_reference_that_is_no_copy_is_refused():
    model = families.model_of("llama3")
    train_from(model, 2)
    actors = Actors(model, "head", 2)
    with torch.no_grad():
        actors.reference.get_decoder().layers[3].mlp.down_proj.weight.mul_(2)
    with pytest.raises(UserError, match="has no reference"):
        fallbacks(actors, "slots")


def test_a_model_without_an_output_head_on_hidden_states_is_refused():
    with pytest.raises(UserError, match=r"^model\.path: .* is not a decoder with an output head"):
        ways_of(nn_only())


def nn_only():
    """A causal LM whose forward fails."""
    model = families.model_of("llama3")
    model.get_decoder().register_forward_pre_hook(lambda module, inputs: 1 / 0)
    return model


@pytest.mark.parametrize("name", ["granite", "gemma2"])
def test_gradient_checkpointing_recomputes_what_entered(name):
    gradients = []
    for checkpointing in (False, True):
        model = families.model_of(name)
        train_from(model, 1)
        if checkpointing:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                causal_lm.recompute_backwards(model)
        actors = Actors(model, "head", 1).train()
        actors(micro_batch(PROMPTS, RESPONSES, "cpu")).logprobs.sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for plainly, again in zip(*gradients, strict=True):
        assert torch.equal(plainly, again)


@pytest.mark.parametrize("name", ["qwen2.5", "phi3", "gpt2"])
def test_a_matrix_in_factors_keeps_its_bias(name, tmp_path):
    """In Qwen2.5 the q, k and v projections have one; what is no Linear, or a part of a tensor, stays dense."""
    chat = Chat(openchat_tokenizer.small())
    model = families.model_of(name, vocab_size=len(chat.tokenizer))
    attention = {"qwen2.5": "self_attn.q_proj", "phi3": "self_attn.o_proj", "gpt2": "attn.c_proj"}[name]
    (module,) = [n for n, _ in model.named_modules() if n.endswith(f".2.{attention}")]
    assert factored.fits(model, f"{module}.weight") == (name != "gpt2")
    if name == "gpt2":
        return
    weight = model.get_parameter(f"{module}.weight")
    left, singular, right = torch.linalg.svd(weight.detach(), full_matrices=False)
    parts = (left[:, :4] * singular[:4]).contiguous(), right[:4].contiguous()
    with torch.no_grad():
        weight.copy_(parts[0] @ parts[1])
    factored.write(model, {module: parts}, tmp_path / "factored", chat)
    ids = torch.tensor([PROMPTS[2]])
    with torch.no_grad():
        for dense in (False, True):
            loaded = factored.load_factored(tmp_path / "factored", dtype="float32", dense=dense)
            torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["qwen2.5", "phi3", "gpt2"])
def test_adapters_hang_on_every_kind_of_matrix_and_merge(name):
    """With biases, on a fused tensor, on GPT-2's transposed one: merged, the model computes what it did with them."""
    model = families.model_of(name)
    matrices = list(matrices_of(model))
    table = freeze_by(families.model_of(name), matrices, rank=2)
    adapters.add(model, table.names, LoraConfig(rank=2))
    with torch.no_grad():
        for _, layer in adapters.adapted(model):
            layer.lora_B[adapters.NAME].weight.normal_(std=0.1)
        ids = torch.tensor([PROMPTS[2]])
        expected = model(ids).logits
        assert (expected - families.model_of(name)(ids).logits).abs().max() > 0.01
        torch.testing.assert_close(adapters.merged(model)(ids).logits, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3", "qwen3"])
def test_attention_padded_as_on_a_gpu_is_the_same(name, monkeypatch):
    monkeypatch.setattr(packing, "attend_one_by_one", packing.attend_padded)
    model = families.model_of(name)
    actors = Actors(model.requires_grad_(False), "none", 2, has_reference=False)
    assert actors.ways.cuts
    expected = torch.cat([plain(model, p, r) for p, r in zip(PROMPTS, RESPONSES, strict=True)])
    found = actors(micro_batch(PROMPTS, RESPONSES, "cpu")).logprobs
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
