"""A safetensors file, written tensor by tensor: no more than one of them is copied to the host at a time."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

# in the order in which safetensors writes them: the widest first, so that every tensor is aligned
DTYPES = {
    torch.uint64: "U64", torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.uint32: "U32",
    torch.int32: "I32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint16: "U16", torch.int16: "I16",
    torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Later:
    """A tensor that is put together when its turn has come, e.g. from the shards of several processes."""

    shape: torch.Size
    dtype: torch.dtype
    gather: Callable[[], Tensor]


Tensors = Mapping[str, Tensor | Later]


def write(path: Path, tensors: Tensors) -> None:
    """Write the file, byte for byte as safetensors' own `save_file` does; tensors may share memory.

    That one first copies all tensors of a GPU to the host, and refuses those that share memory.
    Format: the length of a JSON header in 8 bytes, the header, then the tensors' bytes one after the other.
    """
    header, end = {}, 0
    for name in _in_order(tensors):
        tensor, start = tensors[name], end
        end += math.prod(tensor.shape) * tensor.dtype.itemsize
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in header:
            file.write(_bytes(_value(tensors[name])))


def take_part(tensors: Tensors) -> None:
    """Gather what the first process writes meanwhile: all processes take the same tensors in the same order."""
    for name in _in_order(tensors):
        _value(tensors[name])


def whole(tensors: Tensors) -> dict[str, Tensor]:
    """Return all of the tensors at once. Every process must call it."""
    return {name: _value(tensors[name]) for name in _in_order(tensors)}


def _in_order(tensors: Tensors) -> list[str]:
    rank = {dtype: index for index, dtype in enumerate(DTYPES)}
    return sorted(tensors, key=lambda name: (rank[tensors[name].dtype], name))


def _value(tensor: Tensor | Later) -> Tensor:
    return tensor.gather() if isinstance(tensor, Later) else tensor


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
