"""Overlap of two scans, by hand."""

import pytest

from starling_train.selection.overlap import compare, render, spearman
from starling_train.selection.records import Record


def make(scores):
    names = [f"model.layers.{i}.mlp.up_proj" for i in range(len(scores))]
    return {n: Record(n, "mlp.up_proj", snr=s) for n, s in zip(names, scores, strict=True)}


def test_spearman_by_hand():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == 1
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == -1
    # ranks 1 2 3 and 1 3 2: 1 - 6 * 2 / (3 * 8) = 0.5
    assert spearman([1, 2, 3], [5, 9, 7]) == pytest.approx(0.5)
    # a tie shares its mean rank: ranks 0.5 0.5 2 against 0 1 2 -> 1.5 / sqrt(1.5 * 2)
    assert spearman([1, 1, 3], [1, 2, 3]) == pytest.approx(1.5 / 3**0.5)
    assert spearman([1, 1], [1, 2]) is None and spearman([1], [1]) is None
    assert spearman([1, None, 2], [1, 2, 3]) is None
    assert spearman([1, float("inf")], [1, 2]) == pytest.approx(1)


def test_overlap():
    first, second = make([1, 2, 3, 4]), make([4, 2, 3, 1])
    names = list(first)
    rows = compare(first, second, names[2:], [names[0], names[2]])
    assert [(r.type, r.matrices, r.first, r.second, r.both) for r in rows] == [
        ("mlp.up_proj", 4, 2, 2, 1),
        ("total", 4, 2, 2, 1),
    ]
    assert rows[0].correlation == pytest.approx(-0.8)
    assert "-0.800" in render(rows)


def test_models_of_different_depth():
    rows = compare(make([1, 2, 3]), make([1, 2]), [], [])
    assert rows[0].matrices == 2 and rows[0].correlation == 1
