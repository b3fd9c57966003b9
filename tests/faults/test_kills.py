"""SIGKILL at any moment, the writing of a checkpoint included: the run goes on as if nothing had been."""

import random
import signal

import pytest
from fault_jobs import EVERY_STEP, RUNS, wait_for_moment

KINDS = ("training", "saving", "deleting", "training", "saving", "starting", "ending")


def killed_and_started_again(job, folder, seed, record):
    """Kill one to three starts of a run, then let it end."""
    for number in range(random.Random(seed).randint(1, 3)):
        process = job.start(folder, *EVERY_STEP)
        wait_for_moment(job, process, KINDS[(seed + number) % len(KINDS)], seed)
        process.send(signal.SIGKILL)
        code = process.wait()
        assert code in (-signal.SIGKILL, 0), process.error()
        record("done", f"{job.name} {where(process.run) if code else 'had ended before it was to be killed'}")
    job.finish(folder, *EVERY_STEP)


def where(run) -> str:
    """What the kill interrupted, by what it left."""
    left = {path.name for path in run.rglob(".*")}
    writes = {".partial": "half written", ".old": "half deleted"}
    found = sorted(
        f"{what} {'checkpoint' if name.startswith('.step') else name.removesuffix(end)}"
        for end, what in writes.items()
        for name in left
        if name.endswith(end)
    )
    return f"killed with {', '.join(found) or 'no write under way'}"


@pytest.mark.parametrize("seed", [1])
def test_a_killed_run_comes_out_the_same(job, tmp_path, seed, record_property):
    killed_and_started_again(job, tmp_path, seed, record_property)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(100, 100 + RUNS))
def test_every_killed_run_comes_out_the_same(job, tmp_path, seed, record_property):
    killed_and_started_again(job, tmp_path, seed, record_property)
