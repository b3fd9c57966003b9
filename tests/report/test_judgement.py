"""The page's judgement on made-up runs: each fault is named in the verdict, and a good run has none."""

import json
import re
from pathlib import Path

import pytest
from made_up import FAULTS, STEPS, write_made_up
from synthetic_run import write_lines

from starling_train.report import first_screen, page
from starling_train.report.judgement import limits, results, verdict
from starling_train.report.judgement.limits import BAD, GOOD, LIMITS, NOTE, WATCH
from starling_train.report.judgement.repetition import common_text, rank_correlation, repeated_share, sentences
from starling_train.report.read_run import read

# fault -> (state, how the verdict begins, what its sentence says)
VERDICTS = {
    "kl_blow_up": (BAD, "KL to the reference", "114.9 nats"),
    "kl_270": (BAD, "KL to the reference", "270.0 nats"),
    "entropy_collapse": (BAD, "Entropy", "1.00e−04 at the end"),
    "clipped": (BAD, "Clip fraction", "90 % of tokens"),
    "length_hacking": (BAD, "Length with reward", "30.0 to 96.0 tokens"),
    "dead_critic": (BAD, "Critic", "explains 0 % of the variance"),
    "closing_sentence": (BAD, "Repetition across answers", "16 of 16 answers to different prompts end in “Let me know"),
    "skill_lost": (BAD, "Skill: function calling", "−21.0 points"),
    "skill_by_chance": (WATCH, "Skill: function calling", "chance may explain it"),
    "guard_lost": (BAD, "Guard", "Lost function calling by 9.50 (4.25 beyond chance), at steps 20, 40, the last"),
    "empty": (BAD, "Empty answers", "5 of the 16"),
    "looping": (BAD, "Repetition within answers", "77 %"),
    "truncated": (BAD, "Truncation", "60 % of held-out answers run into the limit of 512 tokens"),
    "engines_differ": (BAD, "Agreement of engines", "differ by up to 0.400 nats a token"),
    "memorised": (BAD, "Training against held-out score", "1.71 deviations on training prompts, by 0.056"),
}


