"""Tensors of a Hugging Face model directory, one at a time: safetensors or `.bin`, sharded or single.

No model is built and no pickled code runs: `.bin` shards are read with weights_only and memory-mapped.
"""

import json
import pickle
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
    """A tensor of the checkpoint, not yet read: name, file, shape, and dtype in safetensors' spelling (or
    `meta`).
    """

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str


def entries(path: Path) -> list[Entry]:
    """Every tensor of the model directory `path`, from headers alone; empty where there are no weights.

    Raises UserError for a missing directory, an index that names what is not there, and files that cannot
    be read.
    """
    if not path.is_dir():
        raise UserError(f"model.path: {path} is not a directory; give a Hugging Face model directory")
    for index in (path / name for name in INDEXES):
        if index.is_file():
            return _indexed_entries(index)
    single = [path / name for name in SINGLES if (path / name).is_file()]
    return _file_entries(single[0]) if single else []


def _indexed_entries(index: Path) -> list[Entry]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: no weight_map; the index is damaged, download it again")
    found: dict[str, Entry] = {}
    for name in dict.fromkeys(weight_map.values()):
        first = next(tensor for tensor, shard in weight_map.items() if shard == name)
        if not (index.parent / name).is_file():
            raise UserError(f"{index}: names {name} (tensor {first}), which is missing; download that shard")
        found |= {entry.name: entry for entry in _file_entries(index.parent / name)}
    if missing := [name for name in weight_map if name not in found]:
        raise UserError(
            f"{index}: names tensor {missing[0]}, not in {weight_map[missing[0]]}; download that shard again"
        )
    return [found[name] for name in weight_map]


def _file_entries(file: Path) -> list[Entry]:
    if file.suffix == ".bin":
        return [Entry(name, file, tuple(t.shape), _spelling(t)) for name, t in _load_bin(file).items()]
    with _open(file) as shard:
        slices = {name: shard.get_slice(name) for name in shard.keys()}  # noqa: SIM118 (not a dict)
        return [Entry(name, file, tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()]


def _spelling(tensor: Tensor) -> str:
    if tensor.is_meta:
        return "meta"
    return next((name for name, dtype in FLOATS.items() if dtype == tensor.dtype), str(tensor.dtype)[6:])


def check_readable(entry: Entry) -> None:
    """Raises UserError for a tensor without values (meta) and for quantised or integer weights."""
    if entry.dtype == "meta":
        raise UserError(
            f"{entry.file}: tensor {entry.name} is on the meta device, without values; save the model again"
        )
    if entry.dtype not in FLOATS:
        raise UserError(
            f"{entry.file}: tensor {entry.name} is {entry.dtype}, a quantised type; "
            "give the unquantised model (bf16, fp16 or fp32)"
        )


def read(entry: Entry, index: tuple[int | slice, ...] = ()) -> Tensor:
    """The tensor of `entry`, or the part of it that `index` cuts out, in its own dtype, contiguous, on
    the CPU.
    """
    check_readable(entry)
    if entry.file.suffix == ".bin":
        return _load_bin(entry.file)[entry.name][index].contiguous()
    with _open(entry.file) as shard:
        return shard.get_slice(entry.name)[index or slice(None)].contiguous()


def _open(file: Path):
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise UserError(f"{file}: truncated or damaged ({error}); download that file again") from None


def _load_bin(file: Path) -> dict[str, Tensor]:
    with file.open("rb") as start:
        is_zip = start.read(4) == b"PK\x03\x04"  # the format before torch 1.6 is none, and cannot be mapped
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{file}: truncated, damaged or not only weights ({reason}); download it again") from None
    return {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}


def read_json(path: Path) -> dict:
    """A JSON object from `path`; UserError where the file is not one."""
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error}); write or download it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; write or download it again")
    return content


def read_config(path: Path) -> dict:
    """config.json of the model directory `path`; empty where there is none."""
    config = path / "config.json"
    return read_json(config) if config.is_file() else {}
