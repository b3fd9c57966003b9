"""The rollout engine `slots` beside transformers' generate, and what must not change its responses."""

import openchat_tokenizer
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, MixtralConfig, Qwen2Config, Qwen3Config

from starling_train.config.sections import RolloutConfig
from starling_train.data.chat import Chat
from starling_train.rollout import slots
from starling_train.rollout.generate import generate
from starling_train.rollout.stop_strings import StopStrings

END = 32000
SIZES = {
    "vocab_size": 32002, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
WINDOWS = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
MODELS = {
    "mistral": MistralConfig(**SIZES),
    "mistral with a short window": MistralConfig(**SIZES, sliding_window=6),
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "qwen2 with layers of two kinds": Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4),
}


def make(config, attention="sdpa"):
    """A model that ends its responses now and then: logits far enough apart that rounding decides nothing."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        model.lm_head.weight[200:] = 0.0
        model.lm_head.weight[END] = model.lm_head.weight[10:14].sum(0)
        model.lm_head.weight *= 60
    return model.eval()


@pytest.fixture(scope="module")
def chat():
    return Chat(openchat_tokenizer.build())


def prompts(count=11):
    random = torch.Generator().manual_seed(4)
    lengths = torch.randint(2, 20, (count,), generator=random).tolist()
    return [torch.randint(3, 200, (n,), generator=random).tolist() for n in lengths]


def settings(**changes):
    return RolloutConfig(**({"max_new_tokens": 20, "slots": 4, "stop_strings": []} | changes))


class Ends:
    """Stands for a chat where no text is looked at. end: the token that ends a response."""

    def __init__(self, end=END):
        self.end_ids = frozenset([end])

    def stop_strings(self, chosen):
        return chosen

    def ids_without_token(self, vocabulary):
        return ()


def respond(model, chosen, count, greedy=True, keep_layer=None, indices=None, **changes):
    """(responses, states) with so many slots, where no budget and no table is in between."""
    config, indices = settings(slots=count, **changes), range(len(chosen)) if indices is None else indices
    drawn = slots.respond(model, Ends(), chosen, config, greedy, keep_layer, indices, lambda *done: None)
    return drawn.responses, drawn.entering


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_greedy_responses_are_those_of_generate(config, attention, chat):
    model = make(config, attention)
    found = generate(model, chat, prompts(), settings(), greedy=True)
    expected = generate(model, chat, prompts(), settings(engine="hf"), greedy=True)
    assert found == expected
    assert len({len(response) for response in found.responses}) > 3  # some end early, some do not


def drawn(model, chosen, count, seed=7, **more):
    torch.manual_seed(seed)
    return respond(model, chosen, count, greedy=False, **more)[0]


def test_a_response_depends_on_its_prompt_and_seed_alone():
    model, chosen = make(MODELS["mistral"]), prompts()
    together = drawn(model, chosen, 4)
    assert together == drawn(model, chosen, 1) == drawn(model, chosen, 100)
    order = [5, 2, 9, 0]
    assert [together[i] for i in order] == drawn(model, [chosen[i] for i in order], 3, indices=order)
    assert drawn(model, chosen, 4, seed=8) != together
    # the first tokens do not depend on how many may follow
    shorter = drawn(model, chosen, 4, max_new_tokens=5)
    assert shorter == [response[:5] for response in together]


def test_prompts_that_are_equal_get_different_responses():
    model = make(MODELS["mistral"])
    with torch.no_grad():
        model.lm_head.weight /= 60
    assert len({tuple(response) for response in drawn(model, [[1, 5, 9]] * 8, 8)}) == 8


def test_more_prompts_than_slots_and_fewer():
    model, chosen = make(MODELS["mistral"]), prompts(24)
    expected = respond(model, chosen, 24)[0]
    for count in (1, 7, 23, 1000):
        assert respond(model, chosen, count)[0] == expected
    assert respond(model, [], 4)[0] == []


@pytest.mark.parametrize("limit", [1, 2])
def test_the_shortest_limits(limit):
    found, _ = respond(make(MODELS["mistral"]), prompts(), 4, max_new_tokens=limit)
    assert max(map(len, found)) == limit and min(map(len, found)) >= 1


def test_what_was_never_written_does_not_poison_attention(monkeypatch):
    """Fresh memory may hold nan; nothing that a row attends to with weight 0 may reach it."""
    empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *size, **how: empty(self, *size, **how).fill_(torch.nan)
                        if self.is_floating_point() else empty(self, *size, **how))  # fmt: skip
    model, chosen = make(MODELS["mistral"]), prompts()
    found = respond(model, chosen, 4)[0]
    monkeypatch.undo()
    assert found == respond(model, chosen, 4)[0]


def test_stop_strings_end_a_response_with_the_token_that_completes_them(chat):
    text = "one two three GPT4 Correct User: more and more words to come after it"
    ids = chat.tokenizer(text, add_special_tokens=False).input_ids
    stops = StopStrings(chat, ["GPT4 Correct User:", "never"])
    end = stops.end(ids)
    assert "GPT4 Correct User:" in chat.tokenizer.decode(ids[:end])
    assert "GPT4 Correct User:" not in chat.tokenizer.decode(ids[: end - 1])
    assert stops.end(ids[: end - 1]) is None
    assert StopStrings(chat, []).end(ids) is None


@pytest.mark.parametrize("cut", [3, 8, 11])
def test_a_stop_string_anywhere_gives_what_generate_gives(chat, cut):
    model = make(MODELS["mistral"])
    with torch.no_grad():  # tokens that are words, not bytes
        model.lm_head.weight[5000:5200] = model.lm_head.weight[:200]
        model.lm_head.weight[:200] = 0.0
    plain = generate(model, chat, prompts(), settings(), greedy=True).responses
    longest = max(plain, key=len)
    word = chat.tokenizer.decode(longest[cut - 2 : cut]).strip()
    assert word
    options = {"stop_strings": [word]}
    found = generate(model, chat, prompts(), settings(**options), greedy=True)
    assert found == generate(model, chat, prompts(), settings(engine="hf", **options), greedy=True)
    assert found.responses != plain


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_kept_states_are_those_that_enter_the_layer(layer):
    model, chosen = make(MODELS["mistral"]), prompts()
    responses, entering = respond(model, chosen, 3, greedy=False, keep_layer=layer)
    for prompt, response, states in zip(chosen, responses, entering, strict=True):
        ids = torch.tensor([(prompt + response)[:-1]])
        expected = model(ids, output_hidden_states=True, use_cache=False).hidden_states[layer][0]
        torch.testing.assert_close(states.whole(), expected.detach(), atol=1e-5, rtol=1e-5)
    assert respond(model, chosen, 3)[1] is None
    assert not model.model.layers[layer]._forward_pre_hooks


@pytest.mark.parametrize("count", [1, 3, 4, 64])
@pytest.mark.parametrize("greedy", [True, False])
def test_a_prompt_that_several_share_is_computed_once(count, greedy, monkeypatch):
    model, group = make(MODELS["mistral"]), 5
    shared = [prompt for prompt in prompts(4) for _ in range(group)]
    apart = [list(prompt) for prompt in shared]
    prefills, prefill = [], slots._Decoder._prefill
    monkeypatch.setattr(slots._Decoder, "_prefill", lambda self, asked: prefills.extend(asked) or prefill(self, asked))
    torch.manual_seed(7)
    responses, entering = respond(model, shared, count, greedy=greedy, keep_layer=1)
    assert sorted(prefills) == sorted(prompts(4))
    torch.manual_seed(7)
    plain, states = respond(model, apart, count, greedy=greedy, keep_layer=1)
    assert len(prefills) == 4 + 4 * group and responses == plain
    for mine, theirs in zip(entering, states, strict=True):
        torch.testing.assert_close(mine.whole(), theirs.whole(), atol=1e-5, rtol=1e-5)
    if count >= group:  # those of a group that were admitted together hold one tensor
        assert entering[0].prompt.data_ptr() == entering[1].prompt.data_ptr()
