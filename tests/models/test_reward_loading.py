"""Reward checkpoints on disk: the real layouts, what is kept of them, messages for what does not fit."""

import json
import logging
import pickle
import re
import shutil

import pytest
import torch
from reward_checkpoints import PIECES, SIZE, conversations, fresh_net, load, small_tokenizer
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel

from starling_train.config.fields import UserError
from starling_train.files.weight_files import INDEXES
from starling_train.models.reward import write_starling_7b, write_starling_34b


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


@pytest.fixture
def copy(tmp_path):
    def make(directory):
        return shutil.copytree(directory, tmp_path / "copy")

    return make


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
    assert len(files) == 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    held = {file: load_file(thirty_four_b / file) for file in files}
    assert index["weight_map"] == {name: file for file, tensors in held.items() for name in tensors}
    names = {f"transformer.{name}" for name in LlamaModel(LlamaConfig(**SIZE)).state_dict()}
    assert set(index["weight_map"]) == names | {"v_head.weight"}
    assert index["metadata"]["total_size"] == sum(t.nbytes for ts in held.values() for t in ts.values())


def test_only_one_transformer_is_kept(seven_b):
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


@pytest.fixture
def classifier(tmp_path, tokenizer):
    torch.manual_seed(0)
    directory = tmp_path / "classifier"
    LlamaForSequenceClassification(LlamaConfig(**SIZE, num_labels=1, pad_token_id=0)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (without("mlp"), "layers.0.mlp.down_proj.weight, .* and 3 more missing"),
        (lambda t: t | {"model.layers.7.x.weight": torch.ones(1)}, "model.layers.7.x.weight unknown"),
        (wider, r"q_proj.weight has shape \(24, 20\), config.json says \(24, 24\) \(2 such tensors\)"),
        (lambda t: t | {"score.weight": torch.ones(2, 24)}, r"score.weight has shape \(2, 24\)"),
    ],
)
def test_a_classifiers_tensors_that_do_not_fit_are_named(classifier, change, wrong, monkeypatch):
    said = []
    monkeypatch.setattr(logging.getLogger("transformers").handlers[0], "emit", said.append)
    file = classifier / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})
    with pytest.raises(UserError, match=f"^{re.escape(str(classifier))}: .*{wrong}") as error:
        load("sequence_classification", classifier)
    assert "\n" not in str(error.value)
    assert not said  # transformers would add a table of its own


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_classifiers_broken_weights_are_named(classifier, name):
    (classifier / "model.safetensors").unlink()
    (classifier / name).write_bytes(b"cut off")
    with pytest.raises(UserError, match="not a readable file of plain tensors"):
        load("sequence_classification", classifier)


@pytest.mark.parametrize(
    ("held", "wrong"),
    [
        ([1, 2], "not a readable file of plain tensors"),
        ({1: torch.ones(1)}, "1 is not a tensor"),
        ({"state_dict": {}}, "state_dict is not a tensor"),
        ({"v_head.weight": 3}, "v_head.weight is not a tensor"),
    ],
)
def test_a_7b_file_of_something_else_is_named(seven_b, copy, held, wrong):
    directory = copy(seven_b)
    torch.save(held, directory / "pytorch_model.bin")
    with pytest.raises(UserError, match=f"pytorch_model.bin: {wrong}"):
        load("starling_7b", directory)


def test_a_7b_file_that_is_cut_off_or_old(seven_b, copy):
    directory = copy(seven_b)
    file = directory / "pytorch_model.bin"
    tensors = torch.load(file, weights_only=True)
    torch.save(tensors, file, _use_new_zipfile_serialization=False)  # torch before 1.6, which cannot be mapped
    assert load("starling_7b", directory).score(conversations()) == load("starling_7b", seven_b).score(conversations())
    torch.save(tensors, file)
    whole = file.read_bytes()
    for size in (len(whole) // 2, 100, 0):
        file.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"pytorch_model.bin: (not a readable file of plain tensors|truncated)"):
            load("starling_7b", directory)


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'])
def test_a_broken_index_is_named(thirty_four_b, copy, text):
    directory = copy(thirty_four_b)
    (directory / "model.safetensors.index.json").write_text(text)
    with pytest.raises(
        UserError, match=r"model.safetensors.index.json: (no weight_map|not JSON|not a JSON object|names no file)"
    ):
        load("starling_34b", directory)


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
    with pytest.raises(UserError, match=r"^reward.path: no such directory: .*nowhere"):
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
    with pytest.raises(UserError, match=rf"{INDEXES[0]}: names {re.escape(shard.name)} .*missing"):
        load("starling_34b", directory)
    shutil.copy(thirty_four_b / shard.name, shard)
    (directory / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config.json"):
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
    set_config(directory, vocab_size=len(PIECES) - 1)
    with pytest.raises(UserError, match=r"has 356 tokens, but the vocabulary of .* is 355"):
        load("starling_7b", directory)
    set_config(directory, vocab_size=len(PIECES), model_type="mistral")
    with pytest.raises(UserError, match=r"config.json is a mistral's"):
        load("starling_7b", directory)
    for values in ({"hidden_size": "wide"}, {"num_attention_heads": 7}):
        set_config(directory, model_type="llama", **values)
        with pytest.raises(UserError, match=r"config.json: .*hidden.size") as error:
            load("starling_7b", directory)
        assert "\n" not in str(error.value)
        set_config(directory, hidden_size=SIZE["hidden_size"])
    set_config(directory, num_attention_heads=SIZE["num_attention_heads"])
    for text in ("{}", "[]", "cut off"):
        (directory / "tokenizer.json").write_text(text)
        with pytest.raises(UserError, match="no usable tokenizer"):
            load("starling_7b", directory)
    LlamaModel(LlamaConfig(**SIZE)).save_pretrained(tmp_path / "plain")
    small_tokenizer().save_pretrained(tmp_path / "plain")
    with pytest.raises(UserError, match="has 2 labels"):
        load("sequence_classification", tmp_path / "plain")
    set_config(tmp_path / "plain", id2label={"0": "score"}, label2id={"score": 0})
    with pytest.raises(UserError, match=r"score.weight missing"):
        load("sequence_classification", tmp_path / "plain")
