"""The recipe `toy_rm`, whole: it learns to rank answers that it has not seen, and its output is a reward model."""

import json

import pytest

from starling_train.data import nectar, preferences, prompts
from starling_train.evals import preference
from starling_train.models.reward.model import load_reward_model


@pytest.mark.families
def test_the_recipe_orders_more_than_80_percent_of_the_held_out_pairs(run_command, toy, tmp_path):
    done = run_command("rm", "+recipe=toy_rm", timeout=900)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "toy_rm"
    evals = json.loads((run / "summary.json").read_text())
    first, last = (evals[key]["eval/preference_accuracy"] for key in ("first_eval", "last_eval"))
    print(f"held-out pair accuracy {first:.4f} -> {last:.4f} in {evals['wall_time_s']:.0f} s")
    assert first == 0.5  # a head of zeros orders nothing
    assert last > 0.80

    # the same figure from the files that were written, by other code, on rows that were never trained on
    training, held_out = prompts.hold_out(nectar.load(toy / "nectar").rows, 200, 0)
    assert len(held_out) == 200 and not {prompt_of(row) for row in held_out} & {prompt_of(row) for row in training}
    model = load_reward_model("starling_7b", run / "reward", dtype="float32", max_length=256)
    comparisons = [
        preferences.Comparison(
            [[*row.messages, {"role": "assistant", "content": answer.text}] for answer in row.answers],
            [answer.rank for answer in row.answers],
        )
        for row in held_out
    ]
    assert preference.evaluate(comparisons, model.score).accuracy == pytest.approx(last, abs=1e-3)


def prompt_of(row: nectar.RankedRow) -> str:
    return json.dumps(row.messages)
