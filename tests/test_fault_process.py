"""The processes of tests: what they are forked from, and what comes back from them."""

import signal
from importlib.util import find_spec

import pytest
from fault_process import PRELOAD, Started


@pytest.mark.parametrize("name", PRELOAD)
def test_what_is_imported_ahead_is_there(name):
    assert find_spec(name)


def test_a_wrong_command_line_comes_back_as_from_a_shell(run_command, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = run_command("compare", "+recipe=toy")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: WORLD_SIZE: ") and done.stderr.count("\n") == 1


def test_a_kill_has_the_code_that_a_shell_gives(tmp_path):
    process = Started("serve_reward", ["--help"], tmp_path)
    process.send(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
