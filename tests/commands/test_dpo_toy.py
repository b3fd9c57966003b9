"""The recipe `toy_dpo`, whole: held-out pairs come out in order, the answers become better, the skill stays."""

import json

import pytest


@pytest.mark.slow
def test_the_toy_learns_from_pairs_and_keeps_its_skill(run_command, toy, tmp_path):
    done = run_command("dpo", "+recipe=toy_dpo")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "runs" / "toy_dpo" / "summary.json").read_text())
    first, last = summary["first_eval"], summary["last_eval"]
    for key in ("preference_accuracy", "reward_margin", "loss", "gold_mean", "function_calling"):
        print(f"{key}: {first[f'eval/{key}']:.3f} -> {last[f'eval/{key}']:.3f}")
    print(f"steps: {summary['steps']} in {summary['wall_time_s']:.0f} s")
    assert (first["eval/preference_accuracy"], first["eval/reward_margin"]) == (0.5, 0.0)
    assert last["eval/preference_accuracy"] > 0.9 and last["eval/reward_margin"] > 1.0
    assert last["eval/gold_mean"] > first["eval/gold_mean"] + 0.5  # of answers that it writes itself
    assert last["eval/function_calling"] >= first["eval/function_calling"] - 3.0
