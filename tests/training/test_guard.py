"""The guard of skills: what counts as lost, by numbers computed by hand, and what follows."""

import math

import pytest

from starling_train.config.fields import UserError
from starling_train.config.guard import MEAN, PERPLEXITY, SHARE, GuardConfig, Measure, described
from starling_train.config.ppo import PpoConfig
from starling_train.core.intervals import interval
from starling_train.run.runtime import Runtime
from starling_train.training.guard import FirstMeasure, Guard
from starling_train.training.measured import CaseValue, Measured

SKILL = "eval/skill"
MEASURES = {SKILL: Measure(SHARE, " points"), "eval/odd": Measure(MEAN)}


def share(right: int, of: int = 100) -> Measured:
    """The first `right` of the cases are right."""
    return Measured({SKILL: 100 * right / of}, cases={SKILL: "1" * right + "0" * (of - right)})


def first_of(measure: Measure, measured: Measured) -> FirstMeasure:
    first = FirstMeasure(SKILL, measure)
    first.take(measured)
    return first


def guard(*skills: str, own: float = 0.0, **settings) -> Guard:
    config = GuardConfig(list(skills) or [f"{SKILL}:3"], **settings)
    made = Guard(config, MEASURES, lambda: own)
    assert made.judge(share(90), Runtime("cpu")) == {"guard/kept": 1}
    return made


def judged(made: Guard, *evaluations: Measured) -> list[int]:
    return [made.judge(one, Runtime("cpu"))["guard/kept"] for one in evaluations]


def test_a_fall_of_a_share_by_hand():
    """90 to 80 of 100 right: 10 points, of which 10/102 + 1.96 sqrt(11 - 100/102) / 102 ... are beyond chance."""
    fall = first_of(MEASURES[SKILL], share(90)).fall(share(80))
    half = 100 * 1.959964 * math.sqrt(11 - 100 / 102) / 102
    assert fall.points == 10.0
    assert fall.surely == pytest.approx(1000 / 102 - half)
    rise = first_of(MEASURES[SKILL], share(80)).fall(share(90))
    assert rise.points == -10.0 and rise.surely < -10.0


def test_a_mean_s_fall_is_by_pairs():
    """Values that differ much from case to case, and all of them fall by about one."""
    before, after = [100.0, 3.0, -50.0, 7.0], [99.1, 1.9, -51.0, 6.0]

    def measured(values: list[float]) -> Measured:
        return Measured({SKILL: sum(values) / 4}, values={SKILL: {str(i): CaseValue(v) for i, v in enumerate(values)}})

    fall = first_of(Measure(MEAN), measured(before)).fall(measured(after))
    known = interval([0.9, 1.1, 1.0, 1.0])
    assert fall.points == pytest.approx(1.0) and fall.surely == pytest.approx(known.low)
    lower = first_of(Measure(MEAN, is_lower_better=True), measured(after)).fall(measured(before))
    assert lower.points == pytest.approx(1.0) and lower.surely == pytest.approx(known.low)


def test_a_rise_of_perplexity_is_a_fall_by_windows():
    """exp of a mean over windows of 30 and 10 tokens; nats rise by 0.1 and by 0.3, 0.15 in the mean."""

    def measured(nats: list[float]) -> Measured:
        cases = {"0": CaseValue(nats[0], 30), "1": CaseValue(nats[1], 10)}
        return Measured({SKILL: math.exp((30 * nats[0] + 10 * nats[1]) / 40)}, values={SKILL: cases})

    first, later = measured([2.0, 2.4]), measured([2.1, 2.7])
    fall = first_of(Measure(PERPLEXITY, is_lower_better=True), first).fall(later)
    assert fall.points == pytest.approx(later.metrics[SKILL] - first.metrics[SKILL])
    half = 12.7062 * math.sqrt(2 * ((30 * 0.05) ** 2 + (10 * 0.15) ** 2)) / 40
    assert fall.surely == pytest.approx(math.exp(2.1) * (math.exp(0.15 - half) - 1))
    assert fall.surely < 0 < fall.points  # two windows say little


@pytest.mark.parametrize("is_lower_better,points", [(True, 2.5), (False, -2.5)])
def test_a_number_alone_is_taken_as_it_is(is_lower_better, points):
    first = first_of(Measure(MEAN, is_lower_better=is_lower_better), Measured({SKILL: 4.0}))
    assert first.fall(Measured({SKILL: 6.5})) == (points, points)
    assert first.fall(Measured({SKILL: math.nan})) == (math.inf, math.inf)


def test_only_what_chance_does_not_explain_is_lost():
    assert judged(guard(), share(90), share(95), share(87), share(83), share(80), share(0)) == [1, 1, 1, 1, 0, 0]
    few = Guard(GuardConfig([f"{SKILL}:3"]), MEASURES)
    few.judge(share(20, 20), Runtime("cpu"))
    # the line of the first evaluation says from where on it counts, and no sooner does it
    assert few.news(0) == [
        f"guard: {SKILL} may lose 3 points (20 cases: a loss of 25.0 points or more is told from chance)"
    ]
    assert judged(few, share(16, 20), share(15, 20)) == [1, 0]
    assert guard(f"{SKILL}:9").judge(share(80), Runtime("cpu"))["guard/kept"] == 1


