"""A run as a kill after its first checkpoint leaves it."""

import json
import shutil
from pathlib import Path


def cut_after_the_first_step(run: Path, again: Path) -> None:
    """Copy a finished run of two steps to `again`, without what came after the first."""
    shutil.copytree(run, again)
    for done in ("policy", "checkpoints/step_000002"):
        shutil.rmtree(again / done)
    for name in ("summary.json", "report.html"):
        (again / name).unlink()
    for name in ("metrics.jsonl", "samples.jsonl", "cases.jsonl"):
        if not (again / name).exists():
            continue  # no cases, where no suite has any
        lines = (again / name).read_text().splitlines(keepends=True)
        (again / name).write_text("".join(line for line in lines if json.loads(line)["step"] < 2))
