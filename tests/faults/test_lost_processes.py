"""Several processes are one run; one of them is killed, or the network between two hosts is cut, and it goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from fault_jobs import EVERY_STEP, UNTIMED, command_of, outcome, step

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": ""}
pytestmark = pytest.mark.processes


def launch(
    folder: Path, launcher: list[str], *more: str, environment: dict | None = None, job: str = "ppo"
) -> subprocess.Popen:
    """A launcher with its own process group, output to a file beside the run."""
    where = ["cluster.device=cpu", "cluster.threads=1", "run_dir=run"]
    command, its_own = command_of(job)
    arguments = ["-m", f"starling_train.{command}", *its_own, *EVERY_STEP, *where, *more]
    own = {key: value for key, value in (environment or ENVIRONMENT).items() if value}
    with (folder / "log").open("a") as log:
        return subprocess.Popen(
            [*launcher, *arguments], cwd=folder, env=own, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def two(port: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]


def wait_for_step(folder: Path, wanted: int, process: subprocess.Popen) -> None:
    ends = time.monotonic() + 120
    while step(folder / "run") < wanted:
        assert process.poll() is None and time.monotonic() < ends, (folder / "log").read_text()[-3000:]
        time.sleep(0.05)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    assert launch(folder, two(29711)).wait(timeout=200) == 0, (folder / "log").read_text()[-3000:]
    return folder / "run"


def numbers(run: Path) -> list[dict[str, float]]:
    """The metrics that do not depend on time and on how many processes there are."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    untimed = [{k: v for k, v in row.items() if not k.startswith(UNTIMED) and v is not None} for row in rows]
    return [{k: v for k, v in row.items() if k != "policy/ratio_first"} for row in untimed]


@pytest.mark.parametrize("stage", [0, 3])
def test_a_run_in_two_processes_is_that_of_one(straight, tmp_path, stage):
    """From prompts to weights: each draws with the random numbers of its prompts' places in the whole batch."""
    launcher = [sys.executable] if stage == 0 else two(29716)
    more = [] if stage == 0 else [f"cluster.zero_stage={stage}"]
    assert launch(tmp_path, launcher, *more).wait(timeout=200) == 0, (tmp_path / "log").read_text()[-3000:]
    found, expected = numbers(tmp_path / "run"), numbers(straight)
    assert [row.keys() for row in found] == [row.keys() for row in expected]
    for mine, other in zip(found, expected, strict=True):
        for key, value in other.items():
            assert mine[key] == pytest.approx(value, abs=1e-4, rel=1e-4), (mine["step"], key)
    says = (tmp_path / "log").read_text()
    assert ("ZeRO stage 3" in says) == (stage == 3)


@pytest.mark.parametrize("job", ["rm", "rloo", "grpo"])
def test_other_runs_in_two_processes_are_those_of_one(tmp_path, job):
    """Of groups: three prompts on two processes, with all their responses."""
    found = []
    for name, launcher, more in (("one", [sys.executable], []), ("two", two(29717), ["cluster.zero_stage=2"])):
        folder = tmp_path / name
        folder.mkdir()
        process = launch(folder, launcher, *more, job=job)
        assert process.wait(timeout=200) == 0, (folder / "log").read_text()[-3000:]
        found.append(numbers(folder / "run"))
    assert "ZeRO stage 2" in (tmp_path / "two" / "log").read_text()
    for mine, other in zip(*found, strict=True):
        assert mine.keys() == other.keys()
        for key, value in other.items():
            assert mine[key] == pytest.approx(value, abs=1e-4, rel=1e-4), (mine["step"], key)


def test_a_killed_process_ends_the_run_and_it_goes_on(straight, tmp_path):
    process = launch(tmp_path, two(29712), "cluster.timeout_s=20")
    wait_for_step(tmp_path, 2, process)
    worker = psutil.Process(process.pid).children()[-1]
    began = time.monotonic()
    worker.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) != 0
    assert time.monotonic() - began < 60
    log = (tmp_path / "log").read_text()
    assert "Signal 9 (SIGKILL)" in log or "another process of the run is gone" in log
    assert launch(tmp_path, two(29713)).wait(timeout=200) == 0, (tmp_path / "log").read_text()[-3000:]
    assert outcome(tmp_path / "run") == outcome(straight)


def in_space(name: str, *command: str) -> list[str]:
    return ["ip", "netns", "exec", name, *command]


@pytest.fixture
def hosts():
    """Two network namespaces with an address each and a cable between them."""
    names = ("starling_a", "starling_b")
    if os.geteuid() or shutil.which("ip") is None or subprocess.run(["ip", "netns", "add", names[0]]).returncode:
        pytest.skip("network namespaces need root and the rights to make them")
    try:
        subprocess.run(["ip", "netns", "add", names[1]], check=True)
        subprocess.run(["ip", "link", "add", "cable_a", "type", "veth", "peer", "name", "cable_b"], check=True)
        for place, name in enumerate(names):
            end = f"cable_{name[-1]}"
            subprocess.run(["ip", "link", "set", end, "netns", name], check=True)
            subprocess.run(in_space(name, "ip", "addr", "add", f"10.77.0.{place + 1}/24", "dev", end), check=True)
            for device in (end, "lo"):
                subprocess.run(in_space(name, "ip", "link", "set", device, "up"), check=True)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def on_both(hosts, folder: Path, port: int, *more: str) -> list[subprocess.Popen]:
    found = []
    for place, name in enumerate(hosts):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
        where = ["--node_rank", str(place), "--master_addr", "10.77.0.1", "--master_port", str(port)]
        environment = ENVIRONMENT | {"GLOO_SOCKET_IFNAME": f"cable_{name[-1]}"}
        found.append(launch(folder, in_space(name, *torchrun, *where), *more, environment=environment))
    return found


def test_a_cut_link_ends_both_sides_with_a_message_and_the_run_goes_on(hosts, straight, tmp_path):
    sides = on_both(hosts, tmp_path, 29714, "cluster.timeout_s=10")
    wait_for_step(tmp_path, 2, sides[0])
    subprocess.run(in_space(hosts[0], "ip", "link", "set", "cable_a", "down"), check=True)
    try:
        codes = [side.wait(timeout=120) for side in sides]
    finally:
        for side in sides:
            if side.poll() is None:
                os.killpg(side.pid, signal.SIGKILL)
    log = (tmp_path / "log").read_text()
    assert all(codes), codes
    for rank in (0, 1):
        assert f"error: rank {rank}: another process of the run is gone" in log
    subprocess.run(in_space(hosts[0], "ip", "link", "set", "cable_a", "up"), check=True)
    for side in on_both(hosts, tmp_path, 29715):
        assert side.wait(timeout=200) == 0, (tmp_path / "log").read_text()[-3000:]
    assert outcome(tmp_path / "run") == outcome(straight)
