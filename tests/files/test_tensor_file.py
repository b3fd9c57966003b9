"""A file written tensor by tensor is the one that safetensors writes."""

import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from starling_train.files import tensor_file
from starling_train.files.tensor_file import DTYPES, Later, take_part, whole, write

EVERY_KIND = {f"layer.{dtype}/moment": (torch.arange(7) % 2).to(dtype) for dtype in DTYPES} | {
    "scalar": torch.tensor(3.0), "count": torch.tensor(4), "empty": torch.zeros(0, 3),
    "é": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).bfloat16(),
}  # fmt: skip


@pytest.mark.parametrize("tensors", [EVERY_KIND, {}, {"odd": torch.ones(5, dtype=torch.uint8), "a": torch.ones(2, 3)}])
def test_the_bytes_are_those_of_safetensors(tensors, tmp_path):
    save_file(tensors, tmp_path / "theirs")
    write(tmp_path / "ours", tensors)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_what_shares_memory_or_is_not_contiguous_is_written_all_the_same(tmp_path):
    matrix = torch.arange(12.0).view(3, 4).requires_grad_()
    tensors = {"matrix": matrix, "same": matrix, "transposed": matrix.T, "row": matrix[1]}
    with pytest.raises(RuntimeError, match="share memory"):
        save_file({"matrix": matrix, "same": matrix}, tmp_path / "theirs")
    write(tmp_path / "ours", tensors)
    read = load_file(tmp_path / "ours")
    assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_one_tensor_is_gathered_at_a_time_and_by_all_in_the_same_order(tmp_path):
    alive, most, order = set(), [], []

    def later(name: str, dtype: torch.dtype) -> Later:
        def gather():
            tensor = torch.ones(10, dtype=dtype)
            alive.add(name)
            weakref.finalize(tensor, alive.discard, name)
            most.append(len(alive))
            order.append(name)
            return tensor

        return Later(torch.Size([10]), dtype, gather)

    tensors = {"b": later("b", torch.float32), "a": later("a", torch.bfloat16), "c": later("c", torch.float32)}
    write(tmp_path / "file", tensors)
    take_part(tensors)  # a process that does not write
    assert max(most) == 1 and order == ["b", "c", "a"] * 2
    gathered = whole(tensors)
    assert all(torch.equal(tensor, gathered[name]) for name, tensor in load_file(tmp_path / "file").items())


def test_every_type_that_safetensors_calls_by_these_names(tmp_path):
    write(tmp_path / "file", {name: torch.zeros(2, dtype=dtype) for dtype, name in DTYPES.items()})
    assert {name: tensor.dtype for name, tensor in load_file(tmp_path / "file").items()} == {
        name: dtype for dtype, name in tensor_file.DTYPES.items()
    }
