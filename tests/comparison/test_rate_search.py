"""The search for learning rates: what counts, what is chosen, and what is said of it."""

import pytest
from test_curves import SKILL, write

from starling_train.comparison import search
from starling_train.comparison.curves import Curve
from starling_train.comparison.search import Search, Tried
from starling_train.config.compare import CompareConfig
from starling_train.config.fields import UserError
from starling_train.report import comparison as page


def tried(strategy, rate, *rewards, seeds=(1000, 1001)):
    known = [reward for reward in rewards if reward is not None]
    mean = sum(known) / len(known) if len(known) == len(rewards) else None
    return Tried(strategy, rate, list(seeds), list(rewards), mean, {SKILL: -1.0})


def chosen(*of, rates=(1e-4, 3e-4, 1e-3), seeds=(1000, 1001)):
    return Search("eval/score_mean", search.choose(of, rates, seeds)).rates()


def test_the_rate_that_gains_most_on_average_is_chosen_for_each_strategy():
    of_snr = [tried("snr", 1e-4, 1.0, 1.0), tried("snr", 3e-4, 2.0, 1.9), tried("snr", 1e-3, 3.5, 0.0)]
    of_none = [tried("none", 1e-4, 1.0, 1.0), tried("none", 3e-4, 0.5, 0.5), tried("none", 1e-3, 1.0, 1.0)]
    assert chosen(*of_snr, *of_none) == {"snr": 3e-4, "none": 1e-4}  # of equal ones the smallest


def test_a_run_that_did_not_end_finite_takes_its_rate_out():
    assert chosen(tried("snr", 1e-4, 0.1, 0.2), tried("snr", 3e-4, 9.0, None), rates=(1e-4, 3e-4)) == {"snr": 1e-4}
    with pytest.raises(UserError, match=r"^compare\.search: with every learning rate a run of snr ended with"):
        chosen(tried("snr", 1e-4, None, 1.0), rates=(1e-4,))


def test_there_is_no_choice_before_all_rates_were_tried_on_all_seeds():
    assert chosen(tried("snr", 1e-4, 1.0, 1.0), tried("snr", 3e-4, 2.0, 2.0)) == {}
    assert chosen(tried("snr", 1e-4, 1.0, seeds=[1000]), rates=(1e-4,)) == {}


def test_only_the_seeds_of_the_search_count():
    curves = [
        Curve("snr", seed, 1, [0, 5], [0.0, gain], {SKILL: [0.0, -gain]}, {}, []) for seed, gain in ((7, 9.0), (8, 2.0))
    ]
    curves.append(
        Curve("snr", 9, 1, [0, 5], [0.0, 5.0], {SKILL: [0.0, -4.0]}, {}, [10])
    )  # its last value is not finite
    one = search.summarised("snr", 1e-3, curves, [8])
    assert (one.seeds, one.rewards, one.reward, one.skills) == ([7, 8, 9], [9.0, 2.0, None], 2.0, {SKILL: -5.0})
    assert search.summarised("snr", 1e-3, curves, [8, 9]).reward is None
    assert search.summarised("snr", 1e-3, curves, [8, 10]).reward is None


def test_everything_in_the_directory_is_listed(tmp_path):
    config = CompareConfig()
    config.compare.search, config.compare.search_seeds = [1e-4, 3e-4], 1
    config.evaluation.suites = ["function_calling"]
    for rate, seed, gain in ((3e-4, 1000, 3.0), (1e-4, 1000, 1.0), (3e-4, 5, 9.0), (1e-3, 1000, 8.0)):
        write(tmp_path / "search" / "snr", f"{rate!r}", seed, [0.0, gain], [90.0, 90.0 - gain])
    write(tmp_path / "search" / "none", "0.0001", 1000, [0.0, 2.0], [90.0, 80.0], finished=False)
    (tmp_path / "search" / "snr" / "notes").mkdir()
    found = search.find(config, tmp_path)
    assert [(one.rate, one.seeds, one.reward, one.is_chosen) for one in found.tried] == [
        (1e-4, [1000], 1.0, False),
        (3e-4, [5, 1000], 3.0, True),
        (1e-3, [1000], 8.0, False),  # of an earlier search
    ]
    table = page.search_table(found)
    assert table.head == [
        "strategy", "learning rate", "reward gained, seed 5", "reward gained, seed 1000", "mean",
    ]  # fmt: skip
    assert table.rows == [
        ["snr", "0.0001", "", "+1.00", "+1.00"],
        ["snr", "0.0003 (chosen)", "+9.00", "+3.00", "+3.00"],
        ["snr", "0.001", "", "+8.00", "+8.00"],
    ]


def test_a_rate_at_an_end_is_said():
    found = Search(
        "eval/score_mean", search.choose([tried("snr", 1e-4, 1.0), tried("snr", 3e-4, 2.0)], [1e-4, 3e-4], [])
    )
    assert search.remarks(found, [1e-4, 3e-4]) == [
        "snr runs with the largest learning rate that was tried (0.0003): one beyond it may be better."
    ]
    assert search.remarks(found, [1e-4, 3e-4, 1e-3]) == [] == search.remarks(found, [3e-4])
