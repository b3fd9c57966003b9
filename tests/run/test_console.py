import io
import os

import pytest
from rich.console import Console as RichConsole

from starling_train.config.fields import UserError
from starling_train.run.console import Console, duration, numbers


def test_duration_by_hand():
    assert [duration(s) for s in (0.4, 59.6, 3661)] == ["0:00:00", "0:01:00", "1:01:01"]


def test_numbers_that_are_there():
    row = {"reward/score_mean": 1.23456, "kl/reference": 0.5, "eval/score_mean": None}
    assert numbers(row) == "reward 1.235  KL 0.500"


def test_without_a_terminal_one_plain_line_per_step(capsys):
    with Console(steps=3) as console:
        console.phase("rollout")
        console.step({"step": 0, "eval/score_mean": -1.0})
        console.step(
            {"step": 1, "reward/score_mean": 2.0, "kl/reference": 0.25, "response/length_mean": 7.0}, left_s=61
        )
    assert capsys.readouterr().out.splitlines() == [
        "step 0/3  held-out -1.000",
        "step 1/3  reward 2.000  KL 0.250  length 7.0  left 0:01:01",
    ]


@pytest.mark.parametrize("width", [80, 110])
def test_step_and_times_are_seen_however_long_the_numbers_are(width):
    console = Console(steps=1000)
    watched = "reward 2.070  KL 3.606  length 22.7  held-out 2.162"
    console._progress.update(console._task, completed=12, numbers=watched, phase="writing the model")
    written = io.StringIO()
    RichConsole(file=written, width=width, color_system=None).print(console._progress.get_renderable())
    line = written.getvalue().rstrip("\n")
    assert line.startswith("step   12/1000 ") and len(line) <= width and "\n" not in line
    assert "0:00:00" in line and "-:--:--" in line and watched[:12] in line


def test_a_run_whose_output_nobody_reads_ends_as_one_that_is_stopped(monkeypatch):
    """A user's error, after which the state is saved; what is said then goes nowhere."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        console = Console(steps=3)
        with pytest.raises(UserError, match=r"^stdout: nobody reads it any more; run the same command to go on"):
            console.say("a line")
        console.say("the state is saved")
        print("and more", file=stdout, flush=True)
