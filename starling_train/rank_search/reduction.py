"""A model's matrices at lower rank: computed, put into the model and taken out again, and kept in files."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from starling_train.config.fields import given
from starling_train.core.rank_reduction import saving, truncate
from starling_train.files.tensors import FLOATS
from starling_train.files.whole import write_whole
from starling_train.models import causal_lm
from starling_train.models.causal_lm import CausalLM
from starling_train.models.source import ModelSource
from starling_train.selection import scan
from starling_train.selection.listing import matrices
from starling_train.selection.module_types import classify
from starling_train.selection.records import Record
from starling_train.selection.scan_journal import content_hash


@dataclass(frozen=True)
class Reduced:
    """A matrix at lower rank, on the CPU in the checkpoint's dtype.

    matrix: (n, m).
    rank_before: of the matrix in the checkpoint.
    content: hash of the matrix.
    left: (n, k), its factor in that dtype, where requested and where both factors hold fewer numbers than the matrix.
    right: (k, m), the other factor.
    """

    matrix: Tensor
    rank_before: int
    content: str
    left: Tensor | None = None
    right: Tensor | None = None


def reduce(source: ModelSource, record: Record, device: torch.device | str = "cpu", factors: bool = False) -> Reduced:
    """Reduce a matrix of the checkpoint to the rank that its scan gives, by a full SVD in fp64.

    source: the checkpoint.
    record: the scan of the matrix.
    device: where the SVD is computed.
    factors: whether to keep the factors too.
    """
    stored = scan.read_matrix(source, record.module)
    truncated = truncate(stored.to(device), given(record.rank))
    matrix = truncated.matrix(stored.dtype).cpu()
    reduced = Reduced(matrix, truncated.rank_before, content_hash(matrix))
    if factors and saving(record.shape, given(record.rank)):
        left, right = (factor.to(stored.dtype).cpu() for factor in (truncated.left, truncated.right))
        return Reduced(matrix, truncated.rank_before, reduced.content, left, right)
    return reduced


def place_of(model: CausalLM, record: Record) -> Tensor:
    """Return the matrix in the model, (n, m): a parameter, or a view into one that holds several (experts; q, k, v)."""
    parameter = model.get_parameter(record.parameter)
    held = classify(record.parameter.removesuffix(".weight"), tuple(parameter.shape), model.config.to_dict()).matrices
    index = next((matrix.index for matrix in held if matrix.module == record.module), ())
    return parameter.detach()[index] if index else parameter


@torch.no_grad()
def exchange(place: Tensor, matrix: Tensor) -> Tensor:
    """Write `matrix` into its place in the model, cast to its dtype.

    Returns the previous values, which `exchange` puts back bit for bit.
    """
    before = place.detach().clone()
    place.copy_(matrix)
    return before


def write(reduced: Reduced, path: Path) -> None:
    """Write a file of the matrix, and of its factors where it has them."""
    tensors = {"matrix": reduced.matrix, "left": reduced.left, "right": reduced.right}
    path.parent.mkdir(exist_ok=True)
    write_whole(path, lambda partial: save_file({k: v for k, v in tensors.items() if v is not None}, partial))


def read(path: Path, content: str) -> dict[str, Tensor] | None:
    """Read the tensors that `write` wrote; None where the file is gone or damaged, or the matrix has another hash."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError):
        return None
    return tensors if "matrix" in tensors and content_hash(tensors["matrix"]) == content else None


def in_stored_dtype(model: CausalLM, source: ModelSource, tensors: dict[Record, Tensor]) -> CausalLM:
    """Return the model with `tensors` in the checkpoint's dtype: `model` itself, or loaded anew on the CPU.

    model: has the tensors already, perhaps in another dtype.
    tensors: the changed matrices.
    """
    dtype = FLOATS[matrices(source)[0].entry.dtype]
    if model.dtype == dtype:
        return model
    stored = causal_lm.load_causal_lm(source, dtype=str(dtype).removeprefix("torch."))
    for record, matrix in tensors.items():
        exchange(place_of(stored, record), matrix)
    return stored
