"""Runs written by hand: what is read, compared and said of them."""

import json

import pytest

from starling_train.config import UserError
from starling_train.evals import comparison
from starling_train.report import comparison as page

REWARD, SKILL = "eval/score_mean", "eval/function_calling"


def write(root, strategy, seed, rewards, skills, finished=True):
    run = root / strategy / f"seed_{seed}"
    run.mkdir(parents=True)
    rows = [{"step": 5 * i, REWARD: r, SKILL: s} for i, (r, s) in enumerate(zip(rewards, skills, strict=True))]
    rows.insert(1, {"step": 1, "reward/score_mean": 0.0})  # a step without an evaluation
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        (run / "summary.json").write_text(json.dumps({"trainable": {"parameters": 100 + len(strategy)}}))
    return run


@pytest.fixture
def curves(tmp_path):
    """snr gains 2 and loses 1, seed by seed; everything gains 4 and loses 8, linearly."""
    found = []
    for seed in range(3):
        for name, gain, loss in (("snr", 2.0 + 0.1 * seed, 1.0), ("none", 4.0, 8.0 + 0.1 * seed)):
            run = write(tmp_path, name, seed, [1.0, 1.0 + gain / 2, 1.0 + gain], [90.0, 90.0 - loss / 2, 90.0 - loss])
            found.append(comparison.read(run, name, seed, REWARD, [SKILL]))
    return found


def test_what_is_read_is_the_change_since_step_0(curves):
    assert curves[0].steps == [0, 5, 10] and curves[0].reward == [0.0, 1.0, 2.0]
    assert curves[0].skills == {SKILL: [0.0, -0.5, -1.0]} and curves[0].start == {REWARD: 1.0, SKILL: 90.0}
    assert curves[0].trained == 103


def test_at_equal_steps_and_at_equal_reward(curves):
    found = comparison.compare(curves, "snr")
    assert found.level == 2.0  # the most that the weakest run reached
    snr, none = found.sides
    assert (snr.strategy, none.strategy) == ("snr", "none")
    assert snr.reward.mean == pytest.approx(2.1) and none.reward.mean == 4.0
    assert none.skills[SKILL].mean == pytest.approx(-8.1)
    # half of what none gains costs half of what it loses
    assert none.at_level[SKILL].mean == pytest.approx(-4.05) and none.steps_to_level.mean == pytest.approx(5.0)
    (equal,) = found.equal_reward
    expected = [-(8.0 + 0.1 * s) / 2 + 2.0 / (2.0 + 0.1 * s) for s in range(3)]
    assert equal.value.mean == pytest.approx(sum(expected) / 3) and equal.value.verdict == "less"
    assert {d.of: d.value.verdict for d in found.equal_steps} == {"reward": "more", SKILL: "less"}


def test_runs_that_never_reach_the_level_are_counted(curves):
    found = comparison.compare(curves, "snr", level=3.0)
    snr, none = found.sides
    assert snr.steps_to_level.count == 0 and none.steps_to_level.count == 3
    text = json.dumps(found.to_json(), allow_nan=False)
    assert '"level": 3.0' in text
    assert "cannot be compared" in " ".join(page.sentences(found)) and "0 of 3" in page.table(found)


def test_words_say_what_the_numbers_do(curves, tmp_path):
    found = comparison.compare(curves, "snr")
    said = page.sentences(found)
    assert said[0].startswith("At equal reward (+2.00) snr leaves function calling better than none's: +3.")
    assert any(line.startswith("At equal steps snr gains a reward that is worse than none's: -1.90") for line in said)
    page.draw(curves, found, tmp_path / "compare.png")
    assert (tmp_path / "compare.png").stat().st_size > 5000
    text = page.markdown("toy", curves, found)
    assert "Seeds 0, 1, 2" in text and "| none | 104 | 3 | +4.00 ± 0.00 |" in text


def test_unfinished_runs_and_metrics_that_are_not_there(tmp_path):
    run = write(tmp_path, "snr", 0, [1.0, 2.0], [1.0, 1.0], finished=False)
    assert comparison.read(run, "snr", 0, REWARD, [SKILL]) is None
    run = write(tmp_path, "snr", 1, [1.0, 2.0], [1.0, 1.0])
    with pytest.raises(UserError, match="eval/perplexity"):
        comparison.read(run, "snr", 1, REWARD, ["eval/perplexity"])
