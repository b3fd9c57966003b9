"""Jobs of `slurm/` with the toy, on a Slurm of two nodes on this machine."""

import os
import sys
import time
from pathlib import Path

import psutil
from two_nodes import TwoNodes

ROOT = Path(__file__).parents[2]
STEPS = 6
PPO = (
    f"algorithm.steps={STEPS}", "algorithm.prompts_per_step=8", "data.eval_prompts=8", "evaluation.every=6",
    "evaluation.suites=[]", "reward.max_length=512", "cluster.device=cpu", "cluster.zero_stage=2",
)  # fmt: skip
# an extension that DeepSpeed compiles for two minutes is kept from one session of tests to the next
ENVIRONMENT = """
PYTHON={python}
COMMAND=ppo
RECIPE=toy
RUN_DIR={folder}/run
OVERRIDES=({overrides})
LOG_DIR={folder}/logs
PROCESSES_PER_NODE=1
GRACE_S=60
RENDEZVOUS_HOST=127.0.0.1
RENDEZVOUS_PORT=
EXTENSIONS_DIR=~/.cache/starling_train/slurm_extensions
REWARD_SERVER=no
REWARD_ADDRESS={folder}/run.reward
REWARD_HOST=127.0.0.1
REWARD_WAIT_S=300
MODEL_DIR={folder}/model
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 GLOO_SOCKET_IFNAME=lo PYTHONPATH={root}
{more}
"""
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def settings(folder: Path, overrides: tuple[str, ...], more: str = "") -> dict[str, str]:
    """Write a folder's env.sh; gives the variables with which the scripts of `slurm/` find it.

    Output goes into the folder as well: SBATCH_OUTPUT is stronger than what the scripts say.
    """
    text = ENVIRONMENT.format(python=sys.executable, folder=folder, root=ROOT, overrides=" ".join(overrides), more=more)
    (folder / "env.sh").write_text(text)
    own = {"STARLING_ROOT": ROOT, "STARLING_ENV": folder / "env.sh", "SBATCH_OUTPUT": folder / "%x.out"}
    return {name: str(value) for name, value in own.items()}


class Job:
    """One script of `slurm/`, submitted: its number, and what it says."""

    def __init__(self, slurm: TwoNodes, folder: Path, script: str, environment: dict[str, str], *options: str):
        self.slurm, self.folder, self.run = slurm, folder, folder / "run"
        command = ["sbatch", "--parsable", *options, str(ROOT / "slurm" / script)]
        self.number = slurm.run(*command, cwd=folder, environment=environment).stdout.strip()

    def out(self) -> str:
        """What the jobs of the folder have said."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("*.out")))

    def state(self) -> str:
        return self.slurm.job(self.number)["JobState"]

    def wait_until(self, condition, seconds: float = 400) -> None:
        ends = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < ends, f"{self.slurm.job(self.number)}\n{self.out()[-5000:]}"
            time.sleep(0.1)

    def wait_until_finished(self) -> dict[str, str]:
        self.wait_until(lambda: self.state() in ENDED)
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


def training(slurm: TwoNodes, folder: Path, *options: str, timeout_s: int = 60, every: int = 0) -> Job:
    """slurm/ppo.sbatch with the toy's PPO on two nodes."""
    environment = settings(folder, (*PPO, f"cluster.timeout_s={timeout_s}", f"checkpoint.every={every}"))
    return Job(slurm, folder, "ppo.sbatch", os.environ | environment, *options)
