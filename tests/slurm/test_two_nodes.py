"""`slurm/ppo.sbatch` on a real Slurm with two nodes: the toy ends, and goes on after a requeue, a time limit, a second
signal in the middle of saving, and a killed rank."""

import os
import signal
import time
from pathlib import Path

import pytest
from fault_jobs import JOBS, outcome, saved_step, step
from jobs import ENDED, STEPS, Job, settings, training

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def straight(slurm, toy, tmp_path_factory) -> Path:
    job = training(slurm, tmp_path_factory.mktemp("straight"))
    facts = job.wait_until_finished()
    assert (facts["NumNodes"], facts["Restarts"]) == ("2", "0")
    return job.run


def test_the_toy_ends_on_two_nodes(straight):
    assert step(straight) == STEPS and (straight / "report.html").exists()
    logs = straight.parent / "logs"
    assert {path.name for path in logs.glob("*/node_*")} == {"node_0", "node_1"}
    said = [path.read_text() for path in logs.glob("*/node_*/*/attempt_0/0/stdout.log")]
    assert len(said) == 2 and sum("ZeRO stage 2" in text for text in said) == 1


@pytest.mark.parametrize(
    "command,says",
    [("scontrol requeue", "SIGTERM: the state is being saved"), ("scancel --signal=USR1", "after some progress")],
)
def test_a_requeued_job_goes_on_exactly(slurm, straight, tmp_path, command, says):
    """SIGUSR1 to the step, which the script of the job does not hear of, is what `scancel` without --batch does."""
    job = training(slurm, tmp_path)
    job.wait_until(lambda: step(job.run) >= 2)
    slurm.run(*command.split(), job.number)
    job.wait_until(lambda: says in job.out())
    facts = job.wait_until_finished()
    assert facts["Restarts"] == "1"
    assert "resumed after step" in job.out()  # without checkpoints between steps: the signal saved it
    assert outcome(job.run) == outcome(straight)


def test_a_job_at_its_time_limit_goes_on_exactly(slurm, straight, tmp_path):
    """Slurm looks every 30 s, so the first process is held until the signal is there."""
    job = training(slurm, tmp_path, "--time=1", "--signal=B:USR1@1", timeout_s=150)
    job.wait_until(lambda: step(job.run) >= 2)
    first = job.worker(0)
    first.send_signal(signal.SIGSTOP)
    job.wait_until(lambda: "SIGUSR1: the state is being saved" in job.out())
    first.send_signal(signal.SIGCONT)
    facts = job.wait_until_finished()
    assert facts["Restarts"] == "1"
    assert "stopped before the time limit" in job.out() and "resumed after step" in job.out()
    assert outcome(job.run) == outcome(straight)


def test_more_signals_while_the_state_is_saved_lose_nothing(slurm, straight, tmp_path):
    """Rank 1 waits for rank 0, which is held, before it saves: both hear, or could hear, all of them."""
    job = training(slurm, tmp_path, timeout_s=150)
    job.wait_until(lambda: step(job.run) >= 2)
    first = job.worker(0)
    first.send_signal(signal.SIGSTOP)
    slurm.run("scancel", "--batch", "--signal=USR1", job.number)
    job.wait_until(lambda: "SIGUSR1: the state is being saved" in job.out())
    for _ in range(2):  # to the whole step; one within a second of the first would count as the same
        time.sleep(1.5)
        slurm.run("scancel", "--signal=TERM", job.number)
    assert saved_step(job.run) == 0
    first.send_signal(signal.SIGCONT)
    facts = job.wait_until_finished()
    assert facts["Restarts"] == "1"
    assert "state saved after step" in job.out() and "resumed after step" in job.out()
    assert "death signal" not in job.out()  # torchrun's, which ends its processes
    assert outcome(job.run) == outcome(straight)


@pytest.mark.parametrize("rank", [1])
def test_a_killed_rank_ends_the_job_within_a_minute_and_it_goes_on(slurm, straight, tmp_path, rank):
    job = training(slurm, tmp_path, every=1)
    job.wait_until(lambda: saved_step(job.run) >= 2)
    began = time.monotonic()
    os.kill(job.worker(rank).pid, signal.SIGKILL)
    job.wait_until(lambda: "after some progress" in job.out(), seconds=60)
    took = time.monotonic() - began
    facts = job.wait_until_finished()
    assert facts["Restarts"] == "1" and took < 60
    print(f"a killed rank ended the job after {took:.1f} s")
    assert outcome(job.run) == outcome(straight)


def test_another_command_that_trains(slurm, toy, tmp_path):
    overrides = (*JOBS["rm"][1:], "cluster.zero_stage=1", "cluster.timeout_s=60")
    environment = settings(tmp_path, overrides, "COMMAND=rm RECIPE=toy_rm")
    job = Job(slurm, tmp_path, "ppo.sbatch", os.environ | environment)
    facts = job.wait_until_finished()
    assert facts["NumNodes"] == "2" and "rm on 2 nodes" in job.out() and "ZeRO stage 1" in job.out()
    assert (job.run / "reward" / "pytorch_model.bin").is_file()


def printing(slurm, folder: Path, processes: int, *options: str) -> Job:
    """slurm/ppo.sbatch with a Python that only says how many cores its node has for it."""
    python = folder / "python"
    python.write_text('#!/bin/sh\necho "node $SLURM_NODEID has $SLURM_CPUS_ON_NODE cores"\n')
    python.chmod(0o755)
    environment = settings(folder, (), f"PYTHON={python} PROCESSES_PER_NODE={processes}")
    job = Job(slurm, folder, "ppo.sbatch", os.environ | environment, *options)
    job.wait_until(lambda: job.state() in ENDED)
    return job


@pytest.mark.parametrize(
    "processes,cores,options", [(2, 1, ()), (3, 2, ("--gpus-per-node=2", "--cpus-per-gpu=1"))]
)  # fmt: skip
def test_fewer_cores_than_processes_are_refused(slurm, tmp_path, processes, cores, options):
    """Without GPUs Slurm gives a core a task."""
    job = printing(slurm, tmp_path, processes, *options)
    assert job.state() == "FAILED" and slurm.job(job.number)["Restarts"] == "0"
    refusals = [line for line in job.out().splitlines() if line.startswith("error: node ")]
    assert 1 <= len(refusals) <= 2  # the first to refuse ends the other
    assert all(f": {cores} core(s) for {processes} processes; ask for more" in line for line in refusals)
    assert "has" not in job.out().split() and "failed with exit code 2" in job.out()


@pytest.mark.parametrize("cores,options", [(16, ("--gpus-per-node=2",)), (8, ("--gpus-per-node=1",)), (1, ())])
def test_eight_cores_a_gpu_are_asked_for_and_reach_the_processes(slurm, tmp_path, cores, options):
    job = printing(slurm, tmp_path, 1, *options)
    assert job.state() == "COMPLETED", job.out()
    for node in (0, 1):
        assert f"node {node} has {cores} cores" in job.out()