@pytest.fixture(scope="module")
def made_up(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("made_up")
    return {fault: write_made_up(folder / fault, fault) for fault in FAULTS}


def test_a_verdict_says_what_is_wrong_in_the_words_of_the_field(made_up):
    said = {fault: verdict.summary(verdict.findings(read(made_up[fault])))[1] for fault in FAULTS}
    assert said["entropy_collapse"] == "Bad: entropy collapse" and said["dead_critic"] == "Bad: dead critic"
    assert said["length_hacking"] == "Bad: length with reward (length hacking)"
    assert said["closing_sentence"] == "Bad: answers with the same text"
    assert said["skill_lost"] == "Bad: function calling lost"
    assert said["skill_by_chance"] == "Look at: function calling"
    assert said["kl_blow_up"] == "Bad: far from the reference (KL)"
    assert said["memorised"] == "Bad: better on training prompts only"
    assert limits.FAULTS.keys() == LIMITS.keys()


def test_every_fault_has_its_verdict():
    assert FAULTS.keys() == VERDICTS.keys() | {"good"}


@pytest.mark.parametrize("fault", VERDICTS)
def test_the_first_screen_of_a_bad_run_names_its_fault(made_up, fault):
    state, name, sentence = VERDICTS[fault]
    worst = verdict.findings(read(made_up[fault]))[0]
    assert (worst.state, worst.name) == (state, name) and sentence in worst.text and worst.advice
    html = page.write(made_up[fault]).read_text()
    (line,) = re.findall(r'<p class="verdict (\w+)">(.*?)</p>', html)
    assert line[0] == state and worst.fault in line[1]
    assert html.index('class="verdict') < html.index('class="findings"') < html.index("What to do next</h2>")
    first, *_ = re.findall(r'<ul class="findings"><li data-state="(\w+)">.*?<strong>(.*?)\.</strong>', html)
    assert first == (state, name)


def test_a_good_run_is_good_and_says_what_was_not_measured(made_up):
    found = verdict.findings(read(made_up["good"]))
    assert {one.state for one in found} == {GOOD, NOTE} and not any(one.advice for one in found)
    (note,) = [one for one in found if one.state == NOTE]
    assert note.name == "True quality" and "the reward model's word alone" in note.text
    assert verdict.summary(found) == (GOOD, "Good: 13 of 13 checks passed")


def test_true_quality_that_rose_makes_long_and_alike_answers_worth_a_look_only(tmp_path):
    for fault in ("length_hacking", "closing_sentence"):
        found = verdict.findings(read(write_made_up(tmp_path / fault, fault, gold=True)))
        worst = next(one for one in found if one.name == VERDICTS[fault][1])
        assert worst.state == WATCH and worst.text.endswith("The true quality rose all the same.")
        (gold,) = [one for one in found if one.name == "True quality"]
        assert gold.state == GOOD and "95 % interval" in gold.text


@pytest.mark.parametrize("target", [None, 6.0, 200.0])
@pytest.mark.parametrize("nats", [114.0, 114.9, 270.0])
@pytest.mark.parametrize("steps", [1, 3, 200])
def test_114_and_270_nats_are_never_good(tmp_path, nats, target, steps):
    """Whatever the target, however few the steps, at the end or only once on the way."""
    (tmp_path / "config.yaml").write_text(f"algorithm: {{kl: {{target: {target or 'null'}}}}}\n")
    for at in {1, steps // 2 or 1, steps}:
        rows = [{"step": step, "kl/reference": nats if step == at else 4.0} for step in range(1, steps + 1)]
        write_lines(tmp_path / "metrics.jsonl", rows)
        (found,) = verdict.findings(read(tmp_path))
        assert found.state == (BAD if at == steps else WATCH) or (at > steps * 3 / 4 and found.state == BAD)
        assert f"{nats:.1f}".rstrip("0").rstrip(".") in found.text
    write_lines(tmp_path / "metrics.jsonl", [{"step": 0, "eval/kl_reference": nats}])
    (found,) = verdict.findings(read(tmp_path))
    assert found.state == BAD


def judged(folder: Path, first: dict, last: dict, config: str = "{}") -> dict[str, str]:
    (folder / "config.yaml").write_text(config)
    write_lines(folder / "metrics.jsonl", [{"step": 0} | first, {"step": 1} | last])
    return {one.name: one.state for one in verdict.findings(read(folder)) if one.state != NOTE}


START = {"eval/score_mean": 1.0, "eval/score_std": 0.5}


@pytest.mark.parametrize(
    ("first", "last", "config", "expected"),
    [
        (START, {"eval/score_mean": 1.5, "eval/score_std": 0.5}, "{}", {"Held-out score": GOOD}),
        (START, {"eval/score_mean": 1.2, "eval/score_std": 0.5}, "{}", {"Held-out score": WATCH}),  # 0.4 deviations
        (START, {"eval/score_mean": 0.9, "eval/score_std": 0.5}, "{}", {"Held-out score": BAD}),
        # the interval over 8 prompts reaches over 0.5 deviations: 1.96 x sqrt(2 / 8) = 0.98
        (START, {"eval/score_mean": 1.4, "eval/score_std": 0.5}, "data: {eval_prompts: 8}", {"Held-out score": WATCH}),
        (START, {"eval/score_mean": 0.9, "eval/score_std": 0.5}, "data: {eval_prompts: 8}", {"Held-out score": WATCH}),
        ({"eval/gold_mean": 0.5}, {"eval/gold_mean": 0.4}, "{}", {"True quality": BAD}),
        ({"eval/function_calling": 90.0}, {"eval/function_calling": 87.5}, "{}", {"Skill: function calling": GOOD}),
        ({"eval/function_calling": 90.0}, {"eval/function_calling": 84.0}, "{}", {"Skill: function calling": BAD}),
        ({"eval/code_rate": 0.5}, {"eval/code_rate": 0.4}, "{}", {"Skill: code rate": BAD}),  # a share, in points
        ({}, {"kl/reference": -0.1}, "{}", {"Negative KL": WATCH}),
        ({}, {"kl/reference": -0.5}, "{}", {"Negative KL": BAD}),
        ({}, {"kl/reference": 24.0}, "{}", {"KL to the reference": GOOD}),
        ({}, {"kl/reference": 26.0}, "{}", {"KL to the reference": WATCH}),
        ({}, {"kl/reference": 13.0}, "algorithm: {kl: {target: 6}}", {"KL against its target": WATCH}),
        ({}, {"response/eos_fraction": 0.75}, "{}", {"Truncation": WATCH}),
        ({}, {"response/empty_fraction": 0.02}, "{}", {"Empty answers": WATCH}),
        ({}, {"eval/empty_fraction": 0.2, "response/empty_fraction": 0.0}, "{}", {"Empty answers": BAD}),
        ({}, {"policy/ratio_first": 0.5}, "model: {dtype: float32}", {"Agreement of rollout and training": BAD}),
        ({}, {"policy/ratio_first": 0.2}, "{}", {"Agreement of rollout and training": WATCH}),
        ({}, {"optim/skipped": 2}, "{}", {"Skipped updates": BAD}),
        ({"episodes": 0}, {"episodes": 64, "reward/unscored": 1}, "{}", {"Answers left out": BAD}),
        ({"eval/perplexity": 9.0}, {"eval/perplexity": 12.0}, "{}", {"Perplexity of other text": BAD}),
        ({"eval/preference_accuracy": 0.5}, {"eval/preference_accuracy": 0.7}, "{}", {"Held-out pairs": GOOD}),
        ({"eval/preference_accuracy": 0.7}, {"eval/preference_accuracy": 0.6}, "{}", {"Held-out pairs": BAD}),
        (
            {},
            {"eval/chosen_reward": -4.0, "eval/reward_margin": 1.0},
            "{}",
            {"Better answers become unlikely": BAD},
        ),
    ],
)  # fmt: skip
def test_limits(tmp_path, first, last, config, expected):
    assert judged(tmp_path, first, last, config) == expected


def test_empty_answers_are_told_with_those_at_the_start_and_what_to_set(tmp_path):
    lines = [{"step": 0, "eval/empty_fraction": 0.0}, {"step": 1, "eval/empty_fraction": 0.3125}]
    write_lines(tmp_path / "metrics.jsonl", lines)
    (found,) = (one for one in verdict.findings(read(tmp_path)) if one.name == "Empty answers")
    assert found.state == BAD and found.text == "31 % of answers are empty at the end (0 % at the start)."
    assert "rollout.min_new_tokens" in found.advice and "reward.empty_response" in found.advice


def test_gold_that_falls_while_the_score_rises_is_named(tmp_path):
    write_lines(tmp_path / "metrics.jsonl", [
        {"step": 0, **START, "eval/gold_mean": 0.5},
        {"step": 1, "eval/score_mean": 2.0, "eval/score_std": 0.5, "eval/gold_mean": 0.4},
    ])  # fmt: skip
    worst = verdict.findings(read(tmp_path))[0]
    assert worst.state == BAD and "the policy exploits the reward model" in worst.text


def test_a_skills_interval_is_agresti_and_caffos(tmp_path):
    """90 and 80 of 100: shares 91/102 and 81/102, half = 1.96 sqrt(0.0009435 + 0.0016026) = 0.0989."""
    rows = [
        {"step": s, "eval/function_calling": v, "eval/function_calling_cases": 100} for s, v in ((0, 90.0), (1, 80.0))
    ]
    write_lines(tmp_path / "metrics.jsonl", rows)
    known = results.skill_interval(read(tmp_path), "eval/function_calling")
    assert known.mean == pytest.approx(-10.0) and known.count == 100
    assert known.low == pytest.approx(-10.0 - known.half) and known.half == pytest.approx(9.89 + 0.196, abs=0.01)
    assert verdict.findings(read(tmp_path))[0].state == WATCH  # the interval touches 0


def test_a_gold_interval_is_by_pairs(tmp_path):
    """Differences 1 and 3 by turns over 8 prompts, of 32 held-out ones: half = t(7) s / sqrt(32)."""
    write_lines(tmp_path / "metrics.jsonl", [{"step": 0, "eval/gold_mean": 0.0}, {"step": 1, "eval/gold_mean": 2.0}])
    rows = [{"step": s, "prompt": str(i), "gold": s * (1 + 2 * (i % 2))} for s in (0, 1) for i in range(8)]
    write_lines(tmp_path / "samples.jsonl", rows)
    (tmp_path / "config.yaml").write_text("data: {eval_prompts: 32}")
    known = results.gold_interval(read(tmp_path))
    assert (known.mean, known.half) == (2.0, pytest.approx(2.3646 * (8 / 7) ** 0.5 / 32**0.5, rel=1e-4))


def test_a_critic_is_not_judged_before_ten_steps(tmp_path):
    for count, expected in ((9, []), (10, ["Critic"])):
        rows = [{"step": step, "value/explained_variance": 0.0} for step in range(1, count + 1)]
        write_lines(tmp_path / "metrics.jsonl", rows)
        assert [one.name for one in verdict.findings(read(tmp_path))] == expected


def test_nothing_is_judged_without_numbers(tmp_path):
    assert verdict.findings(read(tmp_path)) == []
    assert verdict.summary([]) == (NOTE, "Nothing to judge yet")
    write_lines(tmp_path / "metrics.jsonl", [{"step": 0, "eval/score_mean": None, "kl/reference": None}])
    assert verdict.findings(read(tmp_path)) == []


def test_limits_are_on_the_page_and_in_the_documents(made_up):
    html = first_screen.limits_table()
    document = (Path(__file__).parents[2] / "docs" / "report.md").read_text()
    for limit in LIMITS.values():
        for text in (f"{limit.watch:g}", f"{limit.bad:g}"):
            assert f"{'below' if limit.is_floor else 'above'} {text}" in html
        than = "<" if limit.is_floor else ">"
        row = next(
            line for line in document.splitlines() if line.startswith(f"| {limit.name} | {than} {limit.watch:g} |")
        )
        assert row.split("|")[3].strip() == f"{than} {limit.bad:g}"
        assert limit.reason and limit.advice and (limit.bad - limit.watch) * (-1 if limit.is_floor else 1) >= 0


def test_repetition_within_an_answer():
    assert repeated_share("too short to say") is None
    assert repeated_share(" ".join("abcdefghijkl")) == 0.0
    # 12 words have nine 4-grams, three of them different
    assert repeated_share("a b c " * 4) == pytest.approx(6 / 9)
    assert repeated_share("天気がいい" * 3) == pytest.approx(7 / 12)  # 15 characters, 12 4-grams, 5 of them different


def test_repetition_across_answers():
    prompts = ["p", "q", "r", "s"]
    ends = common_text(prompts, ["One. Have a nice day!", "Two! Have  a nice day", "Three", ""])
    assert (ends.kind, ends.text, ends.count, ends.of) == ("end in", "Have a nice day!", 2, 4)
    begins = common_text(prompts, [f"What a great question! {one}" for one in ("It is.", "No.", "Far.", "Near.")])
    assert (begins.kind, begins.count) == ("begin with", 4)
    same = common_text(prompts, ["Fifty.", "fifty", "Ten.", "Fifty"])
    assert (same.kind, same.count) == ("are", 3)
    inside = common_text(prompts, [f"{one} as far as I can tell {one}" for one in ("x y", "z", "w", "v")])
    assert (inside.kind, inside.count) == ("contain", 4)
    assert common_text(["a b c d e f", "a b c d e g"], ["a b c d e", "a b c d e z"]) is None  # words of the prompts
    assert common_text(["p", "p"], ["Same answer here.", "Same answer here."]) is None  # one prompt
    assert common_text([], []) is None
    assert sentences("It costs 3.5 coins. Really?\nYes!") == ["It costs 3.5 coins.", "Really?", "Yes!"]


def test_rank_correlation():
    assert rank_correlation([1, 2, 3, 4], [10, 20, 25, 90]) == 1.0
    assert rank_correlation([1, 2, 3, 4], [9, 7, 5, 1]) == -1.0
    # ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 x 5)
    assert rank_correlation([1, 2, 2, 4], [1, 2, 3, 4]) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None and rank_correlation([1, 2], [1, 2]) is None


def test_a_run_that_its_guard_turned_back_is_judged_by_the_model_that_it_gives(tmp_path):
    run = write_made_up(tmp_path / "run", "skill_lost")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if "eval/score_mean" in line:
            line["guard/kept"] = int(line["step"] < STEPS)
    write_lines(run / "metrics.jsonl", lines)
    assert {one.name: one.state for one in verdict.findings(read(run))}["Guard"] == BAD  # it is not finished yet
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"guard": {"policy_step": 10, "stopped": True}}))
    found = {one.name: one for one in verdict.findings(read(run))}
    assert found["Guard"].state == WATCH and found["Guard"].text.endswith("at step 40; the model is that of step 10.")
    assert "92.0 → 86.8 %" in found["Skill: function calling"].text  # not 71, at step 40
    html = page.render(read(run))
    assert "its guard went back to step 10" in html and html.count('class="level mark"') == 2 and "guard acted" in html
