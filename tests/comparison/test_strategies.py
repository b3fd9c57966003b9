"""Curves written by hand, side by side: numbers, and what is said of them."""

import json
import math
from dataclasses import replace

import pytest

from starling_train.comparison.curves import Cases, Curve
from starling_train.comparison.strategies import compare
from starling_train.core.intervals import estimate, estimate_of_cases
from starling_train.report import comparison as page
from starling_train.report.plots import frontier

SKILL, KL = "eval/function_calling", "eval/kl_reference"


def curve(strategy, seed, reward, skill, kl=None, cases=None, key=SKILL, left_out=(), shares=()):
    """A run evaluated every 5 steps, given as changes since step 0."""
    skills = {key: skill} | ({KL: kl} if kl else {})
    known = {key: Cases(cases, 100.0)} if cases else {}
    steps = [5 * i for i in range(len(reward))]
    return Curve(
        strategy, seed, 100 + len(strategy), steps, reward, skills, {}, list(left_out), frozenset(shares), known
    )


@pytest.fixture
def curves():
    """snr gains 2 and loses 1, seed by seed; everything gains 4 and loses 8, linearly, at twice the KL."""
    found = []
    for seed in range(3):
        for name, gain, loss, kl in (("snr", 2.0 + 0.1 * seed, 1.0, 6.0), ("none", 4.0, 8.0 + 0.1 * seed, 12.0)):
            found.append(curve(name, seed, [0.0, gain / 2, gain], [0.0, -loss / 2, -loss], [0.0, kl / 2, kl]))
    return found


def test_at_the_last_step_and_at_equal_reward(curves):
    found = compare(curves, "snr")
    assert found.level == 2.0  # the most that the weakest run reached
    snr, none = found.sides
    assert (snr.strategy, none.strategy) == ("snr", "none")
    assert snr.reward.mean == pytest.approx(2.1) and none.reward.mean == 4.0
    assert none.skills[SKILL].mean == pytest.approx(-8.1) and none.skills[KL].mean == 12.0
    # half of what none gains costs half of what it loses
    assert none.at_level[SKILL].mean == pytest.approx(-4.05) and none.steps_to_level.mean == pytest.approx(5.0)
    equal, kl = found.equal_reward
    expected = [-(8.0 + 0.1 * s) / 2 + 2.0 / (2.0 + 0.1 * s) for s in range(3)]
    assert equal.value.mean == pytest.approx(sum(expected) / 3) and equal.value.verdict == "less"
    assert equal.spread == pytest.approx(math.sqrt(estimate(expected).by_seeds * 3))
    assert equal.p_value == equal.p_holm == pytest.approx(estimate(expected).p_value())
    assert kl.of == KL and kl.value.verdict == "alike"  # 6 against 6 x 2/2, 2/2.1, 2/2.2
    assert {d.of: d.value.verdict for d in found.equal_steps} == {"reward": "more", SKILL: "less", KL: "more"}


def test_at_equal_kl(curves):
    """snr's runs end at a KL of 6, half way of everything's: there, everything has gained 2 and lost 4 to 4.1."""
    found = compare(curves, "snr")
    assert found.kl_level == 6.0
    snr, none = found.sides
    assert snr.reward_at_kl.mean == pytest.approx(2.1) and none.reward_at_kl.mean == 2.0
    assert list(snr.at_kl) == [SKILL] and snr.at_kl[SKILL].mean == -1.0
    assert none.at_kl[SKILL].mean == pytest.approx(-4.05) and none.steps_to_kl.mean == 5.0
    reward, skill = found.equal_kl
    assert (reward.of, skill.of) == ("reward", SKILL) and reward.value.mean == pytest.approx(-0.1)
    assert skill.value.mean == pytest.approx(-3.05) and skill.value.verdict == "less"
    given = compare(curves, "snr", kl_level=9.0)  # three quarters of everything's way; snr never gets there
    assert given.kl_level == 9.0 and given.sides[0].steps_to_kl.count == 0
    assert given.sides[1].reward_at_kl.mean == 3.0 and given.equal_kl[0].value.count == 0


def test_without_the_kl_of_every_run_there_is_no_comparison_at_equal_kl(curves):
    found = compare([*curves, curve("old", 0, [0.0, 3.0], [0.0, 0.0])], "snr")
    assert found.kl_level is None and found.equal_kl == [] and list(found.sides[0].skills) == [SKILL]
    still = compare([curve("snr", 0, [0.0, 1.0], [0.0, 0.0], [0.0, -0.01])], "snr")
    assert still.kl_level is None
    assert still.notes == [
        "No comparison at equal KL: snr seed 0 never rose above 0. Give compare.kl_level to compare those that reach "
        "it."
    ]


