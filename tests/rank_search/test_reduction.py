import pytest
import torch
from model_directories import load_causal_lm, load_tokenizer, scan, source
from safetensors.torch import load_file

from starling_train.config.fields import UserError
from starling_train.core import spectrum
from starling_train.core.rank_reduction import truncate
from starling_train.data.chat import Chat
from starling_train.models import factored
from starling_train.rank_search import reduction

MODULE = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def checkpoint(small_models):
    return small_models / "policy"


@pytest.fixture(scope="module")
def records(checkpoint):
    return scan(checkpoint)


def test_a_matrix_keeps_as_many_singular_values_as_the_scan_counts(checkpoint, records):
    weights = load_file(checkpoint / "model.safetensors")
    for module, record in records.items():
        matrix = weights[f"{module}.weight"]
        found = reduction.reduce(source(checkpoint), record)
        assert record.rank == spectrum.snr(matrix).rank
        assert torch.linalg.matrix_rank(found.matrix.double(), rtol=1e-6) == record.rank
        assert torch.equal(found.matrix, truncate(matrix, record.rank).matrix(matrix.dtype))
        assert found.matrix.dtype == matrix.dtype and found.left is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_there_comes_back_bit_for_bit(tiny_mistral, dtype):
    model = tiny_mistral().to(dtype)
    parameter = model.get_parameter(f"{MODULE}.weight")
    with torch.no_grad():
        parameter[0, :3] = torch.tensor([-0.0, 1e-40, torch.finfo(dtype).max])
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = reduction.exchange(parameter, torch.randn(32, 64))
    assert not torch.equal(parameter, start[f"{MODULE}.weight"])
    reduction.exchange(parameter, before)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.view(torch.uint8), start[name].view(torch.uint8)), name


def test_a_kept_matrix_is_read_as_it_was_or_not_at_all(checkpoint, records, tmp_path):
    reduced = reduction.reduce(source(checkpoint), records[MODULE], factors=True)
    path = tmp_path / "accepted" / "a.safetensors"
    reduction.write(reduced, path)
    assert [file.name for file in path.parent.iterdir()] == ["a.safetensors"]
    found = reduction.read(path, reduced.content)
    assert torch.equal(found["matrix"], reduced.matrix)
    assert reduction.read(path, "another") is None
    path.write_bytes(path.read_bytes()[:-8])
    assert reduction.read(path, reduced.content) is None
    assert reduction.read(tmp_path / "gone", reduced.content) is None


def test_a_model_in_another_dtype_gets_the_checkpoints_back(checkpoint, records):

    reduced = reduction.reduce(source(checkpoint), records[MODULE])
    loaded = load_causal_lm(checkpoint, dtype="bfloat16")
    name = records[MODULE].parameter
    reduction.exchange(reduction.place_of(loaded, records[MODULE]), reduced.matrix)
    stored = reduction.in_stored_dtype(loaded, source(checkpoint), {records[MODULE]: reduced.matrix})
    expected = load_file(checkpoint / "model.safetensors") | {name: reduced.matrix}
    found = stored.state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert reduction.in_stored_dtype(stored, source(checkpoint), {}) is stored


@pytest.fixture
def halves(tiny_mistral, tmp_path, small_models):
    """A model with one matrix at rank 4, written in factors: (model, factors, folder, counts)."""
    model = tiny_mistral().eval()
    found = truncate(model.get_parameter(f"{MODULE}.weight").detach(), 4)
    factors = {MODULE: (found.left.float(), found.right.float())}
    reduction.exchange(model.get_parameter(f"{MODULE}.weight"), factors[MODULE][0] @ factors[MODULE][1])
    tokenizer = load_tokenizer(small_models / "policy")
    counts = factored.write(model, factors, tmp_path / "factored", Chat(tokenizer))
    return model, factors, tmp_path / "factored", counts


def test_a_model_in_factors_is_smaller_and_computes_the_same(halves):
    model, factors, folder, counts = halves
    assert counts["parameters_dense"] - counts["parameters"] == 32 * 64 - 4 * (32 + 64)
    ids = torch.arange(1, 20)[None]
    expected = model(ids).logits
    for dense in (False, True):
        found = factored.load_factored(folder, dtype="float32", dense=dense)
        torch.testing.assert_close(found(ids).logits, expected, atol=1e-5, rtol=1e-4)
        held = sum(parameter.numel() for parameter in found.parameters())
        assert held == counts["parameters_dense" if dense else "parameters"]
    left, right = (factor.double() for factor in factors[MODULE])
    assert torch.equal(found.get_parameter(f"{MODULE}.weight"), (left @ right).float())


@pytest.mark.parametrize("name", [factored.WEIGHTS, factored.LISTING, "config.json"])
def test_a_folder_that_is_not_whole_is_told(halves, name):
    (halves[2] / name).write_text("x")
    with pytest.raises(UserError, match=name):
        factored.load_factored(halves[2])
