import openchat_tokenizer
import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from starling_train.config.sections import RolloutConfig
from starling_train.data.chat import Chat
from starling_train.rollout.generate import generate
from starling_train.rollout.transformers_engine import trim

END, PAD = 32000, 32001
PROMPTS = [[1, 420, 6316], [1, 7596, 1247, 28747, 26256, 2936], [1, 5], [1, 9, 8, 7]]


@pytest.fixture(scope="module")
def chat():
    return Chat(openchat_tokenizer.build())


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    small = MistralForCausalLM(
        MistralConfig(
            vocab_size=32002, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1,
        )
    )  # fmt: skip
    with torch.no_grad():  # a head that prefers a hundred tokens, the end of turn often among them
        small.lm_head.weight[100:] = 0.0
        small.lm_head.weight[END] = small.lm_head.weight[10:16].sum(0)
        small.lm_head.weight *= 120
    return small


def settings(**changes) -> RolloutConfig:
    return RolloutConfig(**({"max_new_tokens": 12, "slots": 3, "stop_strings": []} | changes))


ENGINES = pytest.mark.parametrize("engine", ["slots", "hf"])


@ENGINES
def test_greedy_responses_equal_one_by_one_argmax_without_cache(model, chat, engine):
    rollout = generate(model, chat, PROMPTS, settings(engine=engine), greedy=True)
    for prompt, response in zip(PROMPTS, rollout.responses, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 12 and ids[-1] != END:
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        assert response == ids[len(prompt) :]
    assert rollout.prompts == PROMPTS


@ENGINES
def test_the_number_of_slots_does_not_change_greedy_responses(model, chat, engine):
    options = [settings(engine=engine, slots=n) for n in (1, 2, 4)]
    found = [generate(model, chat, PROMPTS, option, greedy=True).responses for option in options]
    assert found[0] == found[1] == found[2]


@ENGINES
def test_the_same_seed_draws_the_same_responses(model, chat, engine):
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(generate(model, chat, PROMPTS * 4, settings(engine=engine)))
    assert drawn[0].responses == drawn[1].responses != drawn[2].responses
    assert 0 < sum(drawn[0].ended) < 16
    for response, ended in zip(drawn[0].responses, drawn[0].ended, strict=True):
        assert (response[-1] == END) == ended and END not in response[:-1]
        assert ended or len(response) == 12


@ENGINES
def test_sampling_frequencies_follow_the_temperature(model, chat, engine):
    torch.manual_seed(0)
    options = settings(engine=engine, max_new_tokens=1, slots=600, temperature=0.7)
    first = [r[0] for r in generate(model, chat, [PROMPTS[0]] * 600, options).responses]
    expected = (model(torch.tensor([PROMPTS[0]])).logits[0, -1] / 0.7).softmax(-1)
    observed = torch.bincount(torch.tensor(first), minlength=32002) / 600
    assert (observed - expected).abs().sum() / 2 < 0.12  # total variation; at temperature 1 it is over 0.2


@ENGINES
def test_the_model_keeps_its_mode_and_its_own_generation_settings(model, chat, engine):
    model.generation_config.temperature = 0.123
    for mode in (True, False):
        model.train(mode)
        generate(model, chat, PROMPTS[:1], settings(engine=engine))
        assert model.training == mode
    assert model.generation_config.temperature == 0.123


@ENGINES
def test_settings_saved_with_the_model_do_not_leak_into_sampling(model, chat, engine):
    """A model directory's generation_config must not change what is sampled: it would no longer be what is scored."""
    torch.manual_seed(0)
    plain = generate(model, chat, PROMPTS, settings(engine=engine)).responses
    saved = model.generation_config.to_dict()
    model.generation_config.update(
        temperature=0.01, top_k=1, repetition_penalty=5.0, max_new_tokens=1, min_new_tokens=9
    )
    torch.manual_seed(0)
    changed = generate(model, chat, PROMPTS, settings(engine=engine)).responses
    model.generation_config.update(**saved)
    assert changed == plain


@ENGINES
def test_a_stop_string_ends_a_response_which_then_has_not_ended_itself(model, chat, engine):
    greedy = generate(model, chat, PROMPTS[:1], settings(engine=engine, max_new_tokens=8), greedy=True)
    text = chat.text(greedy.responses[0][:4])
    assert text.strip()
    options = settings(engine=engine, max_new_tokens=8, stop_strings=[text.strip()])
    stopped = generate(model, chat, PROMPTS[:1], options, greedy=True)
    assert len(stopped.responses[0]) <= 4 and stopped.ended == [False]


def test_trim_by_hand():
    assert trim([5, 6, END, PAD, PAD], {END}, PAD) == [5, 6, END]
    assert trim([5, PAD, 6, END, PAD], {END}, PAD) == [5, PAD, 6, END]  # a pad that was sampled stays
    assert trim([5, 6, PAD, PAD], {END}, PAD) == [5, 6]
    assert trim([5, 6, 7], {END}, PAD) == [5, 6, 7]
    assert trim([PAD, PAD], {END}, PAD) == [PAD]  # never empty
