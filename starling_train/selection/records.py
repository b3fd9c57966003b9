"""Records of an SNR scan and the files that hold them: ours, Spectrum's and laserRMT's, PEFT's target modules.

Strict JSON: nan and infinity never reach a file.
"""

import json
import math
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from starling_train.config.fields import UserError
from starling_train.core.spectrum import Spectrum
from starling_train.files import whole
from starling_train.files.json_object import read_json
from starling_train.selection.module_types import is_linear, layer_of, name_in_layer, type_of


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
    """Write exactly Spectrum's schema, `{module: {"snr", "type"}}`.

    Its readers sort the scores, which null would stop: infinity is the largest number of strict JSON.
    """
    scores = {m: sys.float_info.max if r.snr == math.inf else _finite(r.snr) for m, r in records.items()}
    content = {m: {"snr": score, "type": records[m].type} for m, score in scores.items()}
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
        is_infinite = record.snr == sys.float_info.max and values.keys() <= {"snr", "type"}  # `write_spectrum_scan`
        score = math.inf if is_infinite else float(record.snr)
        record = replace(record, snr=None if math.isnan(score) else score)
    elif record.noise == 0 and "raw" in values:  # laserRMT's dialect, no noise left
        record = replace(record, snr=math.inf, raw=math.inf)
    return replace(record, margin=math.inf) if record.threshold == 0 and "margin" in values else record


def read_records(path: Path, key: str = "freeze.scan") -> dict[str, Record]:
    """Read records from our own file or a published one: `{module: {snr, type}}` or `{type: {module: snr}}`.

    `key` is the configuration key to name in messages. Raises UserError for any other file. A score of nan (published
    scans of meta tensors) becomes None; nan and infinity may be written as words. A missing type is the name's.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{key}: {path} does not exist; make it with starling_train.snr")
    if path.suffix in (".yaml", ".yml"):
        raise UserError(
            f"{key}: {path} is YAML, as lists of unfrozen parameters are, not a scan; give the snr_results_*.json that "
            "it was made from, or make one with starling_train.snr"
        )
    content = read_json(path)
    if content and all(isinstance(value, dict) for value in content.values()):
        if any("snr" in value for value in content.values()):
            return {
                module: from_json(module, _checked(module, values, path, key)) for module, values in content.items()
            }
        if all(map(bool, content.values())):
            pairs = [(kind, module) for kind, scores in content.items() for module in scores]
            stored = {module: {"snr": content[kind][module], "type": kind} for kind, module in pairs}
            return {module: from_json(module, _checked(module, values, path, key)) for module, values in stored.items()}
    raise UserError(f"{key}: {path} is not an SNR scan, {{module: {{snr, type}}}}; make it with starling_train.snr")


# nan and infinity as files of strict JSON write them
WORDS = {"nan", "inf", "infinity", "-inf", "-infinity", "+inf", "+infinity"}


def _checked(module: str, values: dict[str, Any], path: Path, key: str) -> dict[str, Any]:
    """Return what a file says of `module` as `from_json` reads it. Raises UserError."""
    score = values.get("snr", "")
    values = {"type": _type_of(module)} | values
    if isinstance(score, str) and score.strip().lower() in WORDS:
        values["snr"] = float(score)
    if not is_record(values):
        raise UserError(
            f"{key}: {path} is not an SNR scan, {{module: {{snr, type}}}}: {module[:80]} has {str(values)[:80]}; make "
            "it with starling_train.snr"
        )
    return values


def _type_of(module: str) -> str:
    if layer_of(module) is None:
        return module
    return type_of(re.sub(r"(?<=experts)\.\d+\.", ".*.", name_in_layer(module)))


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


def _is_score(value: object) -> bool:
    # an integer of hundreds of digits has no float
    return value is None or type(value) is float or (type(value) is int and abs(value) < 10**300)
