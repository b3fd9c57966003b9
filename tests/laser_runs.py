"""Runs of `laser` on the toy, whole processes, and what must come out of them."""

import json

import pytest
from fault_process import Started

TOY = ["+recipe=toy", "laser.samples=48", "laser.held_out_percent=50"]
MARGIN = ["laser.measure=preference_margin"]
MATRICES = 14


def start(folder, *more: str) -> Started:
    folder.mkdir(exist_ok=True)
    return Started("laser", ["run_dir=run", *TOY, *more], folder)


def finish(folder, *more: str):
    """Run (on) to the end; gives the run's directory."""
    process = start(folder, *more)
    assert process.wait() == 0, process.error()
    assert process.error() == ""
    return process.run


def tries(run) -> list[dict]:
    text = (run / "tries.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def timeless(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def check_same(run, straight) -> None:
    assert timeless(tries(run)) == timeless(tries(straight))
    for name in ("model/model.safetensors", "start.json", "snr.json"):
        assert (run / name).read_bytes() == (straight / name).read_bytes(), name
    assert not list(run.rglob(".*")) and not (run / "accepted").exists()


def logged(run) -> int:
    log = run / "tries.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0
