"""Reading checkpoints: every layout gives the same tensors; what is damaged is told by tensor and file."""

import json
from unittest.mock import Mock

import pytest
import torch
from model_directories import check_weights, left_out, list_matrices, load_causal_lm, other_weights, scan, source
from safetensors.torch import load_file, save_file

from starling_train.config.fields import UserError
from starling_train.files.tensors import read

WEIGHT = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture
def model(tmp_path, tiny_mistral):
    directory = tmp_path / "model"
    tiny_mistral(layers=2).save_pretrained(directory)
    return directory


def shard(directory, suffix):
    """Split model.safetensors into two files with an index, as safetensors or `.bin`."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names, weight_map = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"{stem}-0000{number}-of-00002.{suffix}"
        weight_map |= dict.fromkeys(part, file)
        content = {name: tensors[name] for name in part}
        if suffix == "safetensors":
            save_file(content, directory / file)
        else:
            torch.save(content, directory / file)
    index = directory / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index, weight_map


@pytest.mark.parametrize("layout", ["safetensors", "bin", "single bin", "bin of an old torch"])
def test_every_layout_gives_the_same_scan(model, layout):
    expected = scan(model)
    if layout in ("safetensors", "bin"):
        shard(model, layout)
    else:
        tensors = load_file(model / "model.safetensors")
        (model / "model.safetensors").unlink()
        torch.save(tensors, model / "pytorch_model.bin", _use_new_zipfile_serialization=layout == "single bin")
    found = scan(model)
    assert found == expected and list(found) == list(expected)


def test_reads_parts_in_their_own_type(tmp_path):
    tensor = torch.arange(24, dtype=torch.bfloat16).reshape(2, 4, 3)
    save_file({"x": tensor}, tmp_path / "model.safetensors")
    (entry,) = source(tmp_path).entries
    assert (entry.shape, entry.dtype) == ((2, 4, 3), "BF16")
    part = read(entry, (1, slice(2, 4)))
    assert part.dtype == torch.bfloat16 and part.is_contiguous() and torch.equal(part, tensor[1, 2:4])
    assert torch.equal(read(entry), tensor)


def test_missing_shard(model):
    index, weight_map = shard(model, "safetensors")
    missing = weight_map[WEIGHT]
    (model / missing).unlink()
    with pytest.raises(UserError, match=f"{index.name}: names {missing} .*missing"):
        check_weights(model)


def test_index_that_names_a_missing_tensor(model):
    index, weight_map = shard(model, "safetensors")
    file = next(iter(weight_map.values()))
    index.write_text(json.dumps({"weight_map": weight_map | {"model.layers.7.mlp.up_proj.weight": file}}))
    with pytest.raises(
        UserError, match=rf"{index.name}: names tensor model\.layers\.7\.mlp\.up_proj\.weight, not in {file}"
    ):
        check_weights(model)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"weight_map": {}}',
        '{"weight_map": []}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": ""}}',
        '{"weight_map": {"a": 3}}',
        "[" * 100_000,
    ],
)
def test_damaged_index(model, content):
    index, _ = shard(model, "safetensors")
    index.write_text(content)
    with pytest.raises(UserError, match=str(index)):
        check_weights(model)


@pytest.mark.parametrize("suffix", ["safetensors", "bin", "old bin"])
@pytest.mark.parametrize("keep", [0, 5, 0.3, 0.99])
def test_truncated_shard(model, suffix, keep):
    if suffix == "old bin":
        file = model / "pytorch_model.bin"
        torch.save(load_file(model / "model.safetensors"), file, _use_new_zipfile_serialization=False)
        (model / "model.safetensors").unlink()
    else:
        _, weight_map = shard(model, suffix)
        file = model / weight_map[WEIGHT]
    content = file.read_bytes()
    file.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    first = "" if suffix == "old bin" else r".*with tensor \S+\.weight"
    with pytest.raises(UserError, match=f"{file.name}: truncated{first}"):
        scan(model)


def test_pickled_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    torch.save({WEIGHT: torch.ones(2, 2), "x": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: .*not only weights"):
        scan(tmp_path)
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_tensor(model, dtype):
    tensors = load_file(model / "model.safetensors")
    tensors[WEIGHT] = tensors[WEIGHT].to(dtype)
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(UserError, match=rf"model\.safetensors: tensor {WEIGHT} is \w+, a quantised type"):
        scan(model)


def test_meta_tensor(tmp_path):
    torch.save({WEIGHT: torch.empty(4, 4, device="meta")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=rf"pytorch_model\.bin: tensor {WEIGHT} is on the meta device"):
        scan(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity(model, value):
    tensors = load_file(model / "model.safetensors")
    tensors[WEIGHT][0, 3] = value
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(UserError, match=rf"model\.safetensors: tensor {WEIGHT} has nan or infinite values"):
        scan(model)


def test_nothing_to_scan(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        scan(tmp_path / "nowhere")
    with pytest.raises(UserError, match="has no weights"):
        scan(tmp_path)
    save_file({"some.thing.weight": torch.ones(3, 3)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="no matrix of a known type"):
        scan(tmp_path)


@pytest.mark.parametrize("named", ["first", "last"])
def test_of_a_tensor_in_two_shards_the_copy_that_is_loaded_is_read_or_it_is_refused(model, named):
    index, weight_map = shard(model, "safetensors")
    first, last = sorted(set(weight_map.values()))
    (stale,) = {first, last} - {weight_map[WEIGHT]}
    save_file(load_file(model / stale) | {WEIGHT: torch.full((32, 64), 7.0)}, model / stale)
    named = first if named == "first" else last
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map | {WEIGHT: named}}))
    if named == first:  # transformers reads the shards in order: the last copy is what trains
        with pytest.raises(UserError, match=f"names {first} for tensor {WEIGHT}, which {last} holds too"):
            scan(model)
    else:
        entry = next(entry for entry in source(model).entries if entry.name == WEIGHT)
        loaded = load_causal_lm(model, dtype="float32").model.layers[0].mlp.down_proj.weight
        assert entry.file.name == last and torch.equal(read(entry), loaded)


def test_a_tensor_that_the_index_forgets_is_read_as_transformers_loads_it(model):
    expected = scan(model)
    index, weight_map = shard(model, "safetensors")
    del weight_map[WEIGHT]
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert scan(model) == expected
    entry = next(entry for entry in source(model).entries if entry.name == WEIGHT)
    loaded = load_causal_lm(model, dtype="float32").model.layers[0].mlp.down_proj.weight
    assert torch.equal(read(entry), loaded)


def test_shards_without_an_index_and_nested_weights(model):
    index, _ = shard(model, "safetensors")
    index.unlink()
    with pytest.raises(UserError, match=r"has model-00001-of-00002\.safetensors but no index"):
        check_weights(model)
    torch.save({"state_dict": {WEIGHT: torch.ones(2, 2)}}, model / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: holds state_dict and no tensors by name"):
        check_weights(model)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not tensors by name"),
        ({}, "holds nothing and no tensors"),
        ({WEIGHT: torch.eye(4).to_sparse()}, f"tensor {WEIGHT} is sparse"),
        ({WEIGHT: torch.ones(0, 4)}, rf"tensor {WEIGHT} is empty, of shape \(0, 4\)"),
        ({f"{WEIGHT[:-7]}.qweight": torch.ones(4, 4, dtype=torch.int32)}, r"down_proj\.qweight is int32, a quantised"),
        ({WEIGHT: torch.ones(8, 1, dtype=torch.uint8)}, f"tensor {WEIGHT} is uint8, a quantised type"),
    ],
)
def test_what_a_bin_may_hold_but_weights(tmp_path, content, message):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=rf"pytorch_model\.bin: .*{message}"):
        check_weights(tmp_path)


def test_a_damaged_pickle(tmp_path, monkeypatch):
    torch.save({WEIGHT: torch.ones(2, 2)}, tmp_path / "pytorch_model.bin")
    for error in (ValueError("x"), IndexError("x"), AttributeError("x"), TypeError("x"), AssertionError()):
        monkeypatch.setattr(torch, "load", Mock(side_effect=error))
        with pytest.raises(UserError, match=r"pytorch_model\.bin: truncated, damaged or"):
            check_weights(tmp_path)


def test_buffers_of_a_layer_are_no_weights(model):
    expected = scan(model)
    tensors = load_file(model / "model.safetensors")
    layer = "model.layers.0.self_attn"
    tensors |= {f"{layer}.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool), f"{layer}.mask": torch.ones(8, 8).bool()}
    tensors[f"{layer}.count"] = torch.tensor(3)
    save_file(tensors, model / "model.safetensors")
    assert scan(model) == expected


def test_a_bin_of_an_old_torch_is_read_once(model, monkeypatch):
    torch.save(
        load_file(model / "model.safetensors"), model / "pytorch_model.bin", _use_new_zipfile_serialization=False
    )
    (model / "model.safetensors").unlink()
    load = Mock(side_effect=torch.load)
    monkeypatch.setattr(torch, "load", load)
    assert len(scan(model)) == 14 and load.call_count == 1
    scan(model)
    assert load.call_count == 2  # the first scan let go of it


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "clip"}, "no model can be built from it"),
        ({"model_type": "mistral", "num_hidden_layers": "x"}, "no model can be built from it"),
        ({"model_type": "mistral", "num_attention_heads": 0}, "no model can be built from it"),
        ({"model_type": "mistral", "hidden_size": 30}, "no model can be built from it"),
        ({"model_type": ["a"]}, r"model_type is \['a'\], not a name"),
        ({"model_type": "mistral", "text_config": 3}, "text_config is 3, not an object"),
    ],
)
def test_a_config_that_describes_no_decoder(tmp_path, config, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"config\.json: {message}") as error:
        list_matrices(tmp_path)
    assert "\n" not in str(error.value)


def test_two_copies_of_the_decoder_are_one(model):
    expected = scan(model)
    tensors = load_file(model / "model.safetensors")
    copy = {
        name.replace("model.", "transformer."): t.clone() for name, t in tensors.items() if name.startswith("model.")
    }
    save_file(tensors | copy, model / "model.safetensors")
    assert scan(model) == expected
    assert left_out(model) == {"a second copy of the decoder, transformer.*": len(copy)}
    assert not any(name.startswith("transformer.") for name in other_weights(model))