def test_cases_and_seeds_make_the_interval_together():
    """Two seeds of each strategy on four cases, all right at first; seed by seed and case by case."""
    ends = {"snr": ["1111", "1110"], "none": ["1000", "1010"]}
    runs = [
        curve(name, seed, [0.0, 1.0], [0.0, 25.0 * (end.count("1") - 4)], cases=["1111", end])
        for name, of_seeds in ends.items()
        for seed, end in enumerate(of_seeds)
    ]
    found = compare(runs, "snr")
    assert found.cases == {SKILL: 4}
    none = found.sides[1]
    assert none.skills[SKILL] == estimate_of_cases([[0, -1, -1, -1], [0, -1, 0, -1]]).times(100).interval()
    (equal,) = found.equal_reward
    expected = estimate_of_cases([[0, -1, -1, -1], [0, -1, 0, 0]]).times(100)  # -75 and -25
    assert equal.value == expected.interval() and equal.value.mean == -50.0
    assert equal.p_value == expected.p_value() and equal.value.half > estimate([-75.0, -25.0]).half()
    half_way = compare([*runs, curve("slow", 0, [0.0, 0.5], [0.0, 0.0], cases=["1111", "1111"])], "snr")
    assert half_way.level == 0.5
    expected = estimate_of_cases([[0, -0.5, -0.5, -0.5], [0, -0.5, 0, -0.5]]).times(100)
    assert half_way.sides[1].at_level[SKILL] == expected.interval()


def test_runs_without_their_cases_fall_back_to_the_seeds_and_are_named():
    runs = [
        curve("snr", 0, [0.0, 1.0], [0.0, -25.0], cases=["1111", "1110"]),
        curve("snr", 1, [0.0, 1.0], [0.0, -50.0], cases=["1111", "1100"]),
    ]
    old = curve("none", 0, [0.0, 1.0], [0.0, -75.0], shares=[SKILL])
    found = compare([*runs, old], "snr")
    assert found.cases == {SKILL: 0} and found.sides[0].skills[SKILL].half == estimate([-25.0, -50.0]).half()
    why = "are of the seeds alone and leave out that its cases are a sample too"
    assert f"The intervals of {SKILL} {why}: none seed 0 did not keep which were right (cases.jsonl)." in found.notes
    assert compare([old], "none").notes[0].endswith("the runs did not keep which were right (cases.jsonl).")
    others = curve("none", 0, [0.0, 1.0], [0.0, -50.0], cases=["11", "10"])
    assert compare([*runs, others], "snr").notes[-1].endswith("too: not all had the same ones.")


def test_runs_that_never_reach_the_level_are_counted(curves):
    found = compare(curves, "snr", level=3.0)
    snr, none = found.sides
    assert snr.steps_to_level.count == 0 and none.steps_to_level.count == 3
    text = json.dumps(found.to_json(), allow_nan=False)
    assert '"level": 3.0' in text
    assert "not comparable with none (no seed has both)" in page.sentences(found)[0] and "0 of 3" in page.text(found)


def test_every_run_is_listed(curves):
    found = compare(curves, "snr")
    assert [(run.strategy, run.seed) for run in found.runs] == [(name, s) for name in ("snr", "none") for s in range(3)]
    none = found.runs[4]
    assert (none.reward, none.skills[SKILL], none.at_level[SKILL]) == (4.0, -8.1, pytest.approx(-4.05))
    assert (none.reward_at_kl, none.at_kl) == (2.0, {SKILL: pytest.approx(-4.05)})
    table = page.run_table(found)
    assert table.rows[4] == ["none", "1", "10", "+4.00", "-8.10", "+12.00", "-4.05", "+6.00", "+2.00", "-4.05"]
    assert len(table.head) == len(table.rows[0]) and "function calling at equal reward (+2.00)" in table.head


