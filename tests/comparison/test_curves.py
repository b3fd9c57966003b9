"""Runs written by hand: what is read, compared and said of them."""

import json

import pytest

from starling_train.comparison import curves as comparison
from starling_train.config.fields import UserError
from starling_train.report import comparison as page

REWARD, SKILL = "eval/score_mean", "eval/function_calling"


def write(root, strategy, seed, rewards, skills, finished=True):
    run = root / strategy / f"seed_{seed}"
    run.mkdir(parents=True)
    rows = [{"step": 5 * i, REWARD: r, SKILL: s} for i, (r, s) in enumerate(zip(rewards, skills, strict=True))]
    rows.insert(1, {"step": 1, "reward/score_mean": 0.0})  # a step without an evaluation
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        summary = {"finished": True, "steps": 5 * len(rewards) - 5, "trainable": {"parameters": 100 + len(strategy)}}
        (run / "summary.json").write_text(json.dumps(summary))
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
    (run / "summary.json").write_text("{}")
    with pytest.raises(UserError, match=r"^run_dir: .*seed_1 cannot be read"):
        comparison.read(run, "snr", 1, REWARD, [SKILL])


def test_an_evaluation_that_is_not_finite_is_left_out_and_said(tmp_path):
    curves = []
    for seed, (rewards, skills) in enumerate(
        [([0.0, None, 2.0, 3.0], [9.0, 8.0, 7.0, 6.0]), ([0.0, 1.0, 2.0, 3.0], [9.0, 8.0, 7.0, None])]
    ):
        run = write(tmp_path, "snr", seed, rewards, skills)
        curves.append(comparison.read(run, "snr", seed, REWARD, [SKILL]))
    assert (curves[0].steps, curves[0].reward, curves[0].left_out) == ([0, 10, 15], [0.0, 2.0, 3.0], [5])
    assert (curves[1].steps, curves[1].skills[SKILL], curves[1].left_out) == ([0, 5, 10], [0.0, -1.0, -2.0], [15])
    found = comparison.compare(curves, "snr")
    assert found.notes == [
        "snr seed 0: a value at step 5 is not finite; left out.",
        "snr seed 1: a value at step 15 is not finite; left out.",
    ]
    assert found.level == 2.0 and found.sides[0].skills[SKILL].mean == -2.5
    run = write(tmp_path, "snr", 2, [None, 1.0], [9.0, 9.0])
    with pytest.raises(UserError, match=r"lacks a finite .* at step 0"):
        comparison.read(run, "snr", 2, REWARD, [SKILL])


def test_a_run_that_gains_nothing_takes_the_equal_reward_away_and_is_named(curves, tmp_path):
    run = write(tmp_path, "random", 4, [1.0, 0.5, 0.9], [90.0, 91.0, 92.0])
    stuck = comparison.read(run, "random", 4, REWARD, [SKILL])
    found = comparison.compare([*curves, stuck], "snr")
    assert found.level is None and found.equal_reward == []
    assert [note.partition(" never")[0] for note in found.notes] == ["No comparison at equal reward: random seed 4"]
    table, said = page.table(found), page.sentences(found)
    assert "steps to it" not in table and "| random | 106 | 1 | -0.10 | +2.00 |" in table
    assert len({len(line.split("|")) for line in table.splitlines()}) == 1
    assert said and not any(line.startswith("At equal reward") for line in said)
    json.dumps(found.to_json(), allow_nan=False)
    page.write(tmp_path, "toy", [*curves, stuck], found, "{}")
    assert "random seed 4 never gained" in (tmp_path / "compare.md").read_text()
    assert sorted(path.name for path in tmp_path.glob("*compare*")) == ["compare.json", "compare.md", "compare.png"]
    given = comparison.compare([*curves, stuck], "snr", level=1.0)  # those that reach it
    assert given.level == 1.0 and given.notes == [] and given.equal_reward[0].value.count == 3


def test_runs_of_unequal_length_are_told_and_what_is_behind_a_summary_is_not_read(curves, tmp_path):
    run = write(tmp_path, "random", 4, [1.0, 2.0, 3.0], [90.0, 91.0, 92.0])
    summary = json.loads((run / "summary.json").read_text()) | {"steps": 5}
    (run / "summary.json").write_text(json.dumps(summary))
    short = comparison.read(run, "random", 4, REWARD, [SKILL])
    assert short.steps == [0, 5]
    assert comparison.compare([*curves, short], "snr").notes == [
        "The runs end at different steps (5, 10): each counts at its own last."
    ]


def test_less_perplexity_is_better():
    runs = [
        comparison.Curve(name, seed, 1, [0, 5], [0.0, 1.0], {"eval/perplexity": [0.0, loss + 0.01 * seed]}, {}, [])
        for name, loss in (("snr", 1.0), ("none", 3.0))
        for seed in range(3)
    ]
    said = page.sentences(comparison.compare(runs, "snr"))
    assert any("leaves perplexity better than none's: -2.00" in line for line in said)
