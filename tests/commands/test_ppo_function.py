"""Runs whose reward is a Python function, with a column of the data as its ground truth."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

VERIFIER = """
import json, os
def score(conversations, truth, weight=1.0, *, seen=None):
    if seen:
        with open(f"{seen}-{os.environ.get('RANK', '0')}", "a") as file:
            for conversation, value in zip(conversations, truth):
                file.write(json.dumps([conversation[0]["content"], value]) + "\\n")
    return [
        None if int(value) == 3 else weight * (len(conversation[-1]["content"]) + int(value))
        for conversation, value in zip(conversations, truth)
    ]
"""
SEEN = ["+reward.arguments.seen=seen", "reward.scale=none", "reward.probe=false"]
FUNCTION = ["reward=function", "reward.function=verify.py:score", "+reward.arguments.weight=0.5"]


@pytest.fixture
def here(tmp_path):
    """A directory with prompts, each with the truth in a column, and the verifier."""
    prompts = [{"prompt": f"What is {i} and {i}?", "truth": str(i)} for i in range(20)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    (tmp_path / "verify.py").write_text(VERIFIER)
    return tmp_path


def arguments(small_run, *more: str) -> list[str]:
    own = [one for one in small_run if not one.startswith("reward.")]
    return [*own, "data.path=prompts.jsonl", "algorithm.steps=2", "evaluation.every=2", *FUNCTION, *more]


def lines(path) -> list:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_two_steps_with_a_column_as_truth(here, small_run, run_command):
    done = run_command("ppo", *arguments(small_run, *SEEN))
    assert done.returncode == 0, done.stderr
    assert "scored by <code>verify.py:score</code>" in (here / "run" / "report.html").read_text()
    assert "not planned" not in done.stdout
    metrics, seen = lines(here / "run" / "metrics.jsonl"), lines(here / "seen-0")
    assert len(seen) == 2 + 6 + 8 + 8 + 6  # the check's, the held-out prompts', the steps'
    assert all(question == f"What is {truth} and {truth}?" for question, truth in seen)
    threes = [sum(truth == "3" for _, truth in seen[start:end]) for start, end in ((8, 16), (16, 24))]
    assert [row["reward/unscored"] for row in metrics[1:]] == threes
    assert [row["eval/unscored"] for row in (metrics[0], metrics[2])] == [0, 0] or "3" in dict(seen[2:8]).values()
    skipped = lines(here / "run" / "skipped.jsonl") if sum(threes) else []
    assert [row["reason"] for row in skipped] == ["score"] * sum(threes)
    samples = [row for row in lines(here / "run" / "samples.jsonl") if row["score"] is not None]
    for row in samples:
        truth = int(re.findall(r"\d+", row["prompt"])[0])
        assert row["score"] == 0.5 * (len(row["response"]) + truth)
    again = run_command("ppo", *arguments(small_run, *SEEN))
    assert again.returncode == 0 and "is finished" in again.stdout


def test_an_error_of_the_function_ends_the_run_with_the_state_saved(here, small_run, run_command):
    # the calls before: the check's, the evaluation's, step 1's
    fault = """    with open("calls", "a") as file:
        file.write("x")
    if os.path.getsize("calls") > 3:
        raise ValueError("no such truth")
    if seen:"""
    (here / "verify.py").write_text(VERIFIER.replace("    if seen:", fault))
    done = run_command("ppo", *arguments(small_run))
    assert done.returncode == 2, (done.stdout, done.stderr)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "verify.py:score raised ValueError: no such truth" in line and "(verify.py:" in line
    assert (here / "run" / "checkpoints" / "step_000001").is_dir()
    (here / "verify.py").write_text(VERIFIER)
    repaired = run_command("ppo", *arguments(small_run))
    assert repaired.returncode == 0, repaired.stderr
    assert "verify.py:score is not the one that earlier steps were scored with" in repaired.stderr
    assert [row["step"] for row in lines(here / "run" / "metrics.jsonl")] == [0, 1, 2]


def test_its_own_traceback_is_shown_on_request(here, small_run, run_command):
    (here / "verify.py").write_text("def score(conversations, truth):\n    return [truth[0][99]]\n")
    base = [one for one in arguments(small_run) if "weight" not in one]
    plain, debug = run_command("ppo", *base), run_command("ppo", *base, "debug=true")
    assert plain.returncode == 2 and len(plain.stderr.splitlines()) == 1
    assert plain.stderr.startswith("error: reward.function: verify.py:score raised IndexError: ")
    assert not (here / "run").exists()
    assert 'verify.py", line 2, in score' in debug.stderr and "IndexError" in debug.stderr


def test_it_is_described_without_a_run(here, small_run, run_command):
    done = run_command("ppo", *arguments(small_run, "dry_run=true"))
    assert done.returncode == 0, done.stderr
    assert "reward     verify.py:score (function)" in done.stdout and "14 training prompts" in done.stdout


def test_scores_of_a_file(here, run_command):
    rows = [{"prompt": "How many?", "response": "x" * i, "truth": str(i)} for i in range(1, 5)]
    (here / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    call = ["score", *FUNCTION, "input=asked.jsonl", "output=scores.jsonl", "cluster.device=cpu"]
    done = run_command(*call)
    assert done.returncode == 2 and "1 lines of asked.jsonl could not be scored, line 3 first" in done.stderr
    found = lines(here / "scores.jsonl")
    assert [row.get("score") for row in found] == [1.0, 2.0, None, 4.0] and "gave no score" in found[2]["error"]
    (here / "verify.py").write_text(VERIFIER + "# another text\n")
    assert "holds scores with another reward.function; delete" in run_command(*call).stderr


def test_the_reward_suite_of_evaluate(here, small_models, run_command):
    call = [
        "evaluate", f"model.path={small_models / 'policy'}", "suites=[reward]", *FUNCTION, "model.dtype=float32",
        "reward_suite.path=prompts.jsonl", "reward_suite.rows=5", "rollout.max_new_tokens=8", "cluster.device=cpu",
        "run_dir=out",
    ]  # fmt: skip
    done = run_command(*call)
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads((here / "out" / "evaluation.json").read_text())["results"]
    assert entry["result"]["answers"] == 5 and entry["result"]["unscored"] == 1
    assert "scored by verify.py:score" in done.stdout and "1 answers were not scored" in done.stdout


@pytest.mark.processes
def test_each_of_two_processes_calls_it_on_its_own_share(here, small_run, run_command):
    alone = run_command("ppo", *arguments(small_run, "run_dir=alone", "reward.scale=none"))
    assert alone.returncode == 0, alone.stderr
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "starling_train.ppo"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, *torchrun, *arguments(small_run, "+reward.arguments.seen=seen", "reward.scale=none")],
        cwd=here, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    shares = [lines(here / f"seen-{rank}")[2:] for rank in (0, 1)]
    assert [len(share) for share in shares] == [3 + 4 + 4 + 3] * 2
    assert all(question == f"What is {truth} and {truth}?" for share in shares for question, truth in share)
    pairs = zip(lines(here / "run" / "metrics.jsonl"), lines(here / "alone" / "metrics.jsonl"), strict=True)
    for row, expected in list(pairs)[:2]:
        for key in {"eval/score_mean", "reward/score_mean", "reward/unscored"} & expected.keys():
            assert row.get(key) == pytest.approx(expected.get(key), rel=1e-4)
