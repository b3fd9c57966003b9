"""Tensors of a Hugging Face model directory, one at a time: safetensors or `.bin`, sharded or single.

No model is built and no pickled code runs: `.bin` shards are read with weights_only and memory-mapped.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from starling_train.config import UserError

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLES = ("model.safetensors", "pytorch_model.bin")
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Entry:
    """A tensor of the checkpoint, not yet read: its name, file, shape and dtype (safetensors' spelling)."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str


def weight_files(path: Path) -> list[Path]:
    """Files that hold the weights of the model directory `path`; empty where there are none (config only).

    Raises UserError for a directory that does not exist and for an index that names a missing file.
    """
    if not path.is_dir():
        raise UserError(f"model.path: {path} is not a directory; give a Hugging Face model directory")
    for name in INDEXES:
        if (path / name).is_file():
            return _indexed_files(path / name)
    return [path / name for name in SINGLES if (path / name).is_file()][:1]


def _indexed_files(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: no weight_map; the index is damaged, download it again")
    files = sorted({index.parent / file for file in weight_map.values()})
    for file in files:
        if not file.is_file():
            tensor = next(name for name, shard in weight_map.items() if index.parent / shard == file)
            raise UserError(
                f"{index}: names {file.name} (tensor {tensor}), which is missing; download that shard"
            )
    return files


def read_json(path: Path) -> dict:
    """A JSON object from `path`; UserError where the file is not one."""
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error}); download or write the file again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object; download or write the file again")
    return content


def entries(path: Path) -> list[Entry]:
    """Every tensor of the checkpoint from the files' headers alone, in the order of the files."""
    return [entry for file in weight_files(path) for entry in _file_entries(file)]


def _file_entries(file: Path) -> list[Entry]:
    if file.suffix == ".bin":
        tensors = _load_bin(file)
        return [Entry(name, file, tuple(t.shape), _spelling(t.dtype)) for name, t in tensors.items()]
    with _open(file) as shard:
        slices = {name: shard.get_slice(name) for name in shard.keys()}  # noqa: SIM118 (not a dict)
        return [Entry(name, file, tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()]


def read(entry: Entry) -> Tensor:
    """The tensor of `entry`, in its own dtype, on the CPU, backed by the file where the format allows."""
    if entry.dtype not in FLOATS:
        raise UserError(
            f"{entry.file}: tensor {entry.name} is {entry.dtype}, a quantised or integer type; "
            "scan the unquantised model (bf16, fp16 or fp32)"
        )
    if entry.file.suffix == ".bin":
        return _load_bin(entry.file)[entry.name]
    with _open(entry.file) as shard:
        return shard.get_tensor(entry.name)


def _open(file: Path):
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise UserError(
            f"{file}: not a readable safetensors file ({error}); download that file again"
        ) from None


def _load_bin(file: Path) -> dict[str, Tensor]:
    tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}


def _spelling(dtype: torch.dtype) -> str:
    return next((name for name, known in FLOATS.items() if known == dtype), str(dtype).removeprefix("torch."))


def model_type(path: Path) -> str | None:
    """`model_type` of the directory's config.json; None where there is no such file."""
    config = path / "config.json"
    return read_json(config).get("model_type") if config.is_file() else None
