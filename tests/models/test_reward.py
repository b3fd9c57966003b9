"""Reward models against plain transformers forward passes, from checkpoints in the real layouts."""

import math

import pytest
import torch
from reward_checkpoints import MAX_LENGTH, SIZE, conversations, fresh_net, load, small_tokenizer
from safetensors.torch import load_file
from torch.nn.functional import pad
from transformers import (
    AutoConfig,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
)

from starling_train.core.micro_batches import Beginning
from starling_train.core.preference import kwise_loss
from starling_train.models.reward import RewardNet, encode_conversation, write_starling_7b, write_starling_34b
from starling_train.models.reward.batching import common_beginnings
from starling_train.models.reward.model import load_reward_model
from starling_train.models.reward.net import PackedNet


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


@pytest.fixture(scope="module")
def seven_b(tmp_path_factory, tokenizer):
    directory = tmp_path_factory.mktemp("starling-rm-7b")
    write_starling_7b(fresh_net(), directory, tokenizer)
    return directory


@pytest.fixture(scope="module")
def thirty_four_b(tmp_path_factory, tokenizer):
    directory = tmp_path_factory.mktemp("starling-rm-34b")
    write_starling_34b(fresh_net(), directory, tokenizer, shard_bytes=4 * 10**4)
    return directory


@pytest.mark.parametrize("position", ["last_token", "card"])
def test_7b_scores_are_those_of_a_plain_forward(seven_b, tokenizer, position):
    """`card`: everything padded to max_length with <unk> (0), the head read at the last position."""
    tensors = torch.load(seven_b / "pytorch_model.bin", weights_only=True)
    causal = LlamaForCausalLM(AutoConfig.from_pretrained(seven_b)).eval()
    causal.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    expected = []
    for messages in conversations():
        pairs = zip(messages[::2], messages[1::2], strict=True)
        text = " ".join(f"[INST] {q['content']} [/INST] {a['content']}</s>" for q, a in pairs)
        ids = torch.tensor([tokenizer(text).input_ids])
        mask = torch.ones_like(ids)
        if position == "card":
            ids, mask = (pad(x, (0, MAX_LENGTH - x.shape[1]), value=0) for x in (ids, mask))
        with torch.no_grad():
            hidden = causal.model(ids, attention_mask=mask).last_hidden_state
        expected.append((hidden[0, -1] @ tensors["v_head.weight"][0]).item())
    scores = load("starling_7b", seven_b, position=position, tokens_per_batch=600).score(conversations())
    assert scores == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("newline", [False, True])
def test_34b_scores_are_those_of_a_plain_forward(thirty_four_b, tokenizer, newline):
    tensors = {}
    for file in thirty_four_b.glob("*.safetensors"):
        tensors |= load_file(file)
    head = tensors.pop("v_head.weight")
    model = LlamaModel(AutoConfig.from_pretrained(thirty_four_b)).eval()
    model.load_state_dict({k.removeprefix("transformer."): v for k, v in tensors.items()})
    expected = []
    for messages in conversations():
        text = "\n".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>" for m in messages) + "\n" * newline
        with torch.no_grad():
            ids = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])
            expected.append((model(ids).last_hidden_state[0, -1] @ head[0]).item())
    scores = load("starling_34b", thirty_four_b, trailing_newline=newline).score(conversations())
    assert scores == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("position", ["last_token", "card"])
def test_scores_do_not_depend_on_who_shares_the_batch(seven_b, position):
    several = conversations(6)
    model = load("starling_7b", seven_b, position=position)
    alone = [model.score([messages])[0] for messages in several]
    for model.budget.amount in (1, 400, 10**6):
        assert model.score(several) == pytest.approx(alone, abs=1e-5)
        assert model.score(several[::-1]) == pytest.approx(alone[::-1], abs=1e-5)
    assert max(alone) - min(alone) > 0.1
    assert model.score([]) == []


def test_long_conversations_lose_their_beginning_and_are_counted(seven_b, tokenizer):
    model = load("starling_7b", seven_b, max_length=40)
    short = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    long_question = [{"role": "user", "content": "word " * 60}, {"role": "assistant", "content": "hello"}]
    long_answer = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "word " * 60}]
    assert model.encode(short) == encode_conversation("starling_7b", short, tokenizer)
    assert (model.shortened, model.truncated) == (0, 0)
    whole = encode_conversation("starling_7b", long_question, tokenizer)
    assert model.encode(long_question) == [1, *whole[-39:]]
    assert (model.shortened, model.truncated) == (1, 0)
    assert len(model.encode(long_answer)) == 40
    assert (model.shortened, model.truncated) == (2, 1)


def test_a_classifier_whose_template_begins_with_bos_keeps_it(tmp_path):
    tokenizer = small_tokenizer()
    tokenizer.chat_template = "<s>" + tokenizer.chat_template
    LlamaForSequenceClassification(LlamaConfig(**SIZE, num_labels=1, pad_token_id=0)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    question = [{"role": "user", "content": "word " * 60}, {"role": "assistant", "content": "hello"}]
    whole = load("sequence_classification", tmp_path).encode(question)
    assert whole[0] == tokenizer.bos_token_id
    cut = load("sequence_classification", tmp_path, max_length=40)
    assert cut.encode(question) == [whole[0], *whole[-39:]]
    assert (cut.shortened, cut.truncated) == (1, 0)


def test_the_first_cut_token_of_an_answer_counts(seven_b, tokenizer):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "one two three"}]
    length = len(encode_conversation("starling_7b", messages, tokenizer))
    answer = len(tokenizer("one two three", add_special_tokens=False).input_ids) + 1
    counts = []
    for limit in (length, answer + 1, answer):
        model = load("starling_7b", seven_b, max_length=limit)
        model.encode(messages)
        counts.append((model.shortened, model.truncated))
    assert counts == [(0, 0), (1, 0), (1, 1)]


