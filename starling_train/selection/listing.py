"""What a checkpoint holds, from its headers: matrices to scan, what is passed over, and what cannot be read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from starling_train.config.fields import UserError
from starling_train.files import tensors as files
from starling_train.models.causal_lm import build_empty
from starling_train.models.reward.net import Network
from starling_train.models.source import UNUSABLE, ModelSource
from starling_train.selection.module_types import LAYER, Matrix, classify, second_copies
from starling_train.selection.records import Record


@dataclass(frozen=True)
class Listed:
    """A matrix of a checkpoint: its record without a score, and where it lies."""

    record: Record
    entry: files.Entry
    index: tuple[int | slice, ...]

    def read(self) -> Tensor:
        """Read the matrix in its own dtype on the CPU."""
        return files.read(self.entry, self.index)


def list_matrices(source: ModelSource) -> dict[str, Record]:
    """List the matrices of a model, names, types and shapes only; from config.json alone if necessary."""
    return {listed.record.module: listed.record for listed in matrices(source)}


def unscanned(source: ModelSource) -> dict[str, int]:
    """Count weights of two or more dimensions that are not a known matrix, embedding or head, by name.

    Layer and expert numbers are replaced by `*`. These weights have no score and cannot be selected.
    """
    counts: dict[str, int] = {}
    for entry in _entries(source):
        if classify(_module(entry), entry.shape, source.values).kind == "unknown":
            name = ".".join("*" if part.isdigit() else part for part in entry.name.split("."))
            counts[name] = counts.get(name, 0) + 1
    return counts


def left_out(source: ModelSource) -> dict[str, int]:
    """Count the tensors of a checkpoint that are passed over, by reason.

    A second copy of the decoder, and what lies in a shard although its index does not say so.
    """
    counts: dict[str, int] = {}
    for prefix in second_copies(entry.name for entry in source.entries).values():
        what = f"a second copy of the decoder, {prefix}*"
        counts[what] = counts.get(what, 0) + 1
    unindexed: dict[str, list[str]] = {}
    for entry in source.unindexed:
        unindexed.setdefault(entry.file.name, []).append(entry.name)
    return counts | {f"not in the index, {names[0]} of {shard} first": len(names) for shard, names in unindexed.items()}


def other_weights(source: ModelSource) -> dict[str, str]:
    """Classify weights besides the matrices: name -> embeddings, head, norms or other."""
    groups = {"norm": "norms", "embeddings": "embeddings", "head": "head"}
    kinds = {e.name: classify(_module(e), e.shape, source.values).kind for e in _entries(source)}
    return {name: groups.get(kind, "other") for name, kind in kinds.items() if kind != "matrices"}


def _module(entry: files.Entry) -> str:
    return entry.name.removesuffix(".weight")


def matrices(source: ModelSource) -> list[Listed]:
    """List all matrices, by layer and then in the order of the forward pass. Raises UserError if there are none."""
    listed = _listed(_entries(source), source.values)
    if not listed:
        raise UserError(
            f"{source.key}: no matrix of a known type in {source.directory} (model_type "
            f"{source.values.get('model_type')}); give a decoder such as Mistral, Llama or Mixtral"
        )
    return listed


def matrices_of(model: Network) -> dict[str, Record]:
    """List the matrices of a model, possibly on the meta device, as `list_matrices` does for a checkpoint."""
    listed = _listed(_parameters(model), model.config.to_dict())
    return {one.record.module: one.record for one in listed}


def _listed(entries: list[files.Entry], config: dict[str, Any]) -> list[Listed]:
    pairs = [(matrix, e) for e in entries for matrix in classify(_module(e), e.shape, config).matrices]
    pairs.sort(key=lambda pair: pair[0].order)
    return [Listed(_record(matrix), entry, matrix.index) for matrix, entry in pairs]


def _record(matrix: Matrix) -> Record:
    holder = matrix.parameter if matrix.parameter != f"{matrix.module}.weight" else None
    return Record(matrix.module, matrix.type, matrix.shape, holder=holder)


def _entries(source: ModelSource) -> list[files.Entry]:
    """List the checkpoint's tensors, one copy of the decoder only; from config.json where there are none."""
    copies = second_copies(entry.name for entry in source.entries)
    return [entry for entry in source.entries if entry.name not in copies] or _entries_of_config(source)


def _entries_of_config(source: ModelSource) -> list[files.Entry]:
    """List the parameters of the model that config.json describes, built on the meta device."""
    if not source.has_config:
        raise UserError(
            f"{source.key}: {source.directory} has neither weights nor config.json; give a Hugging Face model directory"
        )
    try:
        return _parameters(build_empty(source.config))
    except UNUSABLE as error:  # a wrong number in a config.json only shows where the model first uses it
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{source.key}: {source.directory}/config.json: no model can be built from it ({reason}); give a decoder"
        ) from None


def _parameters(model: Network) -> list[files.Entry]:
    return [files.Entry(name, Path(), tuple(p.shape), "meta") for name, p in model.named_parameters()]


def check_weights(source: ModelSource, needed_by: str | None = "a scan") -> None:
    """Raise UserError if a scan cannot even start.

    That is without weights, or with quantised, sparse, empty or meta ones in the decoder layers.
    needed_by: what the weights are needed for; None: there may be none.
    """
    if needed_by:
        source.check_present(needed_by)
    for entry in source.entries:
        if LAYER.match(entry.name) and _is_weight(entry, source.values):
            files.check_readable(entry)


def _is_weight(entry: files.Entry, config: dict) -> bool:
    """Return whether a tensor of a decoder layer is a weight in some form, packed ones included.

    A buffer is not: a mask, a table of positions, a count.
    """
    if entry.name.endswith("weight") or classify(_module(entry), entry.shape, config).kind == "matrices":
        return True
    return len(entry.shape) == 2 and min(entry.shape) > 1 and entry.dtype not in ("BOOL", "bool")