def test_a_run_that_gains_nothing_takes_the_equal_reward_away_and_is_named(curves, tmp_path):
    stuck = curve("random", 1, [0.0, -0.5, -0.1], [0.0, 1.0, 2.0], [0.0, 1.0, 6.0])
    found = compare([*curves, stuck], "snr")
    assert found.level is None and found.equal_reward == []
    assert [note.partition(" never")[0] for note in found.notes] == [
        "No comparison at equal reward: random seed 1",
        "Equal KL is the most that snr seed 0 reached (6.00 nats); the median run reached 6.00 nats.",
        "Not all have the same seeds: snr, none 0, 1, 2; random 1.",
    ]
    made, said = page.tables(found), page.sentences(found)
    assert [table.title for table in made] == ["At equal KL (6.00 nats)", "At the last step"]
    assert ["random", "106", "1", "-0.10", "+2.00", "+6.00"] in made[1].rows
    assert (
        "none (-1.90, -2.15 to -1.65, 19.0 sd, 3 seeds); not comparable with random (+2.20, no interval, 1 seed)"
        in "".join(said)
    )
    assert said and not any(line.startswith("At equal reward") for line in said)
    json.dumps(found.to_json(), allow_nan=False)
    page.write(tmp_path, "toy", [*curves, stuck], found, "{}")
    assert "random seed 1 never gained" in (tmp_path / "compare.md").read_text()
    assert sorted(path.name for path in tmp_path.glob("*compare*")) == ["compare.json", "compare.md", "compare.png"]
    given = compare([*curves, stuck], "snr", level=1.0)  # those that reach it
    assert given.level == 1.0 and given.equal_reward[0].value.count == 3


def test_what_is_left_out_and_runs_of_unequal_length_are_told(curves):
    short = curve("snr", 3, [0.0, 2.0], [0.0, 0.0], [0.0, 6.0], left_out=[10])
    assert compare([curves[0], short], "snr").notes[2:] == [
        "snr seed 3: a value at step 10 is not finite; left out, and its last step is 5."
    ]
    hole = replace(short, steps=[0, 15], left_out=[10])
    assert "snr seed 3: a value at step 10 is not finite; left out." in compare([curves[0], hole], "snr").notes
    short = curve("snr", 3, [0.0, 2.0], [0.0, 0.0], [0.0, 6.0])
    assert compare([curves[0], short], "snr").notes[2:] == [
        "The runs end at different steps (5, 10): each counts at its own last."
    ]


def test_who_sets_a_level_and_who_is_read_from_the_start_is_told():
    """The slow one gains 1 at its last step; the fast ones pass that, and its KL, before their first evaluation."""
    slow = curve("lora", 0, [0.0, 0.5, 1.0], [0.0] * 3, [0.0, 1.0, 2.0])
    fast = [curve("snr", seed, [0.0, 4.0, 5.0], [0.0] * 3, [0.0, 8.0, 9.0]) for seed in range(2)]
    early = "they are read on a straight line from the start; evaluate more often to see more."
    assert compare([slow, *fast], "snr").notes[:4] == [
        "Equal reward is the most that lora seed 0 reached (+1.00); the median run reached +5.00.",
        f"2 of 3 runs reach equal reward before their first evaluation (step 5): {early}",
        "Equal KL is the most that lora seed 0 reached (2.00 nats); the median run reached 9.00 nats.",
        f"2 of 3 runs reach equal KL before their first evaluation (step 5): {early}",
    ]
    given = compare([slow, *fast], "snr", level=4.5, kl_level=8.5).notes  # the user's own, and late
    assert not any("the most that" in note or "straight line" in note for note in given)


def test_a_guard_and_other_evaluations_are_told(curves):
    back = replace(curves[0], went_back=10, evaluation={"every": 5, "suites": ["function_calling"]})
    others = [replace(one, evaluation={"every": 5, "suites": []}) for one in curves[1:]]
    said = compare([back, *others], "snr").notes
    assert "snr seed 0: its guard went back to step 10, where its curve ends." in said
    assert "Not all runs were evaluated by the same settings (evaluation.suites)." in said


def test_equal_differences_have_no_spread_to_count_by():
    """96, 96 and 97 of 111 against 91, 91 and 92: five fewer each, but for what rounding makes of it."""
    runs = [curve("snr", seed, [0.0, 1.0], [0.0, 100 * right / 111]) for seed, right in enumerate((96, 96, 97))]
    runs += [curve("none", seed, [0.0, 1.0], [0.0, 100 * right / 111]) for seed, right in enumerate((91, 91, 92))]
    assert 0 < compare(runs, "snr").equal_reward[0].spread < 1e-12
    assert " sd" not in page.sentences(compare(runs, "snr"))[0]


def test_words_say_what_the_numbers_do(curves, tmp_path):
    found = compare(curves, "snr")
    skill, kl, *rest = page.sentences(found)
    assert skill == (
        "At equal reward (+2.00), function calling, 3 seeds: snr is better than none (+3.10, +2.86 to +3.33, 32.4 sd)."
    )
    assert "KL to the start (less is better), 3 seeds: snr is not clearly different from none (-0.28, -0.95" in kl
    assert any(
        line.startswith("At the last step, reward gained, 3 seeds: snr is worse than none (-1.90") for line in rest
    )
    assert "At equal KL (6.00 nats), function calling, 3 seeds: snr is better than none (+3.05, " in " ".join(rest)
    page.write(tmp_path, "toy", curves, found, "{}")
    assert (tmp_path / "compare.png").stat().st_size > 5000
    text = (tmp_path / "compare.md").read_text()
    assert "Seeds 0, 1, 2." in text and "| none | 104 | 3 | +4.00 ± 0.00 |" in text and "## Every run" in text


