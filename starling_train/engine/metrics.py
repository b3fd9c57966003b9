"""`metrics.jsonl` and `samples.jsonl`, and the optional tracker."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class JsonLines:
    """An append-only file of JSON objects with a `step`. A step that is in the file already is not written again.

    A resumed run repeats the steps since its checkpoint, with the same numbers: they are passed over. A last line
    that a kill cut in half is removed when the file is opened.
    """

    def __init__(self, path: Path):
        self._path = path
        complete = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
        lines = complete.splitlines()
        if path.exists() and path.stat().st_size != len(complete) + bool(complete):
            with path.open("rb+") as file:
                file.truncate(len(complete) + bool(complete))
        self._last = json.loads(lines[-1])["step"] if lines else -1

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append the rows of one step in one write; NaN and infinities become null, as strict JSON wants."""
        new = [row for row in rows if row["step"] > self._last]
        if new:
            with self._path.open("a") as file:
                file.write("".join(json.dumps(strict(row), allow_nan=False) + "\n" for row in new))
            self._last = new[-1]["step"]


def strict(row: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


class NoTracker:
    """Tracks nothing."""

    id: str | None = None

    def log(self, metrics: dict[str, Any]) -> None: ...

    def finish(self) -> None: ...


class WandbTracker:
    """Weights & Biases; `id` continues a run after a resume. API keys are left to wandb's own login."""

    def __init__(self, mode: str, name: str, run_dir: Path, config: dict[str, Any], run_id: str | None):
        import wandb

        self._run = wandb.init(
            project="starling_train", name=name, dir=run_dir, config=config, id=run_id, resume="allow", mode=mode
        )
        self.id = self._run.id

    def log(self, metrics: dict[str, Any]) -> None:
        self._run.log(strict(metrics), step=metrics["step"])

    def finish(self) -> None:
        self._run.finish()


def tracker(
    mode: str, name: str, run_dir: Path, config: dict[str, Any], run_id: str | None
) -> NoTracker | WandbTracker:
    """The tracker that `logging.wandb` asks for. Raises ImportError with pip's name if wandb is not installed."""
    return NoTracker() if mode == "disabled" else WandbTracker(mode, name, run_dir, config, run_id)
