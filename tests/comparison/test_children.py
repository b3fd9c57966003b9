"""Commands side by side: a failure is named, a signal reaches all."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from starling_train.comparison.children import Child, run
from starling_train.config.fields import UserError

ROOT = Path(__file__).parents[2]
STOPPED = "stopped by a signal; run the same command to go on"


def child(tmp_path, name, *arguments):
    return Child(name, list(arguments), tmp_path / f"{name}.log")


def test_all_run_and_what_they_print_is_kept(tmp_path):
    said = []
    (tmp_path / "in.json").write_text('{"a": 1}')
    made = [child(tmp_path, name, "json.tool", "--compact", str(tmp_path / "in.json")) for name in ("x", "y", "z")]
    run(made, 2, said.append)
    assert [(tmp_path / f"{name}.log").read_text() for name in ("x", "y", "z")] == ['{"a":1}\n'] * 3
    assert said.count("x: started") == said.count("x: done") == said.count("z: done") == 1


def test_a_failure_is_named_with_its_last_line_and_stops_the_rest(tmp_path):
    (tmp_path / "in.json").write_text("{")
    made = [child(tmp_path, name, "json.tool", str(tmp_path / "in.json")) for name in ("bad", "never")]
    with pytest.raises(UserError, match=r"compare: bad failed \(Expecting property name"):
        run(made, 1, lambda line: None)
    assert not (tmp_path / "never.log").exists()


@pytest.fixture
def started(tmp_path):
    """Two servers that run until they are told to end, and the process that looks after them."""
    script = (
        # where the tests run in the background, SIGINT is ignored from outside, and would stay so
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys; from pathlib import Path; from starling_train.comparison.children import Child, run\n"
        "made = [Child(n, ['http.server', '0', '--bind', '127.0.0.1'], Path(n)) for n in ('a', 'b', 'c')]\n"
        "run(made, 2, lambda line: print(line, flush=True))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("number,code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_all_of_them(started, number, code):
    assert [started.stdout.readline() for _ in range(2)] == ["a: started\n", "b: started\n"]
    started.send_signal(number)
    assert started.wait(30) == code
    *ends, last = started.stdout.read().splitlines()
    assert sorted(ends) == ["a: ended with code -15", "b: ended with code -15"]
    assert last == STOPPED
    assert started.stderr.read() == ""


def test_an_error_of_our_own_leaves_none_running(tmp_path):
    made = [child(tmp_path, name, "http.server", "0", "--bind", "127.0.0.1") for name in ("a", "b")]

    def say(line):
        if line.startswith("b:"):
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run(made, 2, say)
    assert [one.process.returncode for one in made] == [-15, -15]


def test_a_signal_that_comes_while_a_process_is_made_reaches_it(tmp_path, monkeypatch):
    from starling_train.comparison import children

    def start(one, start=children._start):
        made = start(one)
        signal.raise_signal(signal.SIGTERM)  # before it is in the list of those that run
        return made

    monkeypatch.setattr(children, "_start", start)
    said = []
    server = child(tmp_path, "server", "http.server", "0", "--bind", "127.0.0.1")
    with pytest.raises(SystemExit) as stopped:
        run([server, child(tmp_path, "never", "json.tool")], 1, said.append)
    assert stopped.value.code == 143 and said == ["server: started", "server: ended with code -15", STOPPED]


def test_an_ignored_signal_stays_ignored(tmp_path, monkeypatch):
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        (tmp_path / "in.json").write_text("{}")
        found = []
        run([child(tmp_path, "x", "json.tool", str(tmp_path / "in.json"))], 1,
            lambda line: found.append(signal.getsignal(signal.SIGUSR1)))  # fmt: skip
        assert set(found) == {signal.SIG_IGN}
    finally:
        signal.signal(signal.SIGUSR1, before)
