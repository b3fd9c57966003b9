"""Reward models against plain transformers forward passes, from checkpoints in the real artefacts' layouts."""

import json
import math
import pickle
import random
import re
import shutil

import pytest
import torch
from openchat_tokenizer import build
from safetensors.torch import load_file, save_file
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

from starling_train.config import UserError
from starling_train.core.preference import kwise_loss
from starling_train.models.reward import (
    RewardNet,
    batches,
    encode_conversation,
    load_reward_model,
    write_starling_7b,
    write_starling_34b,
)

MAX_LENGTH = 96
SIZE = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32004,
}


def tokenizer_with_everything():
    tokenizer = build()
    tokenizer.eos_token = "</s>"
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + '\n' + m.content }}<|im_end|>{% endfor %}"
    return tokenizer


def fresh_net(seed=0):
    torch.manual_seed(seed)
    net = RewardNet.from_config(LlamaConfig(**SIZE))
    torch.nn.init.normal_(net.v_head.weight)
    return net


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_with_everything()


@pytest.fixture(scope="module")
def seven_b(tmp_path_factory, tokenizer):
    directory = tmp_path_factory.mktemp("starling-rm-7b")
    write_starling_7b(fresh_net(), directory, tokenizer)
    return directory


@pytest.fixture(scope="module")
def thirty_four_b(tmp_path_factory, tokenizer):
    directory = tmp_path_factory.mktemp("starling-rm-34b")
    write_starling_34b(fresh_net(), directory, tokenizer, shard_bytes=2 * 10**6)
    return directory


@pytest.fixture
def copy(tmp_path):
    def make(directory):
        return shutil.copytree(directory, tmp_path / "copy")

    return make


def conversations(count=7, seed=1):
    draw = random.Random(seed)
    words = "the a model answers questions about weather code and maths , . \n 你好 x1".split(" ")

    def text(longest):
        return " ".join(draw.choices(words, k=draw.randint(1, longest)))

    return [
        [{"role": "user", "content": text(8)}, {"role": "assistant", "content": text(12)}]
        * draw.randint(1, 2)
        for _ in range(count)
    ]


def load(kind, directory, **options):
    return load_reward_model(kind, directory, dtype="float32", **{"max_length": MAX_LENGTH} | options)


def test_7b_file_has_the_cards_layout(seven_b):
    tensors = torch.load(seven_b / "pytorch_model.bin", weights_only=True)
    names = {name.removeprefix("transformer.") for name in tensors if name.startswith("transformer.")}
    causal = LlamaForCausalLM(LlamaConfig(**SIZE)).state_dict()
    assert names == {name.removeprefix("model.") for name in causal if name.startswith("model.")}
    assert set(tensors) == {
        *(f"transformer.{name}" for name in names),
        *(f"model.{name}" for name in causal),
        "v_head.weight",
    }
    assert tensors["model.lm_head.weight"].shape == causal["lm_head.weight"].shape


def test_34b_files_have_the_cards_layout(thirty_four_b):
    index = json.loads((thirty_four_b / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    held = {file: load_file(thirty_four_b / file) for file in files}
    assert index["weight_map"] == {name: file for file, tensors in held.items() for name in tensors}
    names = {f"transformer.{name}" for name in LlamaModel(LlamaConfig(**SIZE)).state_dict()}
    assert set(index["weight_map"]) == names | {"v_head.weight"}
    assert index["metadata"]["total_size"] == sum(t.nbytes for ts in held.values() for t in ts.values())


@pytest.mark.parametrize("position", ["last_token", "card"])
def test_7b_scores_are_those_of_a_plain_forward(seven_b, tokenizer, position):
    """`card`: everything padded to max_length with <unk> (0), the head read at the last position."""
    tensors = torch.load(seven_b / "pytorch_model.bin", weights_only=True)
    causal = LlamaForCausalLM(AutoConfig.from_pretrained(seven_b)).eval()
    causal.load_state_dict(
        {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    )
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
    scores = load("starling_7b", seven_b, position=position, tokens_per_batch=150).score(conversations())
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
        text = (
            "\n".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>" for m in messages) + "\n" * newline
        )
        with torch.no_grad():
            ids = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])
            expected.append((model(ids).last_hidden_state[0, -1] @ head[0]).item())
    scores = load("starling_34b", thirty_four_b, trailing_newline=newline).score(conversations())
    assert scores == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("position", ["last_token", "card"])
def test_scores_do_not_depend_on_who_shares_the_batch(seven_b, position):
    several = conversations(12)
    alone = [load("starling_7b", seven_b, position=position).score([messages])[0] for messages in several]
    for budget in (1, 100, 10**6):
        model = load("starling_7b", seven_b, position=position, tokens_per_batch=budget)
        assert model.score(several) == pytest.approx(alone, abs=1e-5)
        assert model.score(several[::-1]) == pytest.approx(alone[::-1], abs=1e-5)
    assert max(alone) - min(alone) > 0.1
    assert load("starling_7b", seven_b).score([]) == []


def test_batches_keep_the_budget_and_lose_nobody():
    lengths = [5, 100, 7, 6, 60, 1, 100]
    groups = batches(lengths, 120)
    assert sorted(index for group in groups for index in group) == list(range(7))
    assert all(len(g) == 1 or len(g) * max(lengths[i] for i in g) <= 120 for g in groups)
    assert groups == [[1], [6], [4], [2, 3, 0, 5]]


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


def test_the_first_cut_token_of_an_answer_counts(seven_b, tokenizer):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "one two three"}]
    length = len(encode_conversation("starling_7b", messages, tokenizer))
    answer = len(tokenizer("one two three", add_special_tokens=False).input_ids) + 1
    for max_length, truncated in ((length, 0), (answer + 1, 0), (answer, 1)):
        model = load("starling_7b", seven_b, max_length=max_length)
        model.encode(messages)
        assert (model.truncated, model.shortened) == (truncated, int(max_length < length))