def of_differences(values, key=SKILL):
    """Runs of snr that change nothing, and of others that differ from it by these values, a list for each."""
    runs = [curve("snr", seed, [0.0, 1.0], [0.0, 0.0], key=key) for seed in range(3)]
    for name, of_seeds in values.items():
        runs += [curve(name, seed, [0.0, 1.0], [0.0, value], key=key) for seed, value in enumerate(of_seeds)]
    return compare(runs, "snr")


def test_several_comparisons_are_corrected_together():
    """-8, -10, -12 have t = 8.66 and p = 0.0131: clear alone and as the smallest of 3, not as the smallest of 4."""
    clear, not_clear = [-8.0, -10.0, -12.0], [-4.0, 1.0, 3.1]
    found = of_differences({"a": clear, "b": not_clear, "c": not_clear})
    assert found.equal_reward[0].p_value == pytest.approx(0.0131, abs=1e-4)
    assert found.equal_reward[0].p_holm == pytest.approx(0.0393, abs=3e-4)
    assert page.sentences(found)[0] == (
        "At equal reward (+1.00), function calling, 3 seeds: snr is better than a (+10.00, +5.03 to +14.97, 5.0 sd); "
        "not clearly different from b (-0.03, -9.09 to +9.03, 0.0 sd) and c (-0.03, -9.09 to +9.03, 0.0 sd)."
    )
    found = of_differences({"a": clear, "b": not_clear, "c": not_clear, "d": not_clear})
    assert found.equal_reward[0].p_holm == pytest.approx(0.0524, abs=3e-4)
    assert found.equal_reward[0].value.verdict == "less"
    assert "snr is perhaps better than a (" in page.sentences(found)[0]
    assert "Holm" in " ".join(page.explanation(found)) and "4 comparisons" in " ".join(page.explanation(found))


@pytest.mark.parametrize("key", ["eval/perplexity", "eval/perplexity_python"])
def test_less_perplexity_is_better(key):
    found = of_differences({"a": [2.0, 2.1, 1.9], "b": [-2.0, -2.1, -1.9]}, key)
    said = page.sentences(found)[0]
    assert " (less is better), 3 seeds: snr is better than a (-2.00" in said and "; worse than b (+2.00" in said


def test_one_seed_is_no_comparison():
    runs = [curve(name, 0, [0.0, 1.0], [0.0, -1.0], cases=["1111", "1110"]) for name in ("snr", "none")]
    found = compare(runs, "snr")
    assert page.sentences(found)[0].endswith(", 1 seed: snr is not comparable with none (+0.00, no interval).")
    assert found.to_json()["equal_reward"][0]["p_holm"] is None


def test_the_frontier_is_the_mean_path_over_seeds(tmp_path):
    runs = [curve("snr", 0, [0.0, 1.0, 2.0], [0.0, -1.0, -4.0]), curve("snr", 1, [0.0, 3.0], [0.0, -2.0])]
    assert frontier.mean_path(runs, SKILL) == ([0, 5], [0.0, 2.0], [0.0, -1.5])  # step 10 is not in both


def test_the_frontier_turns_the_axis_where_less_is_better(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    runs = [curve("snr", s, [0.0, 1.0], [0.0, 0.5 + s], [0.0, 2.0], key="eval/perplexity_english") for s in (0, 1)]
    runs += [curve("none", s, [0.0, 2.0], [0.0, 3.0 + s], [0.0, 9.0], key="eval/perplexity_english") for s in (0, 1)]
    for run in runs:
        run.skills[SKILL] = [0.0, -1.0]
    frontier.draw(runs, compare(runs, "snr"), tmp_path / "compare.png")
    axes = {one.get_ylabel(): one.yaxis_inverted() for one in drawn[0].axes}
    assert axes == {
        "change of perplexity english (less is better: axis turned)": True,
        "KL to the start, nats (less is better: axis turned)": True,
        "change of function calling": False,
    }
    assert drawn[0].axes[0].get_xlim() == pytest.approx((-0.16, 2.16))  # the runs', however wide the intervals are
    assert drawn[0].axes[0].get_ylim() == pytest.approx((4.32, -0.32))
    labels = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert labels == ["snr", "none"]  # one line a strategy
