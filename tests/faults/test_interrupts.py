"""Ctrl-C before and beside the steps of a run: every command ends with one line and exit code 130."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
from fault_jobs import JOBS, step
from fault_process import Started

from starling_train.cli import main

ROOT = Path(__file__).parents[2]
LINE = "stopped by a signal; run the same command to go on\n"
TOY = {
    **JOBS,
    "compare": ["+recipe=debug"],
    "evaluate": ["+recipe=toy", "suites=[function_calling]"],
    "laser": ["+recipe=toy_laser"],
    "plan": ["+recipe=toy"],
    "score": ["+recipe=toy", "input=in.jsonl", "output=out.jsonl"],
    "serve_reward": ["+recipe=toy", "port=0"],
    "snr": ["+recipe=toy"],
    "export": ["output=model"],
}
WITH_RUNTIME = ["ppo", "rm", "dpo", "evaluate", "laser", "score", "serve_reward"]


def interrupt_twice_in(module: str, owner: str, function: str) -> None:
    """Send Ctrl-C, as a terminal and a launcher do, when a function is called. For `prepare`."""
    holder = import_module(module)
    holder = getattr(holder, owner) if owner else holder
    plain = getattr(holder, function)

    def interrupted(*arguments, **named):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(*arguments, **named)

    setattr(holder, function, interrupted)


def ended(command, folder, *place):
    (folder / "in.jsonl").write_text("")
    before = {path.name for path in folder.iterdir()}
    run = [] if command in ("score", "serve_reward") else ["run_dir=run"]
    process = Started(command, [*run, *TOY[command]], folder, prepare=partial(interrupt_twice_in, *place))
    assert process.wait() == 130, process.error()
    left = {path.name for path in folder.iterdir()} - before - {"stdout", "stderr"}
    return process.error(), left


@pytest.mark.parametrize("command", TOY)
def test_ctrl_c_while_a_command_reads_its_settings(toy, tmp_path, command):
    assert ended(command, tmp_path, "starling_train.cli.main", "", "typed") == (LINE, set())


@pytest.mark.parametrize("command", WITH_RUNTIME)
def test_ctrl_c_while_a_command_starts(toy, tmp_path, command):
    """Nothing half-written is left, nor a lock."""
    error, left = ended(command, tmp_path, "starling_train.run.runtime", "Runtime", "__init__")
    assert error == LINE and not list(tmp_path.rglob(".*")) and left <= {"run"}


def test_ctrl_c_while_snr_scans(toy, tmp_path):
    error, left = ended("snr", tmp_path, "starling_train.selection.scans", "", "scan")
    assert error == LINE and left <= {"run"}


def test_ctrl_c_between_tries_of_laser_keeps_them_and_it_goes_on(toy, tmp_path):
    arguments = ["run_dir=run", "+recipe=toy_laser", "laser.samples=64"]
    process = Started("laser", arguments, tmp_path)
    process.wait_until(lambda: "1/" in process.out())
    process.send(signal.SIGINT)
    assert process.wait() == 130 and process.error() == ""
    assert process.out().splitlines()[-1].startswith("stopped by a signal after ")
    again = Started("laser", arguments, tmp_path)
    assert again.wait() == 0, again.error()


def test_ignored_from_outside_it_stays_ignored(toy, tmp_path):
    """As under `nohup ... &` in a script."""
    process = Started("plan", TOY["plan"], tmp_path, prepare=ignored_and_sent)
    assert process.wait() == 0 and process.error() == "", process.error()


def ignored_and_sent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    plain = main.typed

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return plain(*arguments)

    main.typed = interrupted


@pytest.mark.slow
def test_ctrl_c_under_torchrun_saves_once_and_ends_all(toy, tmp_path):
    """The terminal sends it to the whole group, and torchrun again to its processes."""
    port = "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"
    own = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    main = "from torch.distributed.run import main; main()"
    line = [sys.executable, "-c", own + main, "--nproc_per_node=2", *port, "-m", "starling_train.ppo", "run_dir=run",
            *JOBS["ppo"], "algorithm.steps=200", "checkpoint.every=0"]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(line, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, process_group=0)  # fmt: skip
    try:
        end = time.monotonic() + 120
        while step(tmp_path / "run") < 1:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        out, error = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0 and out.count("state saved after step ") == 1
    assert "KeyboardInterrupt" not in error and len(list((tmp_path / "run" / "checkpoints").glob("step_*"))) == 1
