"""The table at the end of a run."""

import pytest

from starling_train.config.ppo import PpoConfig
from starling_train.run import summary
from starling_train.run.directory import RunDirectory

FIRST = {
    "step": 0, "eval/score_mean": -0.646, "eval/score_std": 0.8, "eval/kl_reference": 0.0, "eval/length_mean": 9.06,
    "eval/eos_fraction": 1.0, "eval/gold_mean": 0.07, "eval/function_calling": 94.59, "eval/unscored": 0,
    "eval/function_calling_simple_python": 90.0,
}  # fmt: skip
LAST = FIRST | {
    "step": 30, "eval/score_mean": 2.072, "eval/kl_reference": 6.125, "eval/length_mean": 14.5,
    "eval/eos_fraction": 0.984, "eval/gold_mean": 1.19, "eval/function_calling": 95.5,
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    directory = RunDirectory(PpoConfig(run_dir=str(tmp_path / "run")))
    directory.policy.mkdir(parents=True)
    directory.metrics.write_text("{}\n")
    return directory


def finished(first, last):
    return {
        "first_eval": first, "last_eval": last, "steps": 30, "wall_time_s": 65.4, "peak_memory_gb": 0.4951,
        "throughput": {"samples_per_s": 78.25}, "trainable": {"parameters": 147456, "of": 581504},
        "device": "CPU, 1 thread",
    }  # fmt: skip


def test_before_and_after_side_by_side(run):
    assert summary.in_words(finished(FIRST, LAST), run).splitlines() == [
        "                              step 0   step 30   change",
        "score, held out                -0.65      2.07    +2.72",
        "function calling, %             94.6      95.5     +0.9",
        "length of an answer, tokens      9.1      14.5     +5.4",
        "answers that end, %            100.0      98.4     -1.6",
        "KL to the start, nats           0.00      6.12    +6.12",
        "gold                            0.07      1.19    +1.12",
        "time         0:01:05 for 30 steps, 78.2 samples a second",
        "memory       0.495 GB at most, CPU, 1 thread",
        "trained      147,456 of 581,504 parameters",
        f"model        {run.policy}",
        f"metrics      {run.metrics}",
    ]


def test_of_pairs_the_share_in_order_and_the_margin(run):
    first = {"step": 0, "eval/preference_accuracy": 0.5, "eval/reward_margin": 0.0, "eval/loss": 0.69}
    last = {"step": 35, "eval/preference_accuracy": 0.98, "eval/reward_margin": 3.3, "eval/loss": 0.1}
    lines = summary.in_words(finished(first, last), run).splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["step", "0", "step", "35", "change"], ["pairs", "in", "order,", "held", "out,", "%", "50.0", "98.0", "+48.0"],
        ["reward", "margin,", "held", "out", "0.00", "3.30", "+3.30"],
    ]  # fmt: skip
    assert lines[3].startswith("time ")


@pytest.mark.parametrize("first,last", [(None, None), (LAST, LAST), (FIRST, {"step": 30, "eval/score_mean": None})])
def test_what_was_not_measured_twice_is_left_out(run, first, last):
    lines = summary.in_words(finished(first, last), run).splitlines()
    assert not any("score" in line for line in lines) and any(line.startswith("time ") for line in lines)
