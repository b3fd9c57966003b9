"""Reading checkpoints: every layout gives the same tensors; what is damaged is told by tensor and file."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from starling_train.config import UserError
from starling_train.models.checkpoint_files import entries, read
from starling_train.models.snr_scan import check_weights, scan

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
    (entry,) = entries(tmp_path)
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


@pytest.mark.parametrize("content", ["", "{", "[]", '{"weight_map": {}}', '{"weight_map": []}'])
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
    with pytest.raises(UserError, match=f"{file.name}: truncated"):
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
    with pytest.raises(UserError, match="is not a directory"):
        scan(tmp_path / "nowhere")
    with pytest.raises(UserError, match="has no weights"):
        scan(tmp_path)
    save_file({"some.thing.weight": torch.ones(3, 3)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="no matrix of a known type"):
        scan(tmp_path)
