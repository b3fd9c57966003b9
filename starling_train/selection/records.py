"""Records of an SNR scan and the files that hold them: ours, Spectrum's and laserRMT's, PEFT's target modules.

Strict JSON: nan and infinity never reach a file.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from starling_train.config.fields import UserError
from starling_train.core.spectrum import Spectrum
from starling_train.files import whole
from starling_train.files.tensors import read_json
from starling_train.selection.module_types import is_linear, layer_of, name_in_layer


@dataclass(frozen=True)
class Record:
    """One matrix: name without `.weight`, module type, shape, and its `core.spectrum.Spectrum` once scanned.

    `holder` is the model's parameter that holds the matrix, where it is not `module`.weight: several experts, or q, k
    and v, in one tensor, which trains as a whole. `content` is a hash of the weights, `dialect` what the score means.
    In a list made without scanning, or from a published file, missing fields are None (the shape is empty).
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
    dialect: str | None = None
    content: str | None = None
    holder: str | None = None

    @property
    def layer(self) -> int | None:
        """Number of the decoder layer."""
        return layer_of(self.module)

    @property
    def size(self) -> int:
        """Number of entries; 0 where the shape is not known."""
        return math.prod(self.shape) if self.shape else 0

    @property
    def parameter(self) -> str:
        """The model's parameter that holds the matrix."""
        return self.holder or f"{self.module}.weight"

    @property
    def kind(self) -> str:
        """Module type of what trains with this matrix: its own, or the holder's name inside its layer."""
        return name_in_layer(self.holder) if self.holder else self.type


MEASURED = tuple(field.name for field in fields(Spectrum))
STORED = (*MEASURED, "dialect", "content", "holder")


def write_records(records: dict[str, Record], path: Path) -> None:
    """Write `{module: {"snr": ..., "type": ..., ...}}`: Spectrum's schema with more keys; infinity becomes null."""
    write_json({module: to_json(record) for module, record in records.items()}, path)


def write_spectrum_scan(records: dict[str, Record], path: Path) -> None:
    """Write exactly Spectrum's schema, `{module: {"snr", "type"}}`; infinity becomes null."""
    content = {m: {"snr": _finite(r.snr), "type": r.type} for m, r in records.items()}
    write_json(content, path)


def parameters_of(selected: Iterable[str], records: dict[str, Record]) -> list[str]:
    """Name the model's parameters that hold the `selected` modules, each once, in the order of `selected`.

    Raises UserError where a parameter holds a matrix that is not selected.
    """
    chosen = dict.fromkeys(selected)
    parameters = dict.fromkeys(records[module].parameter for module in chosen)
    for record in records.values():
        if record.parameter in parameters and record.module not in chosen:
            raise not_whole(record.parameter, record.module)
    return list(parameters)


def not_whole(parameter: str, module: str) -> UserError:
    """Make the error for a selection that holds some matrices of `parameter`, but not `module`."""
    return UserError(
        f"freeze.method: {parameter} is one tensor, and {module} in it is not selected; select by freeze.unit=layer"
    )


def write_target_modules(selected: Iterable[str], records: dict[str, Record], path: Path) -> None:
    """Write `{"target_modules": [...]}` for a PEFT LoraConfig: full names, which match one module each.

    Stacked experts and routers are parameters without a Linear, listed in `target_parameters` if there are any. Raises
    UserError as `parameters_of` does.
    """
    parameters = parameters_of(selected, records)
    content = {"target_modules": [name.removesuffix(".weight") for name in parameters if is_linear(name)]}
    if bare := [name for name in parameters if not is_linear(name)]:
        content["target_parameters"] = bare
    write_json(content, path)


def write_json(content: dict, path: Path) -> None:
    """Write strict JSON, complete or absent: no half-written file ever carries the name."""
    text = json.dumps(content, indent=1, allow_nan=False)
    whole.write_text(path, f"{text}\n")


