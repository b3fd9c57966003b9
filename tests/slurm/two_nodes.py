"""A Slurm of two nodes on this machine, in a folder of its own: real daemons, real jobs, loopback only. Needs root."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
# proctrack: signals and the final SIGKILL reach everything below a step, as with cgroups, which may not be there.
# cred_expire: a requeued job starts after so many seconds, instead of 120.
# config_overrides, Gres: 16 CPUs and two GPUs on paper; what nobody opens are the device files.
# StateSaveLocation and the like are in the folder, so that another Slurm on the machine is left alone.
CONFIGURATION = """
ClusterName=starling
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2
ReturnToService=2
GresTypes=gpu
SlurmdParameters=config_overrides
KillWait=30
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=16 Gres=gpu:2 RealMemory=1
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=16 Gres=gpu:2 RealMemory=1
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Why there can be no Slurm here, or nothing. Installs Debian's packages where they are missing."""
    if os.geteuid():
        return "Slurm's daemons need root"
    if _missing() and shutil.which("apt-get"):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "timeout": 120, "check": False}
        subprocess.run(["apt-get", "update", "-qq"], **quiet)
        own = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "slurm-wlm", "munge"]
        subprocess.run(install, env=own, **quiet)
    return f"Slurm is not installed and could not be: {', '.join(_missing())} missing" if _missing() else ""


def _missing() -> list[str]:
    return [name for name in PROGRAMS if not shutil.which(name)]


class TwoNodes:
    """n1 and n2, from `start` to `stop`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen] = []

    def start(self) -> None:
        """Raises TimeoutError if no job can be run within half a minute."""
        (self.folder / "state").mkdir()
        ports = _free_ports(3)
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(folder=self.folder, ports=ports))
        gpus = [f"NodeName=n1,n2 Name=gpu File=/dev/{device}\n" for device in ("null", "zero")]
        (self.folder / "gres.conf").write_text("".join(gpus))
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        files = {"key-file": key} | {f"{name}-file": self.folder / f"munge.{name}" for name in ("pid", "log", "seed")}
        options = [f"--{name}={path}" for name, path in files.items()]
        # force: munged does not want to run as root, nor in a folder below /tmp
        self._daemon("munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", *options)
        _wait_for((self.folder / "munge.socket").exists, 10)
        self._daemon("slurmctld", "-D")
        for name in ("n1", "n2"):
            self._daemon("slurmd", "-D", "-N", name)
        _wait_for(lambda: self.run("srun", "--immediate=5", "-N2", "-n2", "true", check=False).returncode == 0, 30)

    def stop(self) -> None:
        self.run("scancel", "--user=root", check=False)
        time.sleep(1)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def run(
        self, *command: str, check: bool = True, environment: dict[str, str] | None = None, **more
    ) -> subprocess.CompletedProcess:
        whole = (environment or {}) | self.environment
        return subprocess.run(command, env=whole, capture_output=True, text=True, timeout=60, check=check, **more)

    def job(self, number: str) -> dict[str, str]:
        """What Slurm says of a job: JobState, Restarts, ExitCode and more."""
        text = self.run("scontrol", "show", "job", "-o", number).stdout
        return dict(field.split("=", 1) for field in text.split() if "=" in field)

    def _daemon(self, *command: str) -> None:
        with (self.folder / "daemons.log").open("a") as log:
            self._daemons.append(
                subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)
            )


def _free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for place in held:
        place.bind(("127.0.0.1", 0))
    ports = [place.getsockname()[1] for place in held]
    for place in held:
        place.close()
    return ports


def _wait_for(condition, seconds: float) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError
        time.sleep(0.2)
