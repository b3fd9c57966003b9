"""Runs written by hand: what is read of them."""

import json

import pytest

from starling_train.comparison.curves import Cases, by_seed, read
from starling_train.config.fields import UserError

REWARD, SKILL, KL = "eval/score_mean", "eval/function_calling", "eval/kl_reference"


def write(root, strategy, seed, rewards, skills, finished=True, **more):
    """Write a run that was evaluated every 5 steps. more: further metrics by the end of their name."""
    run = root / strategy / f"seed_{seed}"
    run.mkdir(parents=True)
    rows = [{"step": 5 * i, REWARD: r, SKILL: s} for i, (r, s) in enumerate(zip(rewards, skills, strict=True))]
    for name, values in more.items():
        for row, value in zip(rows, values, strict=True):
            row[f"eval/{name}"] = value
    rows.insert(1, {"step": 1, "reward/score_mean": 0.0})  # a step without an evaluation
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        summary = {"finished": True, "steps": 5 * len(rewards) - 5, "trainable": {"parameters": 100 + len(strategy)}}
        (run / "summary.json").write_text(json.dumps(summary))
    return run


def write_cases(run, *digits, key=SKILL):
    rows = [json.dumps({"step": 5 * i, key: one}) + "\n" for i, one in enumerate(digits)]
    (run / "cases.jsonl").write_text("".join(rows))


def test_what_is_read_is_the_change_since_step_0(tmp_path):
    run = write(tmp_path, "snr", 0, [1.0, 2.0, 3.0], [90.0, 89.5, 89.0])
    curve = read(run, "snr", 0, REWARD, [SKILL])
    assert curve.steps == [0, 5, 10] and curve.reward == [0.0, 1.0, 2.0]
    assert curve.skills == {SKILL: [0.0, -0.5, -1.0]} and curve.start == {REWARD: 1.0, SKILL: 90.0}
    assert (curve.trained, curve.rate, curve.cases, curve.last) == (103, None, {}, (2, 1.0))


def test_the_kl_and_the_learning_rate_are_read_where_the_run_has_them(tmp_path):
    run = write(tmp_path, "snr", 0, [1.0, 2.0], [90.0, 89.5], kl_reference=[0.5, 3.0])
    (run / "config.yaml").write_text("optim: {learning_rate: 3.0e-4}\n")
    curve = read(run, "snr", 0, REWARD, [SKILL])
    assert list(curve.skills) == [SKILL, KL] and curve.skills[KL] == [0.0, 2.5] and curve.rate == 3e-4
    run = write(tmp_path, "snr", 1, [1.0, 2.0], [90.0, 89.5], kl_reference=[0.0, None])
    assert list(read(run, "snr", 1, REWARD, [SKILL]).skills) == [SKILL]
    assert list(read(run, "snr", 1, REWARD, [SKILL, KL]).left_out) == [5]  # asked for


def test_the_curve_ends_where_the_guard_went_back_to(tmp_path):
    run = write(tmp_path, "snr", 0, [1.0, 2.0, 3.0], [90.0, 89.5, 40.0])
    (run / "config.yaml").write_text("evaluation: {every: 5}\n")
    summary = json.loads((run / "summary.json").read_text())
    for step, steps in ((5, [0, 5]), (0, [0])):
        (run / "summary.json").write_text(json.dumps(summary | {"guard": {"policy_step": step}}))
        curve = read(run, "snr", 0, REWARD, [SKILL])
        assert (curve.steps, curve.went_back, curve.evaluation) == (steps, step, {"every": 5})
    (run / "summary.json").write_text(json.dumps(summary | {"guard": {"policy_step": 10}}))
    assert read(run, "snr", 0, REWARD, [SKILL]).went_back is None


def test_a_run_that_was_set_aside_is_none(tmp_path):
    for name in ("seed_10", "seed_2", "seed_2_old", "logs"):
        (tmp_path / name).mkdir()
    assert [(seed, path.name) for seed, path in by_seed(tmp_path.iterdir())] == [(2, "seed_2"), (10, "seed_10")]


def test_cases_by_hand():
    """Of four cases at three evaluations: how each has changed since step 0, on a straight line between two."""
    cases = Cases(["1100", "1010", "0010"], 100.0)
    assert cases.count == 4
    assert cases.change((0, 1.0)) == [0, 0, 0, 0]
    assert cases.change((1, 1.0)) == [0, -1, 1, 0] and cases.change((1, 0.25)) == [0, -0.25, 0.25, 0]
    assert cases.change((2, 0.5)) == [-0.5, -1, 1, 0]


def test_cases_count_where_they_agree_with_the_metric(tmp_path):
    def known(seed, *digits, values=(50.0, 25.0)):
        run = write(tmp_path, "snr", seed, [1.0, 2.0], values, function_calling_cases=[4, 4])
        write_cases(run, *digits)
        curve = read(run, "snr", seed, REWARD, [SKILL])
        assert curve.shares == {SKILL}
        return curve.cases

    assert known(0, "1100", "1000") == {SKILL: Cases(["1100", "1000"], 100.0)}
    assert known(1, "1100", "1000", values=(0.5, 0.25)) == {SKILL: Cases(["1100", "1000"], 1.0)}
    assert known(2, "1100", "1100") == {}  # not what the metric says
    assert known(3, "1100") == {}  # an evaluation is missing
    assert known(4, "1100", "10000000") == {} == known(5, "1100", "x000")
    assert known(6, "0000", "0000", values=(0.0, 0.0)) == {SKILL: Cases(["0000", "0000"], 100.0)}


def test_unfinished_runs_and_metrics_that_are_not_there(tmp_path):
    run = write(tmp_path, "snr", 0, [1.0, 2.0], [1.0, 1.0], finished=False)
    assert read(run, "snr", 0, REWARD, [SKILL]) is None
    run = write(tmp_path, "snr", 1, [1.0, 2.0], [1.0, 1.0])
    with pytest.raises(UserError, match="eval/perplexity"):
        read(run, "snr", 1, REWARD, ["eval/perplexity"])
    (run / "summary.json").write_text("{}")
    with pytest.raises(UserError, match=r"^run_dir: .*seed_1 cannot be read"):
        read(run, "snr", 1, REWARD, [SKILL])


def test_an_evaluation_that_is_not_finite_is_left_out(tmp_path):
    run = write(tmp_path, "snr", 0, [0.0, None, 2.0, 3.0], [9.0, 8.0, 7.0, 6.0])
    curve = read(run, "snr", 0, REWARD, [SKILL])
    assert (curve.steps, curve.reward, curve.left_out) == ([0, 10, 15], [0.0, 2.0, 3.0], [5])
    run = write(tmp_path, "snr", 1, [0.0, 1.0, 2.0, 3.0], [9.0, 8.0, 7.0, None])
    curve = read(run, "snr", 1, REWARD, [SKILL])
    assert (curve.steps, curve.skills[SKILL], curve.left_out) == ([0, 5, 10], [0.0, -1.0, -2.0], [15])
    run = write(tmp_path, "snr", 2, [None, 1.0], [9.0, 9.0])
    with pytest.raises(UserError, match=r"lacks a finite .* at step 0"):
        read(run, "snr", 2, REWARD, [SKILL])


def test_what_is_behind_a_summary_is_not_read(tmp_path):
    run = write(tmp_path, "random", 4, [1.0, 2.0, 3.0], [90.0, 91.0, 92.0])
    summary = json.loads((run / "summary.json").read_text()) | {"steps": 5}
    (run / "summary.json").write_text(json.dumps(summary))
    assert read(run, "random", 4, REWARD, [SKILL]).steps == [0, 5]
