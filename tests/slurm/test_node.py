"""What `slurm/node.sh` refuses before it starts anything: run alone, with made-up answers of the system's programs."""

import os
import subprocess
from pathlib import Path

import pytest

NODE = Path(__file__).parents[2] / "slurm" / "node.sh"


@pytest.fixture
def start(tmp_path):
    """Runs node.sh on a node of two; its Python only prints how it was called."""

    def program(name: str, text: str) -> Path:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def run(cores: int, address: str = "10.0.0.7", **variables: str) -> subprocess.CompletedProcess:
        program("nproc", f'[ -z "$OMP_NUM_THREADS" ] && echo {cores} || echo 1')  # as coreutils' own
        program("getent", f"echo {address} n1" if address else "exit 2")
        program("hostname", "echo n1")
        python = program("python", 'shift 2; echo "started: $*"')
        own = {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHON": str(python), "PROCESSES_PER_NODE": "8",
            "SLURM_NODEID": "0", "SLURM_JOB_NUM_NODES": "2", "NODE_LOGS": str(tmp_path / "logs"), "COMMAND": "ppo",
            "RENDEZVOUS": "n1:20000", "RENDEZVOUS_ID": "1.0", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        return subprocess.run(
            ["bash", str(NODE), "+recipe=small"], env=own | variables, capture_output=True, text=True, check=False
        )

    return run


def test_it_starts_with_a_core_for_each_process(start):
    done = start(8, SLURM_CPUS_ON_NODE="8")
    assert done.returncode == 0, done.stderr
    assert "started: --nnodes=2 --nproc-per-node=8" in done.stdout


@pytest.mark.parametrize("cores,given", [(1, "1"), (7, "64"), (64, "2"), (4, "")])
def test_fewer_cores_than_processes_are_refused_in_one_line(start, cores, given):
    """A step may see fewer than Slurm has given (cgroups), or more (no enforcement)."""
    done = start(cores, **({"SLURM_CPUS_ON_NODE": given} if given else {}))
    fewest = min(cores, int(given or cores))
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert (
        done.stderr.startswith(f"error: node n1: {fewest} core(s) for 8 processes; ")
        and "--cpus-per-gpu" in done.stderr
    )


@pytest.mark.parametrize("address", ["127.0.1.1", "127.0.0.1", "::1"])
def test_a_name_that_other_nodes_cannot_reach_is_refused_in_one_line(start, address):
    done = start(8, address)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert address in done.stderr and "GLOO_SOCKET_IFNAME" in done.stderr
    assert start(8, address, GLOO_SOCKET_IFNAME="ib0").returncode == 0
    assert start(8, address, SLURM_JOB_NUM_NODES="1").returncode == 0


def test_a_name_without_an_address_is_left_to_gloo(start):
    assert start(8, "").returncode == 0
