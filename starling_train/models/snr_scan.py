"""SNR of every matrix of a checkpoint, streamed from its files: peak memory is a few matrices."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from starling_train.config import UserError
from starling_train.core import spectrum
from starling_train.models import checkpoint_files as files
from starling_train.models.module_types import classify, layer_of, order


@dataclass(frozen=True)
class Record:
    """One matrix: name without `.weight`, module type, shape, and its `core.spectrum.Spectrum` once scanned.

    Where a list was made without scanning, or a published file holds less, the fields it lacks are None.
    """

    module: str
    type: str
    shape: tuple[int, ...] = ()
    snr: float | None = None
    raw: float | None = None
    threshold: float | None = None
    rank: int | None = None
    s_max: float | None = None
    signal: float | None = None
    noise: float | None = None
    stable_rank: float | None = None
    margin: float | None = None
    fragile: bool | None = None

    @property
    def layer(self) -> int | None:
        """Number of the decoder layer."""
        return layer_of(self.module)

    @property
    def size(self) -> int:
        """Number of entries; 0 where the shape is not known."""
        return math.prod(self.shape) if self.shape else 0


MEASURED = tuple(field.name for field in fields(spectrum.Spectrum))
Progress = Callable[[int, int, Record], None]


def list_matrices(path: Path) -> dict[str, Record]:
    """The matrices of a model directory, names, types and shapes only; from config.json alone if need be."""
    return {module: record for module, (record, _) in _matrices(Path(path)).items()}


def _matrices(path: Path) -> dict[str, tuple[Record, files.Entry | None]]:
    """Records and where to read them, in the order of the forward pass."""
    known = files.entries(path) or _entries_of_config(path)
    model_type = files.model_type(path)
    found = []
    for entry in known:
        module = entry.name.removesuffix(".weight")
        kind = classify(module, entry.shape, model_type)
        if kind.kind == "matrix":
            found.append((order(kind, model_type), Record(module, kind.type, entry.shape), entry))
    if not found:
        raise UserError(
            f"model.path: {path} holds no matrix of a known decoder layer (model_type {model_type})"
        )
    found.sort(key=lambda item: item[0])
    return {record.module: (record, entry) for _, record, entry in found}


def _entries_of_config(path: Path) -> list[files.Entry]:
    """The parameters of the model that config.json describes, built on the meta device."""
    if not (path / "config.json").is_file():
        raise UserError(
            f"model.path: {path} has neither weights nor config.json; give a Hugging Face model directory"
        )
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
    return [files.Entry(n, path, tuple(p.shape), "meta") for n, p in model.named_parameters()]


def scan(
    path: Path, *, dialect: str = "spectrum", device: str = "cpu", on_progress: Progress | None = None
) -> dict[str, Record]:
    """SNR of every matrix of the model directory `path`, keyed by module name, in the order of the forward pass.

    Raises UserError that names tensor and file for weights that are nan, infinite or quantised.
    """
    path = Path(path)
    if not files.entries(path):
        raise UserError(f"model.path: {path} has no weights to scan (*.safetensors or *.bin)")
    matrices = _matrices(path)
    records = {}
    for done, (module, (record, entry)) in enumerate(matrices.items(), start=1):
        records[module] = measure(record, entry, dialect, device)
        if on_progress:
            on_progress(done, len(matrices), records[module])
    return records


def measure(record: Record, entry: files.Entry, dialect: str, device: str) -> Record:
    """`record` with the spectrum of the tensor that `entry` points at."""
    tensor = files.read(entry).to(device)
    try:
        values = spectrum.snr(tensor, dialect)
    except ValueError as error:
        raise UserError(f"{entry.file}: tensor {entry.name} has {error}; the checkpoint is damaged") from None
    return Record(record.module, record.type, record.shape, **vars(values))


def write_scan(records: dict[str, Record], path: Path) -> None:
    """Writes `{module: {"snr": ..., "type": ..., ...}}` as strict JSON: what is infinite or unknown becomes null.

    A superset of Spectrum's schema. Infinite scores come back on reading, from a noise of 0 in a raw score of null.
    """
    content = {record.module: _to_json(record) for record in records.values()}
    partial = Path(path).with_suffix(".tmp")
    partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    partial.replace(path)  # so that no half-written file ever carries the name


def _to_json(record: Record) -> dict:
    values = {"snr": record.snr, "type": record.type}
    if record.shape:
        values["shape"] = list(record.shape)
    values |= {key: getattr(record, key) for key in MEASURED if getattr(record, key) is not None}
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def read_scan(path: Path) -> dict[str, Record]:
    """Records from our own file or a published one: `{module: {snr, type}}` or `{type: {module: snr}}`.

    Raises UserError for a file that is neither. Scores of nan (published scans of meta tensors) become None.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"freeze.scan: {path} does not exist; run starling_train.snr on the model first")
    content = files.read_json(path)
    if not content or not all(isinstance(value, dict) and value for value in content.values()):
        raise UserError(f"freeze.scan: {path} is not an SNR scan; expected {{module: {{snr, type}}}}")
    by_module = all("snr" in value and "type" in value for value in content.values())
    by_type = all(_is_score(score) for value in content.values() for score in value.values())
    if not by_module and not by_type:
        raise UserError(f"freeze.scan: {path} is not an SNR scan; expected {{module: {{snr, type}}}}")
    if by_module:
        return {module: _from_json(module, value) for module, value in content.items()}
    return {
        m: Record(m, kind, snr=_finite(score))
        for kind, scores in content.items()
        for m, score in scores.items()
    }


def _is_score(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _finite(score: float | None) -> float | None:
    return None if score is None or math.isnan(score) else float(score)


def _from_json(module: str, value: dict) -> Record:
    measured = {key: value.get(key) for key in MEASURED}
    if measured["snr"] is None and measured["noise"] == 0:
        measured |= {"snr": math.inf, "raw": math.inf}
    measured["snr"] = _finite(measured["snr"])
    return Record(module, value["type"], tuple(value.get("shape", ())), **measured)
