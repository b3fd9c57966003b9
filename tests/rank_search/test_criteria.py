import math
from dataclasses import replace

import pytest
import torch

from starling_train.rank_search import criteria


def split(most=None, percent=25.0, seed=0) -> criteria.Split:
    return criteria.Split(most, percent, torch.Generator().manual_seed(seed))


def test_what_belongs_together_comes_to_one_side():
    groups = [[f"{name}{i}" for i in range(4)] for name in "abcdefgh"]
    judging, held_out = split()(groups)
    assert (len(judging), len(held_out)) == (24, 8)
    assert sorted(judging + held_out) == sorted(item for group in groups for item in group)
    assert not {item[0] for item in judging} & {item[0] for item in held_out}
    assert split()(groups) == (judging, held_out) != split(seed=1)(groups)


def test_no_more_than_the_most_and_something_always_judges():
    groups = [[i] for i in range(100)]
    judging, held_out = split(most=8, percent=50.0)(groups)
    assert (len(judging), len(held_out)) == (4, 4) and not set(judging) & set(held_out)
    assert split(most=1, percent=90.0)(groups)[1] == []
    assert split(most=3)([list(range(10))]) == ([0, 1, 2], [])  # one document longer than that
    assert split(percent=0.0)(groups)[1] == []


@pytest.mark.parametrize(("name", "better", "worse"), [("perplexity", 2.0, 3.0), ("preference_margin", 0.5, 0.25)])
def test_equal_is_not_worse_and_nan_is(name, better, worse):
    criterion = criteria.Criterion(name, "windows", [], [], 0, lambda *_: 0.0)
    assert criterion.is_not_worse(better, worse) and criterion.is_not_worse(better, better)
    digests = {one.digest() for one in (criterion, replace(criterion, held_out=[3]), replace(criterion, judging=[3]))}
    assert len(digests) == 3
    assert not criterion.is_not_worse(worse, better) and not criterion.is_not_worse(math.nan, better)