def test_a_full_conversation_is_read_at_its_last_token_by_the_card_too(seven_b):
    messages = [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "word " * 90}]]
    by_card = load("starling_7b", seven_b, position="card", max_length=40)
    assert by_card.score(messages) == pytest.approx(
        load("starling_7b", seven_b, max_length=40).score(messages), abs=1e-5
    )


def test_only_one_transformer_is_kept(seven_b, copy):
    net = load("starling_7b", seven_b).net
    assert {name.split(".")[0] for name, _ in net.named_parameters()} == {"transformer", "v_head"}
    with torch.device("meta"):
        one = sum(p.numel() for p in LlamaModel(LlamaConfig(**SIZE)).parameters())
    assert sum(p.numel() for p in net.parameters()) == one + SIZE["hidden_size"]


def test_7b_with_only_the_causal_model_and_old_rotary_buffers_loads(seven_b, copy):
    directory = copy(seven_b)
    file = directory / "pytorch_model.bin"
    tensors = torch.load(file, weights_only=True)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("transformer.")}
    torch.save(tensors | {"model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)}, file)
    expected = load("starling_7b", seven_b).score(conversations())
    assert load("starling_7b", directory).score(conversations()) == expected


def test_tokenizer_and_config_from_another_directory(seven_b, tmp_path):
    """Starling-RM-7B-alpha comes as weights alone; tokenizer and config are Llama-2-7b-chat's."""
    weights, base = tmp_path / "weights", tmp_path / "base"
    shutil.copytree(seven_b, base, ignore=shutil.ignore_patterns("*.bin"))
    weights.mkdir()
    shutil.copy(seven_b / "pytorch_model.bin", weights)
    model = load("starling_7b", weights, tokenizer=base)
    assert model.score(conversations()) == load("starling_7b", seven_b).score(conversations())


def test_precision_is_the_one_asked_for(seven_b):
    model = load_reward_model("starling_7b", seven_b)
    assert {p.dtype for p in model.net.parameters()} == {torch.bfloat16}
    expected = load("starling_7b", seven_b).score(conversations())
    assert model.score(conversations()) == pytest.approx(expected, abs=0.2)


def test_net_trains_with_the_kwise_loss():
    torch.manual_seed(0)
    net = RewardNet.from_config(LlamaConfig(**SIZE)).train()
    ids, mask = torch.randint(3, 100, (7, 5)), torch.ones(7, 5, dtype=torch.long)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = kwise_loss(net(ids, mask)[None])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(math.factorial(7)) / 6, abs=1e-5)
    assert losses[-1] < 0.1 and net.transformer.embed_tokens.weight.grad.abs().sum() > 0


def test_decoder_classifier_scores_like_transformers(tmp_path, tokenizer):
    torch.manual_seed(0)
    reference = LlamaForSequenceClassification(LlamaConfig(**SIZE, num_labels=1, pad_token_id=0)).eval()
    check_classifier(reference, tokenizer, tmp_path)


def test_decoder_classifier_whose_pad_is_the_end_of_turn(tmp_path, tokenizer):
    """transformers then reads one token before the end of turn; a model trained like that must be read like that."""
    torch.manual_seed(0)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    reference = LlamaForSequenceClassification(LlamaConfig(**SIZE, num_labels=1, pad_token_id=end)).eval()
    check_classifier(reference, tokenizer, tmp_path)


def test_encoder_classifier_scores_like_transformers(tmp_path, tokenizer):
    torch.manual_seed(0)
    size = {key: value for key, value in SIZE.items() if key != "num_key_value_heads"}
    reference = BertForSequenceClassification(BertConfig(**size, num_labels=1)).eval()
    check_classifier(reference, tokenizer, tmp_path)


def check_classifier(reference, tokenizer, directory):
    reference.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    several = conversations()
    expected = []
    for messages in several:
        ids = torch.tensor([tokenizer.apply_chat_template(messages, return_dict=False)])
        with torch.no_grad():
            expected.append(reference(ids, attention_mask=torch.ones_like(ids)).logits.item())
    model = load("sequence_classification", directory, tokens_per_batch=100)
    assert model.score(several) == pytest.approx(expected, abs=1e-5)


def rewrite(file, change):
    """Change the tensors of a .bin or .safetensors file."""
    if file.suffix == ".bin":
        torch.save(change(torch.load(file, weights_only=True)), file)
    else:
        save_file(change(load_file(file)), file)


def without(part):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def wider(tensors):
    return {n: t[:, :20].contiguous() if n.endswith("q_proj.weight") else t for n, t in tensors.items()}


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (without("v_head"), "no v_head.weight"),
        (without("layers.1.mlp"), "transformer.layers.1.mlp.down_proj.weight, .* missing"),
        (
            lambda t: t | {"transformer.layers.7.x.weight": torch.ones(1)},
            "transformer.layers.7.x.weight unknown",
        ),
        (wider, r"q_proj.weight has shape \(24, 20\), config.json says \(24, 24\) \(2 such tensors\)"),
        (lambda t: t | {"v_head.weight": torch.ones(2, 24)}, "v_head.weight has shape"),
    ],
)
@pytest.mark.parametrize("kind", ["starling_7b", "starling_34b"])
def test_tensors_that_do_not_fit_are_named(kind, seven_b, tokenizer, copy, tmp_path, change, wrong):
    if kind == "starling_7b":
        directory = copy(seven_b)
        rewrite(directory / "pytorch_model.bin", change)
    else:
        directory = tmp_path
        write_starling_34b(fresh_net(), directory, tokenizer)
        rewrite(next(directory.glob("*.safetensors")), change)
    with pytest.raises(UserError, match=f"^{re.escape(str(directory))}: .*{wrong}") as error:
        load(kind, directory)
    assert "\n" not in str(error.value)


