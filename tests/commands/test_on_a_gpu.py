"""Commands on a GPU, where there is one, beside the same on the CPU."""

import json

import pytest
import torch
from safetensors.torch import load_file

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_a_scan_gives_the_cpus_figures(run_command, small_models, tmp_path):
    found = {}
    for device in ("cpu", "cuda"):
        done = run_command("snr", f"model.path={small_models / 'policy'}", f"device={device}", f"output={device}.json")
        assert done.code == 0, done.error
        found[device] = json.loads((tmp_path / f"{device}.json").read_text())
    for name, record in found["cpu"].items():
        assert found["cuda"][name]["snr"] == pytest.approx(record["snr"], rel=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_first_step_is_the_cpus(run_command, small_run, tmp_path, dtype):
    """Random numbers are drawn on the CPU: the same answers but where rounding decides, so means agree loosely."""
    rows, weights = {}, {}
    for device in ("cpu", "cuda"):
        settings = [f"cluster.device={device}", f"model.dtype={dtype}", f"run_dir={device}", "algorithm.steps=1"]
        done = run_command("ppo", *small_run, *settings)
        assert done.code == 0, done.error
        rows[device] = json.loads((tmp_path / device / "metrics.jsonl").read_text().splitlines()[-1])
        weights[device] = load_file(tmp_path / device / "policy" / "model.safetensors")
    for key in ("reward/score_mean", "response/length_mean", "policy/entropy"):
        assert rows["cuda"][key] == pytest.approx(rows["cpu"][key], rel=0.1, abs=0.1)
    assert rows["cuda"]["policy/ratio_first"] < 0.05
    assert weights["cuda"].keys() == weights["cpu"].keys()
