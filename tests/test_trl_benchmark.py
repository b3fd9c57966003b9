"""`benchmarks/against_trl.py --algorithm`, in miniature on this machine: both sides run, by turns."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.families]  # two minutes, of which TRL's side is most
SCRIPT = Path(__file__).parent.parent / "benchmarks" / "against_trl.py"
TINY = ["--shape", "toy", "--prompts", "2", "--group", "2", "--limit", "8", "--threads", "1", "--steps", "1"]


def ran(*arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(SCRIPT), "run", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("algorithm", "options", "selections"),
    [
        ("grpo", ["--epochs", "2", "--minibatches", "2"], ["1"]),
        ("rloo", ["--reward", "model", "--trl-batches", "4", "2"], ["everything"]),
    ],
)
def test_both_sides_do_their_steps(tmp_path, algorithm, options, selections):
    """Slow: processes that import torch and TRL, a pair for each selection, one more for each of TRL's batches."""
    pytest.importorskip("trl", reason="trl is in the test extra")
    out = tmp_path / "out.json"
    arguments = ["--algorithm", algorithm, *TINY, *options, "--trained", *selections, "--rounds", "1"]
    done = ran(*arguments, "--out", str(out))
    assert done.returncode == 0, done.stderr
    content = json.loads(out.read_text())
    assert [(one["trained"], one["side"]) for one in content["results"]] == [
        (selection, side) for selection in selections for side in ("ours", "trl")
    ]
    for one in content["results"]:
        assert len(one["steps_s"]) == 2 and one["peak_mb"] > 0 and one["threads"] == 1
        assert 1 <= one["mean_response"] <= 8
        assert all(seconds > 0 for seconds in one["phases_s"].values())
        assert one["samples_per_s"] == pytest.approx(4 / one["steps_s"][1])
    assert set(content["trl_batches"][selections[0]]) == ({"4", "2"} if algorithm == "rloo" else set())
    assert f"| {selections[0]} | ours / TRL |" in done.stdout and f"{algorithm}, 2 x 2 responses" in done.stdout


def test_the_profile_has_all_phases():
    """Slow: a process that imports torch."""
    done = ran("--algorithm", "grpo", *TINY, "--trained", "last", "--profile")
    assert done.returncode == 0, done.stderr
    heads = [line.split(",")[0] for line in done.stdout.splitlines() if " s in " in line]
    assert heads == ["rollout", "scoring", "update"] * 2
    assert "aten::mm" in done.stdout and "run_backward" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give the DIR"),
        (["DIR", "--profile"], "--profile and --group are of"),
        (["--algorithm", "grpo", "--trl-batches", "48"], "64 samples are not 1 mini-batches of n x 48"),
        (["--algorithm", "rloo", "--minibatches", "3"], "64 samples are not 3 mini-batches of n x 21"),
    ],
)
def test_what_does_not_fit_together_is_refused(arguments, said):
    """Slow: a process that imports torch."""
    done = ran(*arguments)
    assert done.returncode == 2 and said in done.stderr
