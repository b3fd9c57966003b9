"""One resolver of a directory's weight files: what it reads is what transformers loads, whatever lies beside."""

import ast
import json
from itertools import combinations
from pathlib import Path

import pytest
import torch
from model_directories import check_weights, load_causal_lm, scan, source
from safetensors.torch import load_file, save_file
from transformers.modeling_utils import _get_resolved_checkpoint_files

import starling_train
from starling_train.config.fields import UserError
from starling_train.files import weight_files as resolver
from starling_train.files.weight_files import INDEXES, ORDER, SINGLES, weight_files
from starling_train.models import header_checks

PIECE = "model-00001-of-00001.safetensors"
BESIDE = {"model.fp16.safetensors", "consolidated.safetensors", "model-00001-of-00002.safetensors", "training_args.bin"}


def fill(directory, *names):
    """Files that only have names; an index names one shard of its own kind."""
    for name in names:
        if name.endswith(".index.json"):
            shard = "part.bin" if ".bin." in name else PIECE
            (directory / shard).write_bytes(b"x")
            (directory / name).write_text(json.dumps({"metadata": {}, "weight_map": {"a": shard}}))
        else:
            (directory / name).write_bytes(b"x")


SETS = [names for count in range(1, 5) for names in combinations(ORDER, count)]


@pytest.mark.parametrize("names", SETS, ids=" ".join)
def test_of_every_mixture_of_sets_the_one_that_transformers_loads_is_read(tmp_path, names):
    fill(tmp_path, *names, *BESIDE)
    theirs, _ = _get_resolved_checkpoint_files(tmp_path, None, None, None, None, is_remote_code=False)
    ours = weight_files(tmp_path)
    assert [str(path) for path in ours.read] == theirs
    assert ours.first.name == min(names, key=ORDER.index)
    assert BESIDE - {"training_args.bin"} <= set(ours.unread) and "training_args.bin" not in ours.unread
    assert set(names) - {ours.first.name} <= set(ours.unread)


@pytest.mark.parametrize("name", ["weights.safetensors", "deep/weights.safetensors", "other.safetensors.index.json"])
def test_a_file_that_the_configuration_names_goes_before(tmp_path, name):
    fill(tmp_path, *SINGLES)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(json.dumps({"metadata": {}, "weight_map": {"a": SINGLES[0]}}))
    (tmp_path / "config.json").write_text(json.dumps({"transformers_weights": name}))
    theirs, _ = _get_resolved_checkpoint_files(tmp_path, None, None, None, None, False, name)
    assert [str(path) for path in weight_files(tmp_path).read] == theirs
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=rf"config\.json: transformers_weights names {name}, which is missing"):
        weight_files(tmp_path)


@pytest.mark.parametrize("name", ["weights.bin", "../model.safetensors", "/model.safetensors", 7])
def test_a_name_in_the_configuration_that_transformers_refuses_is_refused(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps({"transformers_weights": name}))
    with pytest.raises(UserError, match=r"transformers_weights is .*, not a safetensors file in this directory; rem"):
        weight_files(tmp_path)


@pytest.fixture
def model(tmp_path, tiny_mistral):
    directory = tmp_path / "model"
    tiny_mistral(layers=2).save_pretrained(directory)
    return directory


@pytest.fixture
def older(tmp_path, tiny_mistral):
    """The same model with other weights, in shards in a folder of the index, as safetensors."""
    directory = tmp_path / "older"
    tiny_mistral(layers=2, seed=1).save_pretrained(directory)
    tensors = load_file(directory / SINGLES[0])
    (directory / SINGLES[0]).unlink()
    (directory / "shards").mkdir()
    names, named = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        shard = f"shards/model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, directory / shard, {"format": "pt"})
        named |= dict.fromkeys(part, shard)
    (directory / INDEXES[0]).write_text(json.dumps({"metadata": {}, "weight_map": named}))
    return directory


def copy_into(directory, other):
    for file in other.rglob("*"):
        if file.is_file() and file.name != "config.json":
            target = directory / file.relative_to(other)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(file.read_bytes())


def test_a_scan_is_of_the_weights_that_train_and_the_other_set_is_named_once(model, older, capsys):
    expected = scan(model)
    assert scan(older) != expected and capsys.readouterr().err == ""
    copy_into(model, older)
    assert scan(model) == expected
    assert torch.equal(
        load_causal_lm(model, dtype="float32").lm_head.weight, load_file(model / SINGLES[0])["lm_head.weight"]
    )
    told = f"warning: model.path: {model}: reads model.safetensors, not model.safetensors.index.json beside it; remove "
    assert capsys.readouterr().err.count(told) == 1


