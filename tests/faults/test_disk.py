"""A disk that is full, that vanishes, or has no room from the start: one line, and what was saved is intact."""

import os
import resource
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch
from fault_jobs import EVERY_STEP, saved_step, step
from torch import nn

from starling_train.config.fields import UserError
from starling_train.config.sections import CheckpointConfig, OptimConfig
from starling_train.files import disk
from starling_train.training.local import LocalOptimizer


def check_stopped(process, reason: str) -> None:
    assert process.wait() == 2, process.error()
    lines = process.error().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and reason in lines[0]
    assert not list(process.run.rglob(".*"))
    assert not (process.run / "summary.json").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here (needs root)")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("after", [0, 2])
def test_a_full_disk_stops_the_run_and_nothing_is_lost(job, small_disk, after):
    process = job.start(small_disk, *EVERY_STEP)
    process.wait_until(lambda: step(process.run) >= after)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    check_stopped(process, "No space left on device")
    reached = saved_step(process.run)
    filler.unlink()
    job.finish(small_disk, *EVERY_STEP)
    assert reached >= after - 1


def test_a_limit_on_files_stops_the_run_and_nothing_is_lost(job, tmp_path):
    process = job.start(tmp_path, *EVERY_STEP)
    process.wait_until(lambda: saved_step(process.run) >= 1)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1000, 1000))
    check_stopped(process, "File too large")
    assert saved_step(process.run) >= 1
    job.finish(tmp_path, *EVERY_STEP)


def test_a_run_directory_that_vanishes_stops_the_run(job, tmp_path):
    process = job.start(tmp_path, *EVERY_STEP)
    process.wait_until(lambda: saved_step(process.run) >= 1)
    process.run.rename(tmp_path / "moved")
    assert process.wait() == 2, process.error()
    assert process.error().count("\n") == 1 and "No such file or directory" in process.error()
    shutil.rmtree(process.run, ignore_errors=True)
    (tmp_path / "moved").rename(process.run)
    job.finish(tmp_path, *EVERY_STEP)


@pytest.mark.parametrize(
    "dtype,expected", [(torch.float32, 3 * 12 * 1000 + 4000), (torch.bfloat16, 3 * 14 * 1000 + 2000)]
)
def test_room_is_asked_for_by_hand(tmp_path, monkeypatch, dtype, expected):
    """1000 parameters: weight, two moments and, for bfloat16, a master copy; two kept, one being written, the model."""
    model = nn.Linear(1000, 1, bias=False, dtype=dtype)
    trainable = dict(model.named_parameters())
    optimizer = LocalOptimizer(model, (trainable, {}), OptimConfig())

    def check(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
        disk.check_room(tmp_path / "new" / "run", CheckpointConfig(keep=2), optimizer.saved_bytes(), model)

    check(expected)
    with pytest.raises(UserError, match=r"run_dir: .*checkpoint\.keep"):
        check(expected - 1)
    (tmp_path / "new" / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "new" / "run" / "checkpoints" / "file").write_bytes(bytes(5000))  # is replaced
    check(expected - 5000)
    assert os.listdir(tmp_path) == ["new"]


def test_the_optimizer_s_size_is_that_of_its_tensors():
    for dtype in (torch.float32, torch.bfloat16):
        model = nn.Linear(1000, 1, bias=False, dtype=dtype)
        trainable = dict(model.named_parameters())
        optimizer = LocalOptimizer(model, (trainable, {}), OptimConfig())
        model(torch.ones(1000, dtype=dtype)).sum().backward()
        optimizer.step()
        saved = [*optimizer.trainable_tensors().values(), *optimizer.state_tensors().values()]
        held = sum(tensor.numel() * tensor.element_size() for tensor in saved)
        assert 0 <= held - optimizer.saved_bytes() <= 8  # the count of steps
