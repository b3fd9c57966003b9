"""The journal of a scan: records are kept as they come, so that an interrupted scan continues where it
stopped.

A record is found again by the content of its matrix, not by its name: a matrix that has changed is
scanned again.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from starling_train.models.scan_records import Record, from_json, to_json


def content_hash(matrix: Tensor) -> str:
    """Hash of dtype, shape and bytes of a contiguous CPU tensor: 128 bits of SHA-256 in hex."""
    digest = hashlib.sha256(f"{matrix.dtype} {tuple(matrix.shape)} ".encode())
    digest.update(matrix.view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


class Journal:
    """Records by (content, dialect), appended to a file of one JSON object per line.

    `earlier` adds records of a finished scan. `changed` names the modules whose content differs from what
    an earlier scan saw. A line that a kill cut short is dropped.
    """

    def __init__(self, path: Path, earlier: Iterable[Record] = ()) -> None:
        self.path = path
        self.changed: list[str] = []
        known = [*(r for r in earlier if r.content and r.snr is not None), *_read(path)]
        self._by_content = {(record.content, record.dialect): record for record in known}
        self._contents = {record.module: record.content for record in known}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(_line(record) for record in known))
        self._file = path.open("a")

    def find(self, record: Record, content: str, dialect: str) -> Record | None:
        """The earlier result for a matrix with this content, under the name, type and shape of `record`."""
        if self._contents.get(record.module, content) != content:
            self.changed.append(record.module)
        found = self._by_content.get((content, dialect))
        return found and replace(found, module=record.module, type=record.type, shape=record.shape)

    def add(self, record: Record) -> None:
        """Appends a finished record. Flushed at once, so that a killed process loses at most one line."""
        self._file.write(_line(record))
        self._file.flush()


def _line(record: Record) -> str:
    return json.dumps({"module": record.module} | to_json(record), allow_nan=False) + "\n"


def _read(path: Path) -> list[Record]:
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:  # cut short by a kill
            continue
        records.append(from_json(values.pop("module"), values))
    return records