def test_a_full_conversation_is_read_at_its_last_token_by_the_card_too(seven_b):
    messages = [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "word " * 90}]]
    by_card = load("starling_7b", seven_b, position="card", max_length=40).score(messages)
    assert by_card == pytest.approx(load("starling_7b", seven_b, max_length=40).score(messages), abs=1e-5)


def test_precision_is_the_one_asked_for(seven_b):
    model = load_reward_model("starling_7b", seven_b)
    assert {p.dtype for p in model.net.parameters()} == {torch.bfloat16}
    expected = load("starling_7b", seven_b).score(conversations())
    assert model.score(conversations()) == pytest.approx(expected, abs=0.2)


def test_net_trains_with_the_kwise_loss():
    torch.manual_seed(0)
    net = RewardNet.from_config(LlamaConfig(**SIZE | {"vocab_size": 50})).train()
    ids, mask = torch.randint(50, (7, 5)), torch.ones(7, 5, dtype=torch.long)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = kwise_loss(net(ids, mask)[None])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(math.factorial(7)) / 6, abs=1e-5)
    assert losses[-1] < 0.5 and net.transformer.embed_tokens.weight.grad.abs().sum() > 0


def test_decoder_classifier_scores_like_transformers(tmp_path, tokenizer):
    torch.manual_seed(0)
    reference = LlamaForSequenceClassification(LlamaConfig(**SIZE, num_labels=1, pad_token_id=0)).eval()
    check_classifier(reference, tokenizer, tmp_path)


def test_decoder_classifier_whose_pad_is_the_end_of_turn(tmp_path, tokenizer):
    """transformers then reads the token before the end of turn; so must we, for it was trained like that."""
    torch.manual_seed(0)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    reference = LlamaForSequenceClassification(LlamaConfig(**SIZE, num_labels=1, pad_token_id=end)).eval()
    check_classifier(reference, tokenizer, tmp_path)


def test_encoder_classifier_scores_like_transformers(tmp_path, tokenizer):
    torch.manual_seed(0)
    size = {key: value for key, value in SIZE.items() if key != "num_key_value_heads"}
    reference = BertForSequenceClassification(BertConfig(**size, num_labels=1)).eval()
    check_classifier(reference, tokenizer, tmp_path, framed=True)


def check_classifier(reference, tokenizer, directory, framed=False):
    """framed: the special tokens that the tokenizer puts around text are there, as an encoder wants them."""
    reference.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    several = conversations()
    expected = []
    for messages in several:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        ids = torch.tensor([tokenizer(text, add_special_tokens=framed).input_ids])
        with torch.no_grad():
            expected.append(reference(ids, attention_mask=torch.ones_like(ids)).logits.item())
    model = load("sequence_classification", directory, tokens_per_batch=100)
    assert model.score(several) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("budget", [16384, 40])
@pytest.mark.parametrize("kind", ["starling_7b", "starling_34b"])
def test_a_prompt_that_several_answers_share_is_computed_once(seven_b, thirty_four_b, monkeypatch, kind, budget):
    model = load(kind, {"starling_7b": seven_b, "starling_34b": thirty_four_b}[kind], tokens_per_batch=budget)
    prompts = [messages[:-1] for messages in conversations()]
    answers = ["Yes.", "No, and here is why: because.", "", "Yes. Or so."]
    asked = [[*prompt, {"role": "assistant", "content": answer}] for prompt in prompts for answer in answers]
    alone = [score for messages in asked for score in model.score([messages])]
    tokens, call = [], PackedNet.__call__
    monkeypatch.setattr(
        PackedNet, "__call__", lambda self, ids, *rest: tokens.append(len(ids)) or call(self, ids, *rest)
    )
    assert model.score(asked) == pytest.approx(alone, abs=1e-5)
    most = 0.8 if budget > 40 else 1.0  # hardly any two fit into one micro-batch
    assert sum(tokens) < most * sum(len(model.encode(messages)) for messages in asked)


def test_what_answers_have_in_common_by_hand():
    askers = ["a", "a", "b", "c", "c", "c"]
    begin = list(range(10))
    encoded = [[*begin, 20, 21], [*begin, 20, 22, 23], [1, 2], [*begin, 5], [*begin[:9], 6, 7], [*begin, 6]]
    found = common_beginnings(askers, encoded, [len(ids) - 1 for ids in encoded])
    assert found == [Beginning(0, 11)] * 2 + [Beginning(2, 0)] + [Beginning(3, 9)] * 3
    # what is read stays out of it, and a short beginning is not worth it
    assert common_beginnings("aa", [begin, begin], [9, 8]) == [Beginning(0, 8)] * 2
    assert common_beginnings("aa", [begin, [*begin[:7], 90, 91, 92]], [9, 9]) == [Beginning(0, 0)] * 2
