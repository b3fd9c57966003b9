"""What a checkpoint holds, from its headers: matrices to scan, what is passed over, and what cannot be read."""

from dataclasses import dataclass
from pathlib import Path

import torch

from starling_train.config.fields import UserError
from starling_train.files import tensors as files
from starling_train.selection.module_types import LAYER, Matrix, classify, second_copies
from starling_train.selection.records import Record


@dataclass(frozen=True)
class Job:
    """A matrix to scan: its record without a score, and where it lies."""

    record: Record
    entry: files.Entry
    index: tuple[int | slice, ...]


def list_matrices(path: Path) -> dict[str, Record]:
    """The matrices of a model directory, names, types and shapes only; from config.json alone if need be."""
    return {job.record.module: job.record for job in jobs(Path(path))}


def unscanned(path: Path) -> dict[str, int]:
    """Weights of two or more dimensions that are no known matrix, embedding or head -> how many of them.

    Layer and expert numbers are replaced by `*`. What stands here has no score and cannot be selected.
    """
    config = files.read_config(Path(path))
    counts: dict[str, int] = {}
    for entry in _entries(Path(path)):
        if classify(_module(entry), entry.shape, config).kind == "unknown":
            name = ".".join("*" if part.isdigit() else part for part in entry.name.split("."))
            counts[name] = counts.get(name, 0) + 1
    return counts


def left_out(path: Path) -> dict[str, int]:
    """What of the checkpoint's tensors is passed over, in words -> how many: a second copy of the decoder, and
    what lies in a shard without its index saying so.
    """
    counts: dict[str, int] = {}
    for prefix in second_copies(entry.name for entry in files.entries(Path(path))).values():
        what = f"a second copy of the decoder, {prefix}*"
        counts[what] = counts.get(what, 0) + 1
    unindexed: dict[str, list[str]] = {}
    for entry in files.unindexed(Path(path)):
        unindexed.setdefault(entry.file.name, []).append(entry.name)
    return counts | {f"not in the index, {names[0]} of {shard} first": len(names) for shard, names in unindexed.items()}


def other_weights(path: Path) -> dict[str, str]:
    """Names of weights besides the matrices -> embeddings, head, norms or other."""
    config, groups = (
        files.read_config(Path(path)),
        {"norm": "norms", "embeddings": "embeddings", "head": "head"},
    )
    kinds = {e.name: classify(_module(e), e.shape, config).kind for e in _entries(Path(path))}
    return {name: groups.get(kind, "other") for name, kind in kinds.items() if kind != "matrices"}


def _module(entry: files.Entry) -> str:
    return entry.name.removesuffix(".weight")


def jobs(path: Path) -> list[Job]:
    """All matrices, by layer and then in the order of the forward pass."""
    config = files.read_config(path)
    found: list[tuple[Matrix, files.Entry]] = []
    for entry in _entries(path):
        found += [(matrix, entry) for matrix in classify(_module(entry), entry.shape, config).matrices]
    if not found:
        raise UserError(
            f"model.path: no matrix of a known type in {path} (model_type {config.get('model_type')}); "
            "give a decoder such as Mistral, Llama or Mixtral"
        )
    found.sort(key=lambda pair: pair[0].order)
    return [Job(_record(matrix), entry, matrix.index) for matrix, entry in found]


def _record(matrix: Matrix) -> Record:
    holder = matrix.parameter if matrix.parameter != f"{matrix.module}.weight" else None
    return Record(matrix.module, matrix.type, matrix.shape, holder=holder)


def _entries(path: Path) -> list[files.Entry]:
    """The checkpoint's tensors, of several copies of the decoder one; from config.json where there are none."""
    found = files.entries(path)
    copies = second_copies(entry.name for entry in found)
    return [entry for entry in found if entry.name not in copies] or _entries_of_config(path)


def _entries_of_config(path: Path) -> list[files.Entry]:
    """The parameters of the model that config.json describes, built on the meta device."""
    if not (path / "config.json").is_file():
        raise UserError(f"model.path: {path} has neither weights nor config.json; give a Hugging Face model directory")
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    files.read_config(path)  # what it refuses, it refuses with better words
    # a wrong number in a config.json surfaces wherever the model first uses it
    wrong = (ValueError, OSError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (*wrong, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path / 'config.json'}: no model can be built from it ({reason}); give a decoder") from None
    return [files.Entry(name, path, tuple(p.shape), "meta") for name, p in model.named_parameters()]


def check_weights(path: Path, needed_by: str | None = "a scan") -> None:
    """Raises UserError if a scan of `path` cannot even start: no weights, or quantised, sparse, empty or meta
    ones in the decoder layers. `needed_by` says for what weights must be there; None: there may be none.
    """
    path = Path(path)
    entries, config = files.entries(path), files.read_config(path)
    if not entries and needed_by:
        if shards := files.without_index(path):
            raise UserError(f"model.path: {path} has {shards[0].name} but no index of its shards; download that too")
        raise UserError(f"model.path: {path} has no weights (*.safetensors or *.bin); {needed_by} needs them")
    for entry in entries:
        if LAYER.match(entry.name) and _is_weight(entry, config):
            files.check_readable(entry)


def _is_weight(entry: files.Entry, config: dict) -> bool:
    """Whether a tensor of a decoder layer is a weight in some form, packed ones included, and no buffer: a
    mask, a table of positions, a count.
    """
    if entry.name.endswith("weight") or classify(_module(entry), entry.shape, config).kind == "matrices":
        return True
    return len(entry.shape) == 2 and min(entry.shape) > 1 and entry.dtype not in ("BOOL", "bool")
