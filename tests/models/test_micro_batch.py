import itertools

import pytest

from starling_train.core.micro_batches import cut_bundles_by_tokens, cut_by_tokens, cut_packed, overhead_of
from starling_train.models.micro_batch import micro_batch, response_mask


@pytest.mark.parametrize(
    "cut,size", [(cut_by_tokens, lambda group: len(group) * max(group)), (cut_packed, sum)], ids=["padded", "packed"]
)
@pytest.mark.parametrize("budget", [1, 10, 37, 10_000])
def test_every_sequence_once_and_within_the_budget(cut, size, budget):
    lengths = [5, 9, 2, 9, 7, 3, 1, 30]
    groups = cut(lengths, budget)
    assert sorted(i for group in groups for i in group) == list(range(8))
    for group in groups:
        assert size([lengths[i] for i in group]) <= budget or len(group) == 1


def test_groups_hold_neighbours_in_length():
    assert cut_by_tokens([1, 8, 2, 7], 16) == [[1, 3], [2, 0]]


def test_the_cuts_are_the_cheapest_of_all():
    lengths, overhead = [90, 70, 66, 20, 19, 4, 3, 1], 30
    for budget in (100, 150, 10_000):
        costs = []
        for cuts in itertools.product([False, True], repeat=len(lengths) - 1):
            ends = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(lengths)]
            groups = [lengths[a:b] for a, b in itertools.pairwise(ends)]
            if all(len(group) == 1 or len(group) * group[0] <= budget for group in groups):
                costs.append(sum(len(group) * group[0] + overhead for group in groups))
        found = cut_by_tokens(lengths, budget, overhead)
        assert sum(len(group) * lengths[group[0]] + overhead for group in found) == min(costs)


def test_overhead_by_hand():
    # 8 layers x 0.25 ms at 1e11 operations a second are 2e8 operations: 10 tokens of 2 x 10 M
    assert overhead_of(10_000_000, 8, "cpu") == 10
    assert overhead_of(7_000_000_000, 32, "cuda") == 286
    assert overhead_of(7_000_000_000, 32, "cpu") == 8


def test_micro_batch_by_hand():
    batch = micro_batch([[1, 2], [3]], [[7], [8, 9, 5]], "cpu")
    assert batch.ids.tolist() == [1, 2, 3, 8, 9]
    assert batch.packing.lengths == [2, 3] and batch.packing.positions.tolist() == [0, 1, 0, 1, 2]
    assert batch.source.tolist() == [1, 2, 3, 4]  # 2; then 3, 8, 9 of the second sequence
    assert batch.targets.tolist() == [7, 8, 9, 5]


def test_response_mask_by_hand():
    assert response_mask([[7], [8, 9, 5]], "cpu").tolist() == [[True, False, False], [True, True, True]]


@pytest.mark.parametrize("budget", [1, 30, 100, 10_000])
def test_bundles_stay_whole_and_within_the_budget(budget):
    bundles = [[5, 9], [2, 1, 1], [9], [3, 3, 3, 3], [30, 1]]
    groups = cut_bundles_by_tokens(bundles, budget)
    assert sorted(i for group in groups for i in group) == list(range(5))
    for group in groups:
        lengths = [length for i in group for length in bundles[i]]
        assert len(lengths) * max(lengths) <= budget or len(group) == 1
    assert len(cut_bundles_by_tokens(bundles, 10_000, overhead=10_000)) == 1


def test_packed_groups_by_hand():
    # 20 tokens need two groups of at most 12: 8 + 3 and 3 + 3 + 3, not 12 and 8
    assert cut_packed([3, 8, 3, 3, 3], 12) == [[1, 0], [2, 3, 4]]
    # in attention each of these would pad to 100, and nine of them to more than twice the budget of 250
    assert cut_packed([100, *[1] * 8], 250) == [[0], [1, 2, 3, 4, 5, 6, 7, 8]]
    assert cut_packed([100, *[1] * 4], 250) == [[0, 1, 2, 3, 4]]
    assert cut_packed([], 10) == []
