"""Tensors of a Hugging Face model directory, one at a time: safetensors or `.bin`, sharded or single.

No model is built and no pickled code runs: `.bin` shards are read with weights_only and memory-mapped. A `.bin` of a
torch before 1.6 cannot be mapped: it is read whole and kept until the next one is read, so that peak memory is the
largest such file. `forget` releases it.
"""

import pickle
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from starling_train.config.fields import UserError
from starling_train.files.weight_files import WeightFiles, shards, weight_map

# torch's remark on a pickle that is not its own comes before the error that says so
warnings.filterwarnings("ignore", message="Detected pickle protocol")
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Entry:
    """A tensor of the checkpoint, not yet read. dtype: in safetensors' spelling, or `meta`, `sparse`."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str


def read_headers(files: WeightFiles) -> list[Entry]:
    """List every tensor of a model, from headers alone; none without weights.

    Of shards everything is listed, whether the index names it or not, and of a tensor that several hold the last copy:
    so transformers loads them. Raises UserError for an index that says otherwise, and for unreadable files.
    """
    if files.index is None:
        return [entry for file in files.read for entry in _file_entries(file)]
    held: dict[str, list[Entry]] = {}
    for name, first in shards(files.index).items():
        for entry in _file_entries(files.index.parent / name, first):
            held.setdefault(entry.name, []).append(entry)
    for name, shard in weight_map(files.index).items():
        copies = [entry.file for entry in held.get(name, [])]
        if files.index.parent / shard not in copies:
            raise UserError(f"{files.index}: names tensor {name}, not in {shard}; download that shard again")
        if copies[-1] != files.index.parent / shard:
            raise UserError(
                f"{files.index}: names {shard} for tensor {name}, which {copies[-1].name} holds too, and transformers "
                f"would load that copy; download {copies[-1].name} again, or save the model again"
            )
    return [copies[-1] for copies in held.values()]


def _file_entries(file: Path, first: str = "") -> list[Entry]:
    """List all tensors of one file; `first` is one known to be in it, for the message if the file is damaged."""
    if file.suffix == ".bin":
        return [Entry(name, file, tuple(t.shape), _spelling(t)) for name, t in _load_bin(file, first).items()]
    with _open(file, first) as shard:
        slices = {name: shard.get_slice(name) for name in shard.keys()}  # noqa: SIM118 (not a dict)
        return [Entry(name, file, tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()]


def _spelling(tensor: Tensor) -> str:
    if tensor.is_meta:
        return "meta"
    if tensor.layout != torch.strided:
        return "sparse"
    return next((name for name, dtype in FLOATS.items() if dtype == tensor.dtype), str(tensor.dtype)[6:])


def check_readable(entry: Entry) -> None:
    """Raise UserError for a tensor without values (meta, empty), sparse ones, and quantised or integer weights."""
    if entry.dtype == "meta":
        raise UserError(
            f"{entry.file}: tensor {entry.name} is on the meta device, without values; save the model again"
        )
    if entry.dtype == "sparse":
        raise UserError(f"{entry.file}: tensor {entry.name} is sparse; save the model again with dense weights")
    if 0 in entry.shape:
        raise UserError(f"{entry.file}: tensor {entry.name} is empty, of shape {entry.shape}; save the model again")
    if entry.dtype not in FLOATS:
        raise UserError(
            f"{entry.file}: tensor {entry.name} is {entry.dtype}, a quantised type; "
            "give the unquantised model (bf16, fp16 or fp32)"
        )


def read(entry: Entry, index: tuple[int | slice, ...] = ()) -> Tensor:
    """Read the tensor of `entry`, or what `index` cuts out of it, in its own dtype, contiguous, on the CPU."""
    check_readable(entry)
    if entry.file.suffix == ".bin":
        return _load_bin(entry.file, entry.name)[entry.name][index].contiguous()
    with _open(entry.file, entry.name) as shard:
        return shard.get_slice(entry.name)[index or slice(None)].contiguous()


def _open(file: Path, tensor: str = ""):
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: truncated or damaged ({_with(tensor)}{error}); download that file again") from None


def _with(tensor: str) -> str:
    return f"with tensor {tensor}: " if tensor else ""


# The last file of the old format, by path and time of its last change.
_whole: dict[tuple[Path, int], dict[str, Tensor]] = {}
_whole_lock = Lock()


def forget() -> None:
    """Let go of the `.bin` of the old format that was read last."""
    with _whole_lock:
        _whole.clear()


def _load_bin(file: Path, tensor: str = "") -> dict[str, Tensor]:
    with file.open("rb") as start:
        is_zip = start.read(4) == b"PK\x03\x04"  # the format before torch 1.6 is not a zip file, and cannot be mapped
    if is_zip:
        return _tensors(file, tensor, mapped=True)
    with _whole_lock:  # threads read ahead: one of them reads the file, the others wait for it
        key = (file, file.stat().st_mtime_ns)
        if key not in _whole:
            _whole.clear()  # before the next is read: two may not fit
            _whole[key] = _tensors(file, tensor, mapped=False)
        return _whole[key]


# What torch.load raises for a damaged pickle, found by changing bytes at random.
DAMAGED = (
    RuntimeError, OSError, EOFError, pickle.UnpicklingError,
    ValueError, LookupError, AttributeError, TypeError, AssertionError, ArithmeticError, MemoryError,
)  # fmt: skip


def _tensors(file: Path, tensor: str, *, mapped: bool) -> dict[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except DAMAGED as error:
        first = (str(error).strip() or type(error).__name__).split("\n")[0]
        # torch's own text goes on to say how the code in the file can be run
        reason = _with(tensor) + ("there is code in it" if first.startswith("Weights only load failed") else first)
        raise UserError(f"{file}: truncated, damaged or not only weights ({reason}); download it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds a {type(content).__name__}, not tensors by name; save a state_dict")
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor) and isinstance(name, str)}
    if not tensors:
        raise UserError(f"{file}: holds {_some(content)} and no tensors by name; save the state_dict alone")
    return tensors


def _some(names: Iterable[object]) -> str:
    return ", ".join(str(name) for name in list(names)[:3]) or "nothing"