def test_what_cannot_be_compared_is_told():
    made = guard()
    with pytest.raises(UserError, match=r"guard.skills: eval/skill was measured on other cases at step 0; give"):
        made.judge(share(90, 99), Runtime("cpu"))
    with pytest.raises(UserError, match=r"guard.skills: eval/skill has 3 cases, too few to tell a loss of more than 3"):
        Guard(GuardConfig([f"{SKILL}:3"]), MEASURES).judge(share(3, 3), Runtime("cpu"))
    with pytest.raises(UserError, match=r"guard.skills: eval/odd is not a finite number before the first step"):
        Guard(GuardConfig(["eval/odd:1"]), MEASURES).judge(Measured({"eval/odd": math.inf}), Runtime("cpu"))


def test_stop_says_to_which_model_it_goes_back():
    made = guard(then="stop")
    assert judged(made, share(88)) == [1] and not made.is_stopped and made.news(0) == []
    assert judged(made, share(70)) == [0] and made.is_stopped and made.goes_back
    assert [line.removeprefix("guard: ") for line in made.news(4)] == [
        "eval/skill is 20 points worse than at step 0, 11.7 of them beyond chance, and 3 may be lost",
        "back to the model of step 4, the best that kept all skills; the run stops",
    ]
    assert made.news(4) == []  # once
    judged(made, share(70))
    assert made.news(0)[-1] == "guard: back to the starting model; the run stops"
    assert made.coefficient == 0.0 and made.metrics() == {}
    assert made.summary(8, 4) == {"skills": ["eval/skill:3"], "then": "stop", "stopped": True, "policy_step": 4}


@pytest.mark.parametrize(
    "own,coefficients", [(0.0, [0.05, 0.1, 0.2, 0.3, 0.3]), (0.04, [0.08, 0.16, 0.3, 0.3, 0.3])], ids=["none", "small"]
)
def test_anchor_doubles_the_coefficient_up_to_its_bound_and_keeps_it(own, coefficients):
    made = guard(own=own, then="anchor", most=0.3)
    assert made.metrics() == {"guard/coefficient": own}
    seen = []
    for _ in coefficients:
        made.judge(share(50), Runtime("cpu"))
        seen.append(made.coefficient)
        made.judge(share(90), Runtime("cpu"))  # kept again: it stays
        assert made.coefficient == seen[-1] and made.summary(8, 4)["policy_step"] == 8
    assert seen == pytest.approx(coefficients)
    made.judge(share(50), Runtime("cpu"))
    assert made.news(2)[-1].endswith(
        "step 2, the best that kept all skills; the KL coefficient stays at guard.most=0.3"
    )
    assert made.summary(8, 4)["policy_step"] == 4 and not made.is_stopped


def test_an_anchor_never_lowers_what_a_controller_has_raised():
    own = [0.01]
    made = Guard(GuardConfig([f"{SKILL}:3"], "anchor"), MEASURES, lambda: own[0])
    judged(made, share(90), share(50))
    assert made.coefficient == 0.05
    own[0] = 0.7
    assert made.coefficient == 0.7


def test_warn_changes_nothing():
    made = guard(then="warn", own=0.1)
    assert judged(made, share(50)) == [0] and not made.is_stopped and not made.goes_back
    assert made.coefficient == 0.1 and made.news(0)[-1] == "guard: the run goes on (guard.then=warn)"
    assert made.summary(8, 4)["policy_step"] == 8


def test_without_skills_there_is_no_guard():
    made = Guard(GuardConfig(), {}, lambda: 0.3)
    assert made.judge(share(50), Runtime("cpu")) == {} and made.news(0) == [] and made.metrics() == {}
    assert made.coefficient == 0.3 and made.summary(8, 4) is None and not made.goes_back and made.firsts == []


@pytest.mark.parametrize("then", ["stop", "anchor", "warn"])
def test_a_resumed_one_decides_the_same(then):
    made = guard(then=then)
    judged(made, share(80))
    again = Guard(GuardConfig([f"{SKILL}:3"], then), MEASURES)
    again.load_state_dict(made.state_dict())
    for first, known in zip(again.firsts, made.firsts, strict=True):
        first.load_state_dict(known.state_dict())
    assert (again.coefficient, again.is_stopped) == (made.coefficient, made.is_stopped)
    for right in (95, 87, 82, 60):
        assert again.judge(share(right), Runtime("cpu")) == made.judge(share(right), Runtime("cpu"))
        assert again.news(4) == made.news(4) and again.state_dict() == made.state_dict()


def test_a_run_says_in_a_line_what_its_guard_does():
    config = PpoConfig()
    assert described(config) == []
    config.evaluation.suites, config.evaluation.every = ["function_calling", "perplexity"], 50
    config.guard.skills = ["eval/function_calling:3", "eval/perplexity:0.5"]
    (line,) = described(config)
    assert line.startswith(
        "guard      eval/function_calling 3 points, eval/perplexity 0.5 may be lost, measured every 50"
    )
