"""Ids that no response has: without a token, or an end of turn too early; in both engines."""

import json
from types import SimpleNamespace

import openchat_tokenizer
import pytest
import torch
from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

from starling_train.config.sections import RolloutConfig
from starling_train.core.excluded import ExcludedIds
from starling_train.data.chat import Chat
from starling_train.rollout.exclusions import exclusions, lines
from starling_train.rollout.generate import generate
from starling_train.rollout.stop_strings import StopStrings

PROMPTS = [[1, 20, 30], [1, 40], [1, 50, 60, 70, 80], [1, 90, 21, 22]]
ENGINES = pytest.mark.parametrize("engine", ["slots", "hf"])
EXTRA = 56


class TwoEnds(Chat):
    """Two ids end a turn."""

    @property
    def end_ids(self):
        return frozenset({2, self.end_of_turn})


@pytest.fixture(scope="module")
def chat():
    return TwoEnds(openchat_tokenizer.small())


@pytest.fixture(scope="module")
def model(chat):
    """A model with 56 rows more than there are tokens, which it likes best, and after them the ends of turn."""
    torch.manual_seed(0)
    tokens = len(chat.tokenizer)
    made = MistralForCausalLM(
        MistralConfig(
            vocab_size=tokens + EXTRA, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        made.lm_head.weight *= 20
        likely = made.lm_head.weight[30:40].sum(0)
        made.lm_head.weight[:259] = 0  # specials and bytes: responses are of letters
        made.lm_head.weight[chat.end_of_turn], made.lm_head.weight[2] = likely, -likely
        made.lm_head.weight[tokens:] = 1.5 * torch.cat([likely.expand(28, -1), -likely.expand(28, -1)])
    return made


def settings(**changes) -> RolloutConfig:
    return RolloutConfig(**({"max_new_tokens": 12, "slots": 3, "stop_strings": []} | changes))


def drawn(model, chat, greedy, seed=0, **changes):
    torch.manual_seed(seed)
    return generate(model, chat, PROMPTS * (1 if greedy else 8), settings(**changes), greedy=greedy)


@ENGINES
@pytest.mark.parametrize("greedy", [True, False])
def test_no_response_has_an_id_without_a_token(model, chat, engine, greedy):
    tokens = len(chat.tokenizer)
    assert exclusions(model.config, chat) == ExcludedIds(tuple(range(tokens, tokens + EXTRA)))
    plain = model(torch.tensor([PROMPTS[0]])).logits[0, -1].softmax(-1)
    assert plain[tokens:].sum() > 0.1  # they would come up
    responses = drawn(model, chat, greedy, engine=engine, top_p=0.99, top_k=200).responses
    assert max(token for response in responses for token in response) < tokens


@ENGINES
def test_what_is_drawn_is_the_distribution_over_the_others(model, chat, engine):
    torch.manual_seed(0)
    options = settings(engine=engine, max_new_tokens=1, slots=800, temperature=0.4)
    first = [r[0] for r in generate(model, chat, [PROMPTS[0]] * 800, options).responses]
    tokens = len(chat.tokenizer)
    expected = (model(torch.tensor([PROMPTS[0]])).logits[0, -1, :tokens] / 0.4).softmax(-1)
    observed = torch.bincount(torch.tensor(first), minlength=tokens) / 800
    assert (observed - expected).abs().sum() / 2 < 0.12


@ENGINES
@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("floor", [4, 12])
def test_no_response_ends_before_its_floor(model, chat, engine, greedy, floor):
    before = drawn(model, chat, greedy, engine=engine).responses
    assert min(map(len, before)) < floor
    rollout = drawn(model, chat, greedy, engine=engine, min_new_tokens=floor)
    for response in rollout.responses:
        assert not chat.end_ids.intersection(response[:floor]) and len(response) >= floor
    assert any(rollout.ended) == (floor < 12)


def test_the_engines_agree_on_greedy_responses(model, chat):
    ends = SimpleNamespace(
        # a third id ends a turn; 300 is without a token as well
        end_ids=chat.end_ids | {310}, pad_id=0, tokenizer=chat.tokenizer, stop_strings=list,
        ids_without_token=lambda vocabulary: (300, *chat.ids_without_token(vocabulary)),
    )  # fmt: skip
    both = [drawn(model, ends, True, engine=engine, min_new_tokens=4).responses for engine in ("slots", "hf")]
    assert both[0] == both[1]
    assert not (ends.end_ids | {300}).intersection(token for one in both[0] for token in one[:4])


@ENGINES
def test_a_stop_string_within_the_floor_is_text(model, chat, engine):
    greedy = drawn(model, chat, True, engine=engine, min_new_tokens=12).responses[0]
    stops = [chat.text(greedy[1:3]).strip(), chat.text(greedy[7:9]).strip()]
    assert all(map(len, stops)) and stops[1] not in chat.text(greedy[:8])
    options = {"engine": engine, "stop_strings": stops}
    assert drawn(model, chat, True, **options, min_new_tokens=1).responses[0] == greedy[:3]
    response = drawn(model, chat, True, **options, min_new_tokens=6).responses[0]
    assert response in (greedy[:7], greedy[:8], greedy[:9])  # 9, but where an end of turn comes before it
    assert stops[0] in chat.text(response, stops, 6) and stops[0] not in chat.text(response, stops)


class Letters:
    """A chat of one letter a token."""

    def text(self, ids):
        return "".join(ids)


@pytest.mark.parametrize(
    "text, floor, end",
    [("abSTOPcd", 0, 6), ("abSTOPcd", 5, 6), ("abSTOPcd", 6, None), ("abSTOPcdSTOP", 6, 12), ("STOPSTOP", 1, 4)],
)
def test_a_stop_string_counts_where_it_is_complete_behind_the_floor(text, floor, end):
    assert StopStrings(Letters(), ["STOP"], floor).end(list(text)) == end


def test_ids_of_holes_added_tokens_and_reserved_ones(chat, tmp_path):
    tokenizer = openchat_tokenizer.small()
    size = len(tokenizer)
    tokenizer.add_tokens(["<new>", "<|reserved_0|>"], special_tokens=True)
    with_added = Chat(tokenizer)
    assert with_added.ids_without_token(size + 5) == (size + 2, size + 3, size + 4)
    assert with_added.ids_without_token(size + 2) == with_added.ids_without_token(size) == ()
    # holes, as tokenizers have them whose added tokens lie behind the padded embeddings
    directory = tmp_path / "holes"
    openchat_tokenizer.small().save_pretrained(directory)
    parts = json.loads((directory / "tokenizer.json").read_text())
    vocabulary = parts["model"]["vocab"]
    rare = max((name for name in vocabulary if len(name) == 1), key=vocabulary.get)
    hole, vocabulary[rare] = vocabulary[rare], size + 7
    (directory / "tokenizer.json").write_text(json.dumps(parts))
    found = Chat(AutoTokenizer.from_pretrained(directory))
    assert found.ids_without_token(size + 9) == (hole, *range(size, size + 7), size + 8)


def test_openchat_s_added_tokens_are_tokens():
    chat = Chat(openchat_tokenizer.build())
    assert chat.ids_without_token(32002) == ()
    assert lines(MistralConfig(vocab_size=32002), chat) == []
    assert lines(MistralConfig(vocab_size=32064), chat) == [
        "model.path: 62 of the model's 32,064 ids have no token in the tokenizer; no response has them"
    ]


def test_two_ids_of_one_name_are_both_tokens():
    names = ["<unk>", "a", "b", "a", None]

    def name_of(index):
        if index > 4:
            raise IndexError(index)
        return "<unk>" if index == 4 else names[index]

    tokenizer = SimpleNamespace(
        get_vocab=lambda: {"<unk>": 0, "b": 2, "a": 3}, convert_ids_to_tokens=name_of, unk_token="<unk>"
    )
    assert Chat(tokenizer, SimpleNamespace()).ids_without_token(7) == (4, 5, 6)
