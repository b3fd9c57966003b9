"""slurm/ppo.sbatch on a real Slurm with two nodes: it ends, goes on after a requeue, a time limit and a killed rank."""

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from fault_jobs import outcome, saved_step, step

sys.path.insert(0, str(Path(__file__).parent))
from two_nodes import TwoNodes, why_not

ROOT = Path(__file__).parents[2]
STEPS = 6
OVERRIDES = [
    f"algorithm.steps={STEPS}", "algorithm.prompts_per_step=8", "data.eval_prompts=8", "evaluation.every=6",
    "evaluation.suites=[]", "reward.max_length=512", "cluster.device=cpu", "cluster.zero_stage=2",
]  # fmt: skip
ENVIRONMENT = """
PYTHON={python}
RECIPE=toy
RUN_DIR={folder}/run
OVERRIDES=({overrides})
LOG_DIR={folder}/logs
PROCESSES_PER_NODE=1
GRACE_S=60
RENDEZVOUS_HOST=127.0.0.1
RENDEZVOUS_PORT=
REWARD_SERVER=no
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 GLOO_SOCKET_IFNAME=lo
"""
pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def slurm():
    if reason := why_not():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: a socket's path has at most 108 characters
    nodes = TwoNodes(folder)
    try:
        nodes.start()
    except (TimeoutError, OSError):
        nodes.stop()
        pytest.skip(f"Slurm does not start here; see {folder}/daemons.log")
    yield nodes
    nodes.stop()


class Job:
    """slurm/ppo.sbatch with the toy, submitted from a folder with an env.sh of its own."""

    def __init__(self, slurm: TwoNodes, folder: Path, *options: str, timeout_s: int = 60, every: int = 0):
        overrides = [*OVERRIDES, f"cluster.timeout_s={timeout_s}", f"checkpoint.every={every}"]
        text = ENVIRONMENT.format(python=sys.executable, folder=folder, overrides=" ".join(overrides))
        (folder / "env.sh").write_text(text)
        own = f"--export=ALL,STARLING_ROOT={ROOT},STARLING_ENV={folder / 'env.sh'}"
        command = ["sbatch", "--parsable", own, f"--output={folder / 'out'}", *options, str(ROOT / "slurm/ppo.sbatch")]
        self.slurm, self.folder, self.run = slurm, folder, folder / "run"
        self.number = slurm.run(*command, cwd=folder).stdout.strip()

    def out(self) -> str:
        return (self.folder / "out").read_text() if (self.folder / "out").exists() else ""

    def wait_until(self, condition, seconds: float = 100) -> None:
        ends = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < ends, f"{self.slurm.job(self.number)}\n{self.out()[-5000:]}"
            time.sleep(0.1)

    def wait_until_finished(self) -> dict[str, str]:
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.wait_until(lambda: self.slurm.job(self.number)["JobState"] in ended)
        facts = self.slurm.job(self.number)
        assert facts["JobState"] == "COMPLETED", self.out()[-5000:]
        return facts

    def worker(self, rank: int) -> psutil.Process:
        """The process of a rank, wherever it runs."""
        for process in psutil.process_iter():
            try:
                line = process.cmdline()
                if f"run_dir={self.run}" in line and "starling_train.ppo" in line and "--nnodes=2" not in line:
                    variables = process.environ()
                    if variables.get("RANK") == str(rank) and "LOCAL_RANK" in variables:
                        return process
            except psutil.Error:  # it has ended meanwhile
                continue
        raise AssertionError(f"no process of rank {rank}")


@pytest.fixture(scope="module")
def straight(slurm, toy, tmp_path_factory) -> Path:
    job = Job(slurm, tmp_path_factory.mktemp("straight"))
    facts = job.wait_until_finished()
    assert (facts["NumNodes"], facts["Restarts"]) == ("2", "0")
    return job.run


def test_the_toy_ends_on_two_nodes(straight):
    assert step(straight) == STEPS and (straight / "report.html").exists()
    logs = straight.parent / "logs"
    assert {path.name for path in logs.glob("*/node_*")} == {"node_0", "node_1"}
    said = [path.read_text() for path in logs.glob("*/node_*/*/attempt_0/0/stdout.log")]
    assert len(said) == 2 and sum("ZeRO stage 2" in text for text in said) == 1


def test_a_requeued_job_goes_on_exactly(slurm, straight, tmp_path):
    job = Job(slurm, tmp_path)
    job.wait_until(lambda: step(job.run) >= 2)
    slurm.run("scontrol", "requeue", job.number)
    job.wait_until(lambda: "SIGTERM: the state is being saved" in job.out())
    facts = job.wait_until_finished()
    assert facts["Restarts"] == "1"
    assert "resumed after step" in job.out()  # without checkpoints between steps: the signal saved it
    assert outcome(job.run) == outcome(straight)


def test_a_job_at_its_time_limit_goes_on_exactly(slurm, straight, tmp_path):
    """Slurm looks every 30 s, so the first process is held until the signal is there."""
    job = Job(slurm, tmp_path, "--time=1", "--signal=B:USR1@1", timeout_s=150)
    job.wait_until(lambda: step(job.run) >= 2)
    first = job.worker(0)
    first.send_signal(signal.SIGSTOP)
    job.wait_until(lambda: "SIGUSR1: the state is being saved" in job.out())
    first.send_signal(signal.SIGCONT)
    facts = job.wait_until_finished()
    assert facts["Restarts"] == "1"
    assert "stopped before the time limit" in job.out() and "resumed after step" in job.out()
    assert outcome(job.run) == outcome(straight)


@pytest.mark.parametrize("rank", [1])
def test_a_killed_rank_ends_the_job_within_a_minute_and_it_goes_on(slurm, straight, tmp_path, rank):
    job = Job(slurm, tmp_path, every=1)
    job.wait_until(lambda: saved_step(job.run) >= 2)
    began = time.monotonic()
    os.kill(job.worker(rank).pid, signal.SIGKILL)
    job.wait_until(lambda: "after some progress" in job.out(), seconds=60)
    took = time.monotonic() - began
    facts = job.wait_until_finished()
    assert facts["Restarts"] == "1" and took < 60
    print(f"a killed rank ended the job after {took:.1f} s")
    assert outcome(job.run) == outcome(straight)
