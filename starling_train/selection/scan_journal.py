"""The journal of a scan: records are kept as they come, so that an interrupted scan continues where it stopped.

A record is recognised by the content of its matrix, not by its name: a matrix that has changed is scanned again.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from starling_train.core import spectrum
from starling_train.files import json_lines
from starling_train.files.json_lines import Appender, to_line
from starling_train.files.whole import write_whole
from starling_train.selection.records import Record, from_json, is_record, read_records, to_json


def content_hash(matrix: Tensor) -> str:
    """Hash dtype, shape and bytes of a contiguous CPU tensor: 128 bits of SHA-256 in hex.

    `spectrum.VERSION` is part of it: results of an older version are not reused.
    """
    digest = hashlib.sha256(f"{spectrum.VERSION} {matrix.dtype} {tuple(matrix.shape)} ".encode())
    content: Any = matrix.view(torch.uint8).numpy()  # a buffer, which its types do not say
    digest.update(content)
    return digest.hexdigest()[:32]


# The file in which a run directory keeps the journal of its scan until the scan is finished.
JOURNAL = "snr.partial.jsonl"
SYNC_EVERY_S = 1.0


class ScanJournal:
    """Records by (content, dialect), appended to a file of JSON lines.

    `earlier` adds records of a finished scan. `changed` names the modules whose content differs from what an earlier
    scan
    saw: the oldest one, so that a scan which was interrupted after the change does not hide it. A line that a kill cut
    short is left out.
    """

    def __init__(self, path: Path, earlier: Iterable[Record] = ()) -> None:
        self.path = path
        self.changed: list[str] = []
        known = [*(r for r in earlier if r.content and r.snr is not None), *_read(path)]
        self._by_content = {(record.content, record.dialect): record for record in known}
        self._contents = {record.module: record.content for record in reversed(known)}
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = b"".join(dict.fromkeys(_line(record) for record in known))
        write_whole(path, lambda partial: partial.write_bytes(lines))  # a kill here must not cost what is done
        self._file = Appender(path, len(lines), SYNC_EVERY_S)

    @classmethod
    def of(cls, run: Path) -> "ScanJournal":
        """Open the journal of the run directory `run`, whose finished scan, if any, is the earlier one."""
        finished = run / "snr.json"
        return cls(run / JOURNAL, read_records(finished, "run_dir").values() if finished.is_file() else ())

    def find(self, record: Record, content: str, dialect: str) -> Record | None:
        """Find the earlier result for a matrix with this content, under the name, type and shape of `record`."""
        if self._contents.get(record.module, content) != content:
            self.changed.append(record.module)
        earlier = self._by_content.get((content, dialect))
        same = {key: getattr(record, key) for key in ("module", "type", "shape", "holder")}
        return earlier and replace(earlier, **same)

    def add(self, record: Record) -> None:
        """Append a finished record, whole: a kill afterwards does not lose it."""
        self._file.append(_line(record))


def _line(record: Record) -> bytes:
    return to_line({"module": record.module} | to_json(record))


def _read(path: Path) -> list[Record]:
    """Read the records of a journal; other lines, which a full disk may leave, are ignored."""
    return [from_json(row.pop("module"), row) for row in json_lines.read(path) if row and _is_stored(row)]


def _is_stored(values: dict[str, Any]) -> bool:
    if not is_record(values):
        return False
    return all(isinstance(values.get(k), t) for k, t in (("module", str), ("content", str), ("shape", list)))
