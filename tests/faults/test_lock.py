"""Only one process may own a run directory."""

import errno
import fcntl
import os
import signal
import socket

import pytest
from fault_jobs import EVERY_STEP, step

from starling_train.config.fields import UserError
from starling_train.config.ppo import PpoConfig
from starling_train.files.lock import RunLock
from starling_train.run.directory import RunDirectory


def test_a_second_process_is_told_who_has_it_and_a_crash_frees_it(job, tmp_path):
    first = job.start(tmp_path, *EVERY_STEP)
    first.wait_until(lambda: step(first.run) >= 0)
    first.send(signal.SIGSTOP)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    second = job.start(elsewhere, *EVERY_STEP, f"run_dir={first.run}")
    assert second.wait() == 2
    assert second.error().count("\n") == 1
    assert f"is in use by process {first.pid} on {socket.gethostname()}" in second.error()
    first.send(signal.SIGKILL)
    first.wait()
    assert (first.run / ".lock").exists()
    job.finish(tmp_path, *EVERY_STEP)


def test_a_dry_run_and_a_finished_one_need_no_lock(job, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in job.straight.rglob("*")}
    for arguments in ([], ["dry_run=true"]):
        process = job.start(tmp_path, *EVERY_STEP, f"run_dir={job.straight}", *arguments)
        assert process.wait() == 0, process.error()
    fresh = job.start(tmp_path, "dry_run=true")
    assert fresh.wait() == 0 and not fresh.run.exists()
    assert {path: path.stat().st_mtime_ns for path in job.straight.rglob("*")} == before


def test_two_that_begin_at_once(tmp_path):
    """Neither directory was there when they started: the second is told when it wants to write."""
    first, second, third = (RunDirectory(PpoConfig(run_dir=str(tmp_path / "run"))) for _ in range(3))
    with first.owned(), second.owned():
        first.create()
        with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
            second.create()
    with third.owned(), pytest.raises(UserError, match="in use"), second.owned():
        pass
    late = RunDirectory(PpoConfig(run_dir=str(tmp_path / "late")))
    with late.owned():
        other = RunDirectory(PpoConfig(run_dir=str(tmp_path / "late")))
        with other.owned():
            other.create()
        with pytest.raises(UserError, match="meanwhile"):
            late.create()


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, capsys):
    def unsupported(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    lock = RunLock(tmp_path / ".lock")
    lock.acquire()
    assert lock.held and "cannot be locked" in capsys.readouterr().err
    lock.release()