class Harmful:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code from a checkpoint ran')",))


def test_code_in_a_checkpoint_is_not_run(seven_b, copy):
    directory = copy(seven_b)
    torch.save({"v_head.weight": Harmful()}, directory / "pytorch_model.bin")
    with pytest.raises(UserError, match="not a readable file of plain tensors"):
        load("starling_7b", directory)
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(UserError, match="not a readable file of plain tensors"):
        load("starling_7b", directory)


def test_missing_and_broken_files_are_named(seven_b, thirty_four_b, copy, tmp_path):
    with pytest.raises(UserError, match=r"^reward.path: no directory .*nowhere"):
        load("starling_7b", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no pytorch_model.bin"):
        load("starling_7b", thirty_four_b)
    with pytest.raises(UserError, match=r"neither model.safetensors.index.json nor model.safetensors"):
        load("starling_34b", seven_b)
    directory = copy(thirty_four_b)
    shard = sorted(directory.glob("*.safetensors"))[0]
    shard.write_bytes(b"cut off")
    with pytest.raises(UserError, match=f"^{re.escape(str(shard))}: not a readable safetensors file"):
        load("starling_34b", directory)
    shard.unlink()
    with pytest.raises(UserError, match=f"^{re.escape(str(shard))}: missing"):
        load("starling_34b", directory)
    (directory / "config.json").unlink()
    with pytest.raises(UserError, match="no config.json"):
        load("starling_34b", directory)


def set_config(directory, **values):
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_wrong_architecture_vocabulary_and_options_are_named(seven_b, thirty_four_b, copy, tmp_path):
    with pytest.raises(UserError, match=r"^reward.position: card"):
        load("starling_34b", thirty_four_b, position="card")
    with pytest.raises(UserError, match=r"^reward.kind: 'starling_13b'"):
        load("starling_13b", seven_b)
    directory = copy(seven_b)
    set_config(directory, vocab_size=32003)
    with pytest.raises(UserError, match="vocabulary of 32003, but the tokenizer .* has 32004 tokens"):
        load("starling_7b", directory)
    set_config(directory, vocab_size=32004, model_type="mistral")
    with pytest.raises(UserError, match="config.json is a mistral's"):
        load("starling_7b", directory)
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="no usable tokenizer"):
        load("starling_7b", directory)
    LlamaModel(LlamaConfig(**SIZE)).save_pretrained(tmp_path / "plain")
    tokenizer_with_everything().save_pretrained(tmp_path / "plain")
    with pytest.raises(UserError, match="has 2 labels"):
        load("sequence_classification", tmp_path / "plain")
    set_config(tmp_path / "plain", id2label={"0": "score"}, label2id={"score": 0})
    with pytest.raises(UserError, match="score.weight missing"):
        load("sequence_classification", tmp_path / "plain")
