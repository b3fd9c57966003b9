"""SIGTERM, Ctrl-C and SIGUSR1 at any moment: the state is saved within the grace time, and the run goes on exactly."""

import signal
import time

import pytest
from fault_jobs import RUNS, saved_step, step, wait_for_moment

NEVER = ["checkpoint.every=0"]  # but for the signal and the end: what is saved, the signal saved
GRACE_S = 60


def stopped_and_started_again(job, folder, seed, record):
    number = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)[seed % 3]
    process = job.start(folder, *NEVER, f"checkpoint.grace_s={GRACE_S}")
    wait_for_moment(job, process, "training", seed)
    last = step(process.run)
    began = time.monotonic()
    process.send(number)
    process.send(number)  # a terminal and a launcher deliver one signal twice
    code = process.wait(GRACE_S)
    took = time.monotonic() - began
    if code == 0:
        assert (process.run / "report.html").exists()  # it was at its end already
    else:
        assert code == 128 + number, process.error()
        assert saved_step(process.run) >= last and not (process.run / "summary.json").exists()
        assert process.error() == ""
        assert not list(process.run.rglob(".*"))
    record("done", f"{job.name} {'stopped' if code else 'had ended before it was to be stopped'}")
    record("seconds", took)
    job.finish(folder, *NEVER)


@pytest.mark.parametrize("seed", [2, 4])
def test_a_stopped_run_goes_on_exactly(job, tmp_path, seed, record_property):
    stopped_and_started_again(job, tmp_path, seed, record_property)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(200, 200 + RUNS * 2 // 3))
def test_every_stopped_run_goes_on_exactly(job, tmp_path, seed, record_property):
    stopped_and_started_again(job, tmp_path, seed, record_property)


@pytest.mark.parametrize("second", [signal.SIGUSR1, signal.SIGINT])
def test_a_second_signal_ends_the_run_at_once(job, tmp_path, second):
    """In the update, which the first signal lets end; nothing is saved by the second."""
    process = job.start(tmp_path, *NEVER)
    process.wait_until(lambda: step(process.run) >= 0)
    process.send(signal.SIGSTOP)  # both arrive before it can act on one of them
    process.send(signal.SIGTERM)
    time.sleep(1.2)
    process.send(second)
    process.send(signal.SIGCONT)
    assert process.wait() in (128 + signal.SIGTERM, 128 + second)
    job.finish(tmp_path, *NEVER)
