"""Runs whose reward is a sum: a reward model and a function with a column of the data as its ground truth."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from cut_run import cut_after_the_first_step

VERIFIER = """
def score(conversations, truth):
    return [
        None if int(value) == 3 else float(len(conversation[-1]["content"]) + int(value))
        for conversation, value in zip(conversations, truth)
    ]
"""
FUNCTION = ["+reward.terms.long.kind=function", "+reward.terms.long.function=verify.py:score"]
OWN = ["reward=terms", *FUNCTION, "+reward.terms.long.weight=0.25", "+reward.terms.long.scale=running"]
UNTIMED = ("time/", "throughput/", "memory/")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A directory with prompts, each with the truth in a column, and the verifier."""
    folder = tmp_path_factory.mktemp("terms")
    prompts = [{"prompt": f"What is {i} and {i}?", "truth": str(i)} for i in range(20)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    (folder / "verify.py").write_text(VERIFIER)
    return folder


@pytest.fixture
def run_here(here, run_command):
    return partial(run_command, cwd=here)


@pytest.fixture(scope="module")
def arguments(small_run, small_models) -> list[str]:
    """Of a run of two steps by a reward model of weight 2, scaled by itself, and the verifier."""
    model = ["kind=starling_7b", f"path={small_models / 'reward'}", "dtype=float32", "weight=2", "scale=running"]
    return [
        *(one for one in small_run if not one.startswith("reward.")), *OWN,
        *(f"+reward.terms.model.{one}" for one in model), "data.path=prompts.jsonl", "algorithm.steps=2",
        "evaluation.every=2", "checkpoint.every=1", "optim.learning_rate=0.01",
    ]  # fmt: skip


@pytest.fixture
def straight(here, run_here, arguments):
    """The run, made once."""
    if not (here / "run").exists():
        done = run_here("ppo", *arguments)
        assert done.returncode == 0, done.stderr
        (here / "said").write_text(done.stdout)
    return here / "run"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def untimed(path: Path) -> list[dict]:
    return [{key: value for key, value in row.items() if not key.startswith(UNTIMED)} for row in lines(path)]


def test_each_term_is_a_metric_and_their_sum_the_score(straight, here):
    first, *steps = lines(straight / "metrics.jsonl")
    assert steps[1]["eval/score_model"] != first["eval/score_model"]
    for row in steps:
        of_terms = {f"reward/terms/{name}_{what}" for name in ("model", "long") for what in ("mean", "std", "unscored")}
        assert of_terms <= row.keys()
        assert row["reward/unscored"] == row["reward/terms/long_unscored"] and row["reward/terms/model_unscored"] == 0
        if not row["reward/unscored"]:
            total = 2 * row["reward/terms/model_mean"] + 0.25 * row["reward/terms/long_mean"]
            assert row["reward/score_mean"] == pytest.approx(total, rel=1e-5)
    for row in lines(straight / "samples.jsonl"):
        if row["score"] is not None:
            assert row["score"] == pytest.approx(2 * row["score_model"] + 0.25 * row["score_long"])
            assert row["score_long"] == len(row["response"]) + int(row["prompt"].split()[2])
    missing = sum(row["reward/unscored"] for row in steps)
    left_out = lines(straight / "skipped.jsonl") if missing else []
    assert [row["terms"] for row in left_out] == [["long"]] * missing


def test_the_report_shows_the_terms(straight, here):
    page = (straight / "report.html").read_text()
    assert "scored by the sum of <code>verify.py:score</code> (long) and <code" in page
    assert "Terms of the reward" in page and "Held-out: score" not in page
    assert "not planned" not in (here / "said").read_text()


def test_the_checkpoint_has_the_moments_of_each_term(straight):
    state = json.loads((straight / "checkpoints" / "step_000002" / "state.json").read_text())["algorithm"]
    assert {"scores", "scores model", "scores long", "reward long"} <= state.keys()
    assert (
        state["scores model"]["count"]
        == 16
        == state["scores long"]["count"]
        + sum(row["reward/terms/long_unscored"] for row in lines(straight / "metrics.jsonl")[1:])
    )


def test_a_run_that_was_cut_goes_on_to_the_last_bit(straight, here, run_here, arguments):
    cut_after_the_first_step(straight, here / "again")
    done = run_here("ppo", *arguments, "run_dir=again")
    assert done.returncode == 0, done.stderr
    assert untimed(here / "again" / "metrics.jsonl") == untimed(straight / "metrics.jsonl")
    assert (here / "again" / "samples.jsonl").read_text() == (straight / "samples.jsonl").read_text()
    weights = "policy/model.safetensors"
    assert (here / "again" / weights).read_bytes() == (straight / weights).read_bytes()


def test_it_does_not_go_on_with_other_terms(straight, run_here, arguments):
    for more, key in (
        (["+reward.terms.short.kind=function", "+reward.terms.short.function=verify.py:score"], "reward.terms"),
        (["reward.terms.long.weight=1"], "reward.terms.long.weight"),
        (["~reward.terms.long"], "reward.terms"),
    ):
        done = run_here("ppo", *arguments, *more)
        assert done.returncode == 2, done.stdout
        (line,) = done.stderr.splitlines()
        assert f"holds a run with other settings ({key}" in line


def test_it_is_described_without_a_run(run_here, arguments, small_models):
    done = run_here("ppo", *arguments, "dry_run=true", "run_dir=none")
    assert done.returncode == 0, done.stderr
    path = small_models / "reward"
    assert "  long   0.25 x verify.py:score (function), by its own mean and deviation so far\n" in done.stdout
    assert f"  model  2 x {path} (starling_7b), by its own mean" in done.stdout
    assert "reward model model" in done.stdout  # of the memory plan
    plan = run_here("plan", *(one for one in arguments if not one.startswith("run_dir")))
    assert plan.returncode == 0 and "reward model model" in plan.stdout, plan.stderr


def test_scores_of_a_file(here, run_here, arguments):
    rows = [{"prompt": "How many?", "response": "x" * i, "truth": str(i)} for i in range(1, 5)]
    (here / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = [one for one in arguments if one.startswith(("reward", "+reward"))]
    call = ["score", *own, "input=asked.jsonl", "output=scores.jsonl", "cluster.device=cpu"]
    done = run_here(*call)
    assert done.returncode == 2 and "1 lines of asked.jsonl could not be scored, line 3 first" in done.stderr
    found = lines(here / "scores.jsonl")
    assert [row["terms"].get("long") for row in found] == [2.0, 4.0, None, 8.0]
    assert found[2]["error"].startswith("reward.terms.long.function: ") and "model" in found[2]["terms"]
    for row in (found[0], found[3]):
        assert row["score"] == 2 * row["terms"]["model"] + 0.25 * row["terms"]["long"]
    assert "another reward.terms; delete" in run_here(*call, "reward.terms.long.weight=1").stderr


def test_the_reward_suite_of_evaluate(here, run_here, arguments, small_models):
    own = [one for one in arguments if one.startswith(("reward", "+reward"))]
    done = run_here(
        "evaluate", f"model.path={small_models / 'policy'}", "suites=[reward]", *own, "model.dtype=float32",
        "reward_suite.path=prompts.jsonl", "reward_suite.rows=5", "rollout.max_new_tokens=8", "cluster.device=cpu",
        "run_dir=out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads((here / "out" / "evaluation.json").read_text())["results"]
    result = entry["result"]
    assert (result["answers"], result["unscored"]) == (5, 1) and result["terms"].keys() == {"long", "model"}
    assert "mean of the term long" in done.stdout and "scored by long and model" in done.stdout
    assert (here / "out" / "report.html").exists()


def test_a_sum_is_not_served(run_here, arguments):
    own = [one for one in arguments if one.startswith(("reward", "+reward"))]
    done = run_here("serve_reward", *own, "port=0")
    assert done.returncode == 2 and done.stderr.startswith("error: reward.kind: a sum of terms is not served; give")


@pytest.mark.processes
def test_two_processes_have_the_moments_of_one(straight, here, arguments):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "starling_train.ppo"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, *torchrun, *arguments, "run_dir=two"],
        cwd=here, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (lines(run / "metrics.jsonl")[1] for run in (straight, here / "two"))
    for key in one.keys() & two.keys():
        if key.startswith(("reward/", "eval/score")):
            assert two[key] == pytest.approx(one[key], rel=1e-4, abs=1e-5), key
