"""Checkpoints, metrics and the run directory, as files."""

import json
from dataclasses import asdict

import pytest
import torch

from starling_train.config.fields import UserError
from starling_train.config.ppo import PpoConfig
from starling_train.files.identity import Identity
from starling_train.files.json_lines import JsonLines
from starling_train.run.checkpoints import Checkpoints
from starling_train.run.directory import RunDirectory
from starling_train.run.state import TrainState

BASE = Identity("base")


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((2, 3), value), "b": torch.full((1,), value, dtype=torch.bfloat16)}


def test_checkpoints_come_back_and_only_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, base=BASE)
    assert checkpoints.newest() is None
    for step in (1, 2, 3):
        checkpoints.save(
            tensors(step), tensors(-step), TrainState(step=step, algorithm={"kl": {"coefficient": 0.1 * step}})
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000002", "step_000003"]
    found = checkpoints.newest()
    assert found.state == TrainState(step=3, algorithm={"kl": {"coefficient": 0.1 * 3}})
    assert all(torch.equal(found.trainable[k], v) for k, v in tensors(3).items())
    assert all(torch.equal(found.optimizer[k], v) for k, v in tensors(-3).items())


def test_a_pinned_checkpoint_stays_until_another_is(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, base=BASE)
    checkpoints.pinned = 0
    for step in (0, 1, 2):
        checkpoints.save(tensors(step), tensors(-step), TrainState(step=step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000000", "step_000002"]
    again = Checkpoints(tmp_path, keep=1, base=BASE)
    assert again.newest().state.step == 2
    again.verify(0)
    assert torch.equal(again.at(0).trainable["w"], torch.zeros(2, 3))
    again.pinned = 2
    again.save(tensors(3), tensors(-3), TrainState(step=3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000002", "step_000003"]
    (tmp_path / "step_000002" / "optimizer.safetensors").unlink()
    with pytest.raises(UserError, match=r"step_000002: optimizer.safetensors is missing; put the file back, and run"):
        again.verify(2)


def test_what_a_guard_stopped_is_finished_whatever_is_asked_for(tmp_path):
    config = PpoConfig(run_dir=str(tmp_path))
    run = RunDirectory(config)
    run.create()
    run.write("summary.json", json.dumps({"finished": True, "steps": 4, "guard": {"stopped": True}}))
    run.write("report.html", "<html></html>")
    assert run.is_finished()
    run.write("summary.json", json.dumps({"finished": True, "steps": 4, "guard": {"stopped": False}}))
    assert not run.is_finished()


@pytest.mark.parametrize("name", ["trainable.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(tmp_path, capsys, name, damage):
    checkpoints = Checkpoints(tmp_path, keep=2, base=BASE)
    for step in (1, 2):
        checkpoints.save(tensors(step), tensors(step), TrainState(step=step))
    path = tmp_path / "step_000002" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "flip":
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[:-1])
    else:
        path.unlink()
    assert checkpoints.newest().state.step == 1
    assert "step_000002" in capsys.readouterr().err


def test_another_base_model_is_refused(tmp_path):
    Checkpoints(tmp_path, 2, BASE).save(tensors(1), tensors(1), TrainState(step=1))
    with pytest.raises(UserError, match=r"model\.path"):
        Checkpoints(tmp_path, 2, Identity("other")).newest()


def test_half_written_checkpoints_are_ignored(tmp_path):
    Checkpoints(tmp_path, 2, BASE).save(tensors(1), tensors(1), TrainState(step=1))
    (tmp_path / ".step_000002.partial").mkdir()
    assert Checkpoints(tmp_path, 2, BASE).newest().state.step == 1


def test_metrics_go_on_without_gap_or_repeat(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = JsonLines(path)
    for step in range(4):
        log.write([{"step": step, "x": 1.0 / (step + 1)}])
    before = path.read_text()
    path.write_text(before + '{"step": 4, "x"')  # killed while writing
    again = JsonLines(path)
    for step in (2, 3):  # repeated since the last checkpoint
        again.write([{"step": step, "x": 9.0}])
    assert path.read_text() == before
    again.write([{"step": 4, "x": float("nan"), "y": float("inf")}])
    rows = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[-1] == {"step": 4, "x": None, "y": None}


def test_a_file_cut_in_its_first_line_starts_again(tmp_path):
    (tmp_path / "m").write_text('{"step": 0, "x"')
    JsonLines(tmp_path / "m").write([{"step": 0, "x": 1}])
    assert (tmp_path / "m").read_text() == '{"step": 0, "x": 1}\n'


def test_a_run_directory_refuses_other_settings_and_takes_harmless_ones(tmp_path):
    config = PpoConfig(run_dir=str(tmp_path / "run"))
    run = RunDirectory(config)
    assert not run.path.exists()
    run.create()
    config.evaluation.every = 7
    config.algorithm.steps = 2000
    RunDirectory(config)
    config.optim.learning_rate = 1e-3
    config.algorithm.kl.target = 6.0
    with pytest.raises(UserError, match=r"optim\.learning_rate, algorithm\.kl\.target"):
        RunDirectory(config)


def test_finished_means_all_steps_that_are_asked_for(tmp_path):
    config = PpoConfig(run_dir=str(tmp_path))
    run = RunDirectory(config)
    run.create()
    assert not run.is_finished()
    run.write("summary.json", json.dumps({"finished": True, "steps": 1000}))
    assert not run.is_finished()  # killed before the report: a rerun writes it
    run.write("report.html", "<html></html>")
    assert run.is_finished()
    config.algorithm.steps = 1001
    assert not RunDirectory(config).is_finished()


def test_the_written_configuration_is_the_one_that_ran(tmp_path):
    import yaml

    config = PpoConfig(run_dir=str(tmp_path))
    RunDirectory(config).create()
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == asdict(config)
