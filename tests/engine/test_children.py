"""Commands side by side: a failure is named, a signal reaches all."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from starling_train.config import UserError
from starling_train.engine.children import Child, run

ROOT = Path(__file__).parents[2]


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


def test_a_signal_ends_all_of_them(tmp_path):
    script = (
        "import sys; from pathlib import Path; from starling_train.engine.children import Child, run\n"
        "made = [Child(n, ['http.server', '0', '--bind', '127.0.0.1'], Path(n)) for n in ('a', 'b')]\n"
        "run(made, 2, lambda line: print(line, flush=True))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert [process.stdout.readline() for _ in range(2)] == ["a: started\n", "b: started\n"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert sorted(process.stdout.read().splitlines()) == ["a: ended with code -15", "b: ended with code -15"]
