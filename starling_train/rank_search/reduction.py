"""A model's matrices at lower rank: made, put in, taken out again, and kept in files."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from starling_train.config.fields import given
from starling_train.core.rank_reduction import saving, truncate
from starling_train.files.tensors import FLOATS
from starling_train.files.whole import write_whole
from starling_train.models import causal_lm
from starling_train.models.causal_lm import CausalLM
from starling_train.models.source import ModelSource
from starling_train.selection import scan
from starling_train.selection.listing import matrices
from starling_train.selection.records import Record
from starling_train.selection.scan_journal import content_hash


@dataclass(frozen=True)
class Reduced:
    """A matrix at lower rank, on the CPU in the checkpoint's dtype.

    left (n, k) and right (k, m) are its factors in that dtype, where they hold fewer numbers than the matrix and were
    asked for. rank_before: of the matrix in the checkpoint. content: hash of the matrix.
    """

    matrix: Tensor
    rank_before: int
    content: str
    left: Tensor | None = None
    right: Tensor | None = None


def reduce(source: ModelSource, record: Record, device: torch.device | str = "cpu", factors: bool = False) -> Reduced:
    """The matrix of `record` in the checkpoint at the rank that its scan found, by a full SVD in fp64."""
    stored = scan.read_matrix(source, record.module)
    found = truncate(stored.to(device), given(record.rank))
    matrix = found.matrix(stored.dtype).cpu()
    reduced = Reduced(matrix, found.rank_before, content_hash(matrix))
    if factors and saving(record.shape, given(record.rank)):
        left, right = (factor.to(stored.dtype).cpu() for factor in (found.left, found.right))
        return Reduced(matrix, found.rank_before, reduced.content, left, right)
    return reduced


def parameter_of(model: nn.Module, record: Record) -> nn.Parameter:
    """The model's parameter that is the matrix."""
    return model.get_parameter(record.parameter)


@torch.no_grad()
def exchange(parameter: nn.Parameter, matrix: Tensor) -> Tensor:
    """Put `matrix` in, cast to its dtype; returns what was there, which `exchange` puts back bit for bit."""
    before = parameter.detach().clone()
    parameter.copy_(matrix)
    return before


def write(reduced: Reduced, path: Path) -> None:
    """Write a file of the matrix, and of its factors where there are some."""
    tensors = {"matrix": reduced.matrix, "left": reduced.left, "right": reduced.right}
    path.parent.mkdir(exist_ok=True)
    write_whole(path, lambda partial: save_file({k: v for k, v in tensors.items() if v is not None}, partial))


def read(path: Path, content: str) -> dict[str, Tensor] | None:
    """What `write` wrote; None where it is gone or damaged, or the matrix is not the one with that hash."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError):
        return None
    return tensors if "matrix" in tensors and content_hash(tensors["matrix"]) == content else None


def in_stored_dtype(model: CausalLM, source: ModelSource, tensors: dict[str, Tensor]) -> CausalLM:
    """The model with `tensors` (by parameter) in the checkpoint's dtype: itself, or loaded anew on the CPU.

    model: has them already, in a dtype that may be another one.
    """
    dtype = FLOATS[matrices(source)[0].entry.dtype]
    if model.dtype == dtype:
        return model
    stored = causal_lm.load_causal_lm(source, dtype=str(dtype).removeprefix("torch."))
    for name, matrix in tensors.items():
        exchange(stored.get_parameter(name), matrix)
    return stored