def to_json(record: Record) -> dict:
    """Render `record` without its name as strict JSON values; fields that are None are left out, except `snr`."""
    values: dict[str, Any] = {"snr": _finite(record.snr), "type": record.type}
    if record.shape:
        values["shape"] = list(record.shape)
    stored = {key: getattr(record, key) for key in STORED if key != "snr"}
    return values | {key: _finite(value) for key, value in stored.items() if value is not None}


def _finite(value: float | str | None) -> float | str | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_json(module: str, values: dict) -> Record:
    """Restore the record that `to_json` stored, or a published one; what its parts make infinite is infinite again."""
    known = {key: values[key] for key in STORED if key in values}
    record = Record(module, values["type"], tuple(values.get("shape", ())), **known)
    if record.snr is not None:
        record = replace(record, snr=None if math.isnan(record.snr) else float(record.snr))
    elif record.noise == 0 and "raw" in values:  # laserRMT's dialect, no noise left
        record = replace(record, snr=math.inf, raw=math.inf)
    return replace(record, margin=math.inf) if record.threshold == 0 and "margin" in values else record


def read_records(path: Path, key: str = "freeze.scan") -> dict[str, Record]:
    """Read records from our own file or a published one: `{module: {snr, type}}` or `{type: {module: snr}}`.

    `key` is the configuration key to name in messages. Raises UserError for any other file. A score of nan (published
    scans of meta tensors) becomes None.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{key}: {path} does not exist; make it with starling_train.snr")
    content = read_json(path)
    if content and all(is_record(value) for value in content.values()):
        return {module: from_json(module, values) for module, values in content.items()}
    if content and all(_are_scores(value) for value in content.values()):
        pairs = [(kind, module) for kind, scores in content.items() for module in scores]
        return {m: from_json(m, {"snr": content[kind][m], "type": kind}) for kind, m in pairs}
    raise UserError(f"{key}: {path} is not an SNR scan, {{module: {{snr, type}}}}; make it with starling_train.snr")


def is_record(value: object) -> bool:
    """Return whether `value` has the score and type of a record as JSON, and no key of a wrong kind."""
    if not isinstance(value, dict) or not _is_score(value.get("snr", "")) or not isinstance(value.get("type"), str):
        return False
    shape = value.get("shape", [])
    texts = [value.get(key) for key in ("dialect", "content", "holder")]
    numbers = [value.get(key) for key in MEASURED if key != "fragile"]
    return (
        isinstance(shape, list)
        and all(type(side) is int and side > 0 for side in shape)
        and all(isinstance(text, str | None) for text in texts)
        and all(map(_is_score, numbers))
        and isinstance(value.get("fragile"), bool | None)
    )


def _are_scores(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(_is_score(score) for score in value.values())


def _is_score(value: object) -> bool:
    # an integer of hundreds of digits has no float
    return value is None or type(value) is float or (type(value) is int and abs(value) < 10**300)


def match_records(scan: dict[str, Record], listing: dict[str, Record], source: str) -> dict[str, Record]:
    """Reorder `scan` as `listing`, with the shapes that a published file lacks.

    What a scan holds outside the decoder layers (a head, embeddings) is left out. Raises UserError where the two are
    not of the same model: a name that only one of them has, or another shape.
    """
    for module in [*listing, *(name for name, record in scan.items() if record.layer is not None)]:
        if module not in scan or module not in listing:
            where = "the model" if module not in listing else source
            raise UserError(f"freeze.scan: {module} is not in {where}; give the scan of this model")
        if scan[module].shape and scan[module].shape != listing[module].shape:
            raise UserError(
                f"freeze.scan: {source} has {module} as {scan[module].shape}, the model as "
                f"{listing[module].shape}; give the scan of this model"
            )
    filled = fill(scan, listing)
    return {module: filled[module] for module in listing}


def fill(scan: dict[str, Record], listing: dict[str, Record]) -> dict[str, Record]:
    """Reorder `scan` as `listing`, with its holders, and its shapes where the scan has none.

    What only the scan holds comes last.
    """
    known = {}
    for module, record in listing.items():
        if module in scan:
            shape = scan[module].shape or record.shape
            known[module] = replace(scan[module], shape=shape, holder=record.holder)
    return known | {module: record for module, record in scan.items() if module not in known}
