"""A run as somebody watches it: in a real terminal (tmux)."""

import os
import re
import shutil
import subprocess
import sys
import time

import pytest

SECONDS = 240


@pytest.fixture
def terminal(tmp_path):
    """Runs a line in a terminal of 110 columns; gives all that was on the screen while it ran, and at the end."""
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    tmux = ["tmux", "-S", str(tmp_path / "tmux")]

    def run(line: str) -> tuple[list[str], str]:
        environment = [
            f"-e{name}={os.environ[name]}" for name in ("PYTHONPATH", "STARLING_CACHE") if name in os.environ
        ]
        shell = f"cd {tmp_path}; {line}; echo ended with $?; sleep {SECONDS}"
        subprocess.run([*tmux, "new-session", "-d", *environment, "-x", "110", "-y", "60", shell], check=True)
        screens, until = [], time.monotonic() + SECONDS
        while time.monotonic() < until:
            shown = subprocess.run(
                [*tmux, "capture-pane", "-p", "-S", "-200"], capture_output=True, text=True, check=True
            )
            screens.append(shown.stdout)
            if "ended with " in shown.stdout:
                return screens, shown.stdout
            time.sleep(0.1)
        pytest.fail(f"not ended after {SECONDS} s:\n{screens[-1]}")

    yield run
    subprocess.run([*tmux, "kill-server"], capture_output=True, check=False)


@pytest.mark.slow
def test_a_run_in_a_terminal(toy, terminal):
    """What tests without a terminal do not see: our bar, and no bar of another, which would tear it apart."""
    screens, last = terminal(f"{sys.executable} -m starling_train ppo +recipe=debug run_dir=run")
    lines = [line.rstrip() for line in last.splitlines() if line.strip()]
    assert lines[-1] == "ended with 0" and lines[-2].startswith("report: "), last
    assert re.match(r"debug: /.*/policy on CPU, \d+ threads?; files go to run$", lines[0]), last
    assert any(re.search(r"step 1/2 \S*[━╸╺]+ reward -?\d", screen) for screen in screens), screens[-2]
    assert sum(line.startswith("step 2/2 ") for line in lines) == 1, last  # the bar, once, and not torn apart
    for noise in ("Loading weights", "Writing model", "it/s", "WARNING", "Warning"):
        assert not any(noise in screen for screen in screens), noise
    assert [line.split()[0] for line in lines[-9:-1]] == [
        "time", "memory", "trained", "model", "checkpoints", "metrics", "samples", "report:",
    ]  # fmt: skip
