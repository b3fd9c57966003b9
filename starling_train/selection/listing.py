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
from starling_train.selection.model_names import ModelNames
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
    for entry in [*_named_entries(source), *_absent(source)]:
        if classify(entry.module, entry.shape, source.values).kind == "unknown":
            name = ".".join("*" if part.isdigit() else part for part in entry.name.split("."))
            counts[name] = counts.get(name, 0) + 1
    return counts


def left_out(source: ModelSource) -> dict[str, int]:
    """Count the tensors of a checkpoint that are passed over, by reason.

    A second copy of the decoder, and layers that the model does not have (a checkpoint may hold more of them, to
    predict several tokens).
    """
    counts: dict[str, int] = {}
    copies = second_copies(entry.name for entry in source.entries)
    absent = [e.name for e in _absent(source) if classify(e.module, e.shape, source.values).kind == "matrices"]
    absent = [name for name in absent if name not in copies]
    if absent:
        counts[f"not in the model that transformers makes of it, {absent[0]} first"] = len(absent)
    for prefix in copies.values():
        what = f"a second copy of the decoder, {prefix}*"
        counts[what] = counts.get(what, 0) + 1
    return counts


def other_weights(source: ModelSource) -> dict[str, str]:
    """Classify weights besides the matrices: name -> embeddings, head, norms or other."""
    groups = {"norm": "norms", "embeddings": "embeddings", "head": "head"}
    kinds = {e.name: classify(e.module, e.shape, source.values).kind for e in _named_entries(source)}
    if ModelNames.of(source).is_tied:  # then the model has no such parameter: it is the embeddings'
        kinds = {name: kind for name, kind in kinds.items() if kind != "head"}
    return {name: groups.get(kind, "other") for name, kind in kinds.items() if kind != "matrices"}


def matrices(source: ModelSource) -> list[Listed]:
    """List all matrices, by layer and then in the order of the forward pass. Raises UserError if there are none."""
    listed = _listed(_named_entries(source), source.values)
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


def names(source: ModelSource) -> set[str]:
    """Name what the model has: parameters, buffers and modules, as the file and as the loaded model call them."""
    held = {entry.name for entry in source.entries} | {entry.name for entry in _named_entries(source)}
    held |= {name.removesuffix(".weight") for name in held}
    try:
        return held | names_of(build_empty(source.config)) if source.has_config else held
    except (UserError, *UNUSABLE):  # a type that transformers does not know
        return held


def names_of(model: Network) -> set[str]:
    """Name what a model has, possibly on the meta device: parameters and buffers, and the modules that hold them."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    held = {name for name, _ in tensors}
    return held | {name.rpartition(".")[0] for name in held}


@dataclass(frozen=True)
class _Named:
    """A tensor of the checkpoint with the name that the loaded model has for it."""

    name: str
    entry: files.Entry

    @property
    def module(self) -> str:
        return self.name.removesuffix(".weight")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape


def _listed(entries: list[_Named], config: dict[str, Any]) -> list[Listed]:
    pairs = [(matrix, e.entry) for e in entries for matrix in classify(e.module, e.shape, config).matrices]
    pairs.sort(key=lambda pair: pair[0].order)
    return [Listed(_record(matrix), entry, matrix.index) for matrix, entry in pairs]


def _record(matrix: Matrix) -> Record:
    holder = matrix.parameter if matrix.parameter != f"{matrix.module}.weight" else None
    return Record(matrix.module, matrix.type, matrix.shape, holder=holder)


def _named_entries(source: ModelSource) -> list[_Named]:
    """List the checkpoint's tensors that the model has, one copy of the decoder; from config.json without weights."""
    copies = second_copies(entry.name for entry in source.entries)
    names = ModelNames.of(source)
    held = [entry for entry in source.entries if entry.name not in copies]
    named = [_Named(name, entry) for entry in held if (name := names.name_of(entry.name)) is not None]
    return named if source.entries else _entries_of_config(source)


def _absent(source: ModelSource) -> list[_Named]:
    """List the tensors of decoder layers that the model does not have."""
    absent = set(ModelNames.of(source).absent)
    return [_Named(entry.name, entry) for entry in source.entries if entry.name in absent]


def _entries_of_config(source: ModelSource) -> list[_Named]:
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


def _parameters(model: Network) -> list[_Named]:
    held = [files.Entry(name, Path(), tuple(p.shape), "meta") for name, p in model.named_parameters()]
    return [_Named(entry.name, entry) for entry in held]


def check_weights(source: ModelSource, needed_by: str | None = "a scan") -> None:
    """Raise UserError if a scan cannot even start.

    That is without weights, or with quantised, sparse, empty or meta ones in the decoder layers.
    needed_by: what the weights are needed for; None: there may be none.
    """
    if needed_by:
        source.check_present(needed_by)
    names = ModelNames.of(source)
    for entry in source.entries:
        named = _Named(names.name_of(entry.name) or entry.name, entry)
        if LAYER.match(named.name) and _is_weight(named, source.values):
            files.check_readable(entry)


def _is_weight(named: _Named, config: dict) -> bool:
    """Return whether a tensor of a decoder layer is a weight in some form, packed ones included.

    A buffer is not: a mask, a table of positions, a count.
    """
    if named.name.endswith("weight") or classify(named.module, named.shape, config).kind == "matrices":
        return True
    return len(named.shape) == 2 and min(named.shape) > 1 and named.entry.dtype not in ("BOOL", "bool")