def test_shards_in_a_folder_are_read(older):
    held = source(older)
    header_checks.check_policy(held)
    weight = load_causal_lm(older, dtype="float32").lm_head.weight
    entry = next(entry for entry in held.entries if entry.name == "lm_head.weight")
    assert entry.file.parent.name == "shards" and torch.equal(load_file(entry.file)["lm_head.weight"], weight)


def test_an_old_shard_beside_a_new_whole_file_is_not_read_and_named(model):
    save_file({"lm_head.weight": torch.ones(97, 32)}, model / "model-00001-of-00002.safetensors")
    assert [file.name for file in weight_files(model).read] == ["model.safetensors"]
    assert "not model-00001-of-00002.safetensors beside it" in weight_files(model).line()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.fp16.safetensors", r"only model\.fp16\.safetensors; if that is the whole model, rename it model\.saf"),
        ("pytorch_model.fp16.bin", r"only pytorch_model\.fp16\.bin; if .* rename it pytorch_model\.bin"),
        ("consolidated.safetensors", r"only consolidated\.safetensors, in the format of its maker's own code; downl"),
        ("consolidated.00.pth", r"only consolidated\.00\.pth, in the format of its maker's own code"),
        ("m.Q4_K_M.gguf", r"only m\.Q4_K_M\.gguf; download the model's safetensors files"),
        ("model.safetensors.index.fp16.json", r"has no weights \(\*\.safetensors or \*\.bin\); a scan needs them"),
        ("model-00001-of-00002.safetensors", r"has model-00001-of-00002\.safetensors but no index of its shards"),
        ("pytorch_model-00001-of-00002.bin", r"has pytorch_model-00001-of-00002\.bin but no index of its shards"),
        ("training_args.bin", r"has no weights \(\*\.safetensors or \*\.bin\); a scan needs them, download them"),
    ],
)
def test_a_directory_without_weights_says_what_lies_there_instead(tmp_path, name, message):
    fill(tmp_path, name)
    with pytest.raises(UserError, match=message):
        check_weights(tmp_path)


def test_a_link_to_weights_that_are_gone_is_named(tmp_path):
    (tmp_path / SINGLES[0]).symlink_to(tmp_path / "blobs" / "gone")
    with pytest.raises(UserError, match=r"no weights, only model\.safetensors \(a link to nothing\); download them ag"):
        check_weights(tmp_path)
    fill(tmp_path, SINGLES[1])
    assert (
        "reads pytorch_model.bin, not model.safetensors (a link to nothing) beside it" in weight_files(tmp_path).line()
    )


@pytest.mark.parametrize("name", SINGLES)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated to nothing; download that file again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "a pointer of Git LFS .* `git lfs pull`",
        ),
    ],
)
def test_an_empty_file_and_a_pointer_are_told_as_what_they_are(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: {message}"):
        check_weights(tmp_path)


@pytest.mark.parametrize("shard", ["../other.safetensors", "/etc/other.safetensors"])
def test_a_shard_outside_of_the_directory_is_refused(tmp_path, shard):
    (tmp_path / INDEXES[0]).write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(UserError, match=f"names {shard} for tensor a, outside of the directory"):
        check_weights(tmp_path)


def test_an_index_that_transformers_does_not_load_is_refused_before_loading(older):
    index = older / INDEXES[0]
    index.write_text(json.dumps({"weight_map": json.loads(index.read_text())["weight_map"]}))
    scan(older)  # which can be read all the same
    with pytest.raises(UserError, match=r'index\.json: has no "metadata", which transformers asks for; add "metadata"'):
        header_checks.check_policy(source(older))


def test_nobody_else_knows_the_names_of_weight_files():
    """Names and patterns of weight files are in the resolver alone: whoever needs one asks it."""
    root = Path(starling_train.__file__).parent
    wrong = []
    for file in sorted(root.rglob("*.py")):
        tree = ast.parse(file.read_text())
        texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts:
                text = node.value.replace("adapter_model", "")  # which the files of an adapter are called
                named = [name for name in (*ORDER, "*.safetensors", "*.bin", resolver.INDEX) if name in text]
                wrong += [f"{file.relative_to(root)}:{node.lineno} {name}" for name in named]
    assert {line.split(":")[0] for line in wrong} == {"files/weight_files.py"}
