"""DPO in several real processes against one: the same losses and weights, under DeepSpeed too."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from test_processes import compare, run

pytestmark = pytest.mark.processes
run = partial(run, script=Path(__file__).parent / "dpo_processes.py")
STEPS = 4


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """One process."""
    out = tmp_path_factory.mktemp("alone") / "one.json"
    run(out, 1, 0, "sigmoid", STEPS)
    return out


def check(out: Path, found: dict, alone: Path) -> None:
    compare(found["metrics"], json.loads(alone.read_text())["metrics"])
    assert found["metrics"][0]["dpo/pairs"] == 7 and found["metrics"][-1]["eval/reward_margin"] != 0
    mine, plain = (torch.load(path.with_suffix(".state"), weights_only=True) for path in (out, alone))
    for part in ("trainable", "optimizer"):
        assert mine[part].keys() == plain[part].keys()
        for name, tensor in plain[part].items():
            torch.testing.assert_close(mine[part][name], tensor, atol=1e-5, rtol=1e-3, msg=name)


def test_two_processes_take_the_steps_of_one(alone, tmp_path):
    """Five prompts do not divide by two."""
    out = tmp_path / "two.json"
    check(out, run(out, 2, 0, "sigmoid", STEPS), alone)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_takes_the_steps_of_one_process(alone, tmp_path, stage):
    pytest.importorskip("deepspeed")
    out = tmp_path / "zero.json"
    check(out, run(out, 2, stage, "sigmoid", STEPS), alone)


def test_a_run_goes_on_with_another_number_of_processes_and_another_stage(alone, tmp_path):
    pytest.importorskip("deepspeed")
    out, metrics = tmp_path / "hop.json", []
    for world, stage, steps in ((2, 2, 2), (1, 0, 1), (2, 3, 1)):
        found = run(out, world, stage, "sigmoid", steps, after=len(metrics))
        metrics += [{k: v for k, v in row.items() if not k.startswith("eval/")} for row in found["metrics"]]
    metrics[-1] = found["metrics"][-1]
    check(out, found | {"metrics": metrics}, alone)
