"""The `snr` command: its files, its options, and wrong input in one line."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

FILES = {
    "snr.json",
    "snr_results_model.json",
    "unfrozen.yaml",
    "target_modules.json",
    "heatmap.png",
}
DOWN = "model.layers.0.mlp.down_proj"


@pytest.fixture
def model(tmp_path, tiny_mistral):
    tiny_mistral(layers=4).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def files(path):
    return {entry.name for entry in path.iterdir()} if path.is_dir() else set()


def test_scan_select_compare_and_plot(run_command, model, tmp_path):
    done = run_command("snr", f"model.path={model}", "freeze.head=true")
    run = tmp_path / "runs" / "snr"
    assert done.returncode == 0, done.stderr
    assert files(run) == FILES
    assert "selected: 7 of 28 matrices" in done.stdout and str(run) in done.stdout
    scan = json.loads((run / "snr.json").read_text(), parse_constant=pytest.fail)
    spectrums = json.loads((run / "snr_results_model.json").read_text(), parse_constant=pytest.fail)
    assert len(scan) == 28
    assert {m: {key: r[key] for key in ("snr", "type")} for m, r in scan.items()} == spectrums
    patterns = yaml.safe_load((run / "unfrozen.yaml").read_text())["unfrozen_parameters"]
    assert len(patterns) == 8 and "^lm_head[.]weight$" in patterns
    assert len(json.loads((run / "target_modules.json").read_text())["target_modules"]) == 7

    # again: nothing to compute, the same files; other options on top
    again = run_command(
        "snr", f"model.path={model}", "freeze.head=true", "run_dir=runs/two",
        f"freeze.scan={run / 'snr.json'}", f"compare={run / 'snr_results_model.json'}", f"spectra=[{DOWN}]",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    two = tmp_path / "runs" / "two"
    assert files(two) == FILES | {"comparison.json", f"spectrum_{DOWN}.png"}
    assert (two / "snr.json").read_bytes() == (run / "snr.json").read_bytes()
    comparison = json.loads((two / "comparison.json").read_text())
    assert comparison["types"][-1] == {
        "type": "total", "matrices": 28, "first": 7, "second": 7, "both": 7, "correlation": None,
    }  # fmt: skip


def test_a_changed_checkpoint_and_a_damaged_one(run_command, model, tmp_path):
    arguments = ("snr", f"model.path={model}", "run_dir=out")
    assert run_command(*arguments).returncode == 0
    before = json.loads((tmp_path / "out" / "snr.json").read_text())
    (tmp_path / "out" / "notes.json").write_text("{}")  # not ours

    weights = model / "model.safetensors"
    tensors = load_file(weights)
    tensors[f"{DOWN}.weight"][0, 0] += 1
    save_file(tensors, weights)
    changed = run_command(*arguments)
    assert changed.returncode == 0 and f"1 matrices changed since the last scan, {DOWN} first" in changed.stdout
    after = json.loads((tmp_path / "out" / "snr.json").read_text())
    assert {m for m in before if before[m] != after[m]} == {DOWN}

    tensors[f"{DOWN}.weight"][3, 5] = torch.nan
    save_file(tensors, weights)
    damaged = run_command(*arguments)
    assert damaged.returncode == 2
    assert damaged.stderr.splitlines() == [damaged.stderr.strip()]
    assert f"model.safetensors: tensor {DOWN}.weight has nan or infinite values" in damaged.stderr
    # nothing that looks like a result, and nothing of others touched
    assert files(tmp_path / "out") == {"snr.partial.jsonl", "notes.json"}


def test_a_broken_checkpoint_leaves_no_earlier_result(run_command, model, tmp_path):
    arguments = ("snr", f"model.path={model}", "run_dir=out")
    assert run_command(*arguments).returncode == 0
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[:-1000])
    broken = run_command(*arguments)
    assert broken.returncode == 2 and "model.safetensors: truncated" in broken.stderr
    assert files(tmp_path / "out") == {"snr.partial.jsonl"}

    # what can be told from the settings is told before anything is touched; a NaN before anything is written
    (model / "model.safetensors").write_bytes(whole)
    assert run_command(*arguments).returncode == 0
    for wrong in ("model.path=nowhere", "compare=nothing.json"):
        assert run_command(*arguments, wrong).returncode == 2
        assert files(tmp_path / "out") == FILES
    tensors = load_file(model / "model.safetensors")
    tensors[f"{DOWN}.weight"][0, 0] = torch.nan
    save_file(tensors, model / "model.safetensors")
    plotted = run_command("snr", f"model.path={model}", "run_dir=new", "freeze.scan=out/snr.json", f"spectra=[{DOWN}]")
    assert plotted.returncode == 2 and f"tensor {DOWN}.weight has nan" in plotted.stderr.splitlines()[-1]
    assert not (tmp_path / "new").exists()


def test_a_training_run_keeps_its_own_scan(run_command, model, tmp_path):
    (tmp_path / "runs" / "toy").mkdir(parents=True)
    for name in ("metrics.jsonl", "snr.json"):
        (tmp_path / "runs" / "toy" / name).write_text("{}")
    done = run_command("snr", f"model.path={model}", "name=toy")
    assert done.returncode == 2 and "run_dir: runs/toy holds a training run" in done.stderr
    assert files(tmp_path / "runs" / "toy") == {"metrics.jsonl", "snr.json"}


def test_dry_run_needs_no_weights(run_command, model, tmp_path):
    (model / "model.safetensors").unlink()
    done = run_command("snr", f"model.path={model}", "dry_run=true", "freeze.top_percent=50")
    assert done.returncode == 0, done.stderr
    assert "would select 14 of 28 matrices" in done.stdout
    assert not (tmp_path / "runs").exists()
