"""Mini-batches of a step: every sequence once, about the same tokens of every process, however many there are."""

import math
import random
from itertools import combinations
from statistics import mean

import pytest
import torch

from starling_train.training.ppo import mini_batches
from starling_train.training.ppo.mini_batches import StepSequences, draw


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def all_fit(tokens: list[int]) -> StepSequences:
    return StepSequences(len(tokens), list(range(len(tokens))), tokens)


def drawn_tokens(count: int, seed: int) -> list[int]:
    """Lengths as Nectar's prompts and Openchat's responses may have them, 509 tokens in the mean."""
    chance = random.Random(seed)
    prompts = (min(1024, max(8, round(chance.lognormvariate(math.log(120), 0.85)))) for _ in range(count))
    return [prompt + min(1024, max(1, round(chance.lognormvariate(math.log(260), 0.8)))) for prompt in prompts]


def of_processes(sequences: StepSequences, indices: list[int], processes: int) -> list[list[int]]:
    return [[i for i in indices if sequences.numbers[i] % processes == rank] for rank in range(processes)]


def test_the_longest_of_one_stratum_goes_with_the_shortest_of_the_other(monkeypatch):
    monkeypatch.setattr(mini_batches, "SPREAD", 0.0)
    # strata by parity, longest first: 10, 9 and 2, 1; so 10 + 1 and 9 + 2
    assert sorted(draw(all_fit([10, 1, 9, 2]), 2, generator())) == [[0, 1], [2, 3]]
    # strata by remainder by 4: (8, 1), (7, 2), (6, 3), (5, 4). Those of one of two processes first: 0 and 2 to
    # 8 + 3 and 1 + 6, 1 and 3 to 7 + 4 and 2 + 5; then 11 + 7 and 7 + 11
    assert sorted(draw(all_fit([8, 7, 6, 5, 1, 2, 3, 4]), 2, generator())) == [[0, 3, 5, 6], [1, 2, 4, 7]]


@pytest.mark.parametrize("prompts, count", [(64, 4), (256, 4), (96, 8), (60, 3)])
def test_every_process_has_as_many_sequences_of_every_mini_batch(prompts, count):
    sequences, size = all_fit(drawn_tokens(prompts, 1)), prompts // count
    found = draw(sequences, count, generator())
    assert sorted(i for indices in found for i in indices) == list(range(prompts))
    for processes in (number for number in range(1, size + 1) if size % number == 0):
        for indices in found:
            assert {len(own) for own in of_processes(sequences, indices, processes)} == {size // processes}


@pytest.mark.parametrize(
    "of_step, count, missing",
    [
        (7, 2, []),
        (64, 4, [3, 4, 20, 63]),
        (10, 4, []),
        (9, 4, [8]),
        (3, 5, [1]),
        (2, 2, [0, 1]),
        (256, 4, range(6, 256)),
    ],
)
def test_odd_numbers_and_sequences_that_are_left_out(of_step, count, missing):
    numbers = [number for number in range(of_step) if number not in missing]
    sequences = StepSequences(of_step, numbers, drawn_tokens(len(numbers), 2))
    for seed in range(5):
        found = draw(sequences, count, generator(seed))
        assert sorted(i for indices in found for i in indices) == list(range(len(numbers)))
        assert len(found) == min(count, len(numbers)) and all(found)
        assert max(map(len, found), default=0) <= math.ceil(of_step / count)  # at most one of each stratum


def share(sequences: StepSequences, found: list[list[int]], processes: int) -> float:
    """The share of the update in which a process works: all wait for the one with the most tokens of a mini-batch."""
    tokens = [
        [sum(sequences.tokens[i] for i in own) for own in of_processes(sequences, indices, processes)]
        for indices in found
    ]
    return sum(map(sum, tokens)) / (processes * sum(map(max, tokens)))


def test_sixteen_processes_work_three_quarters_of_the_update():
    ours, plain = [], []
    for step in range(20):
        sequences = all_fit(drawn_tokens(256, step))
        ours.append(share(sequences, draw(sequences, 4, generator(step)), 16))
        order = torch.randperm(256, generator=generator(step))
        plain.append(share(sequences, [part.tolist() for part in order.tensor_split(4)], 16))
    assert mean(plain) < 0.55 and mean(ours) >= 0.75


def test_epochs_have_other_mini_batches_of_like_size():
    sequences, order = all_fit(drawn_tokens(256, 3)), generator()
    epochs = [draw(sequences, 4, order) for _ in range(2)]
    together = [{pair for indices in found for pair in combinations(indices, 2)} for found in epochs]
    assert len(together[0] & together[1]) / len(together[0]) < 0.45  # of which 0.25 by chance
    assert draw(sequences, 4, generator()) == epochs[0]
    for found in epochs:
        sizes = [sum(sequences.tokens[i] for i in indices) for indices in found]
        assert max(sizes) < 1.2 * min(sizes)


@pytest.mark.parametrize("prompts, group, count", [(128, 4, 2), (16, 8, 4), (8, 4, 2), (16, 4, 4), (64, 2, 4)])
def test_groups_stay_whole_and_every_process_has_as_many(prompts, group, count):
    sequences = StepSequences(prompts * group, list(range(prompts * group)), drawn_tokens(prompts * group, 3), group)
    found = draw(sequences, count, generator())
    assert sorted(i for indices in found for i in indices) == list(range(prompts * group)) and len(found) == count
    for indices in found:
        of_prompts = [i // group for i in indices]
        assert all(of_prompts.count(prompt) == group for prompt in of_prompts)
        for processes in (1, 2, prompts // count):
            dealt = [prompt % processes for prompt in set(of_prompts)]
            assert {dealt.count(rank) for rank in range(processes)} == {prompts // count // processes}


@pytest.mark.parametrize(
    "prompts, group, count, missing",
    [(1, 8, 2, []), (3, 4, 4, [0, 5]), (2, 3, 6, []), (5, 3, 2, [0, 1, 2, 14]), (2, 2, 4, range(1, 4))],
)
def test_groups_that_are_fewer_than_mini_batches_are_cut(prompts, group, count, missing):
    numbers = [number for number in range(prompts * group) if number not in missing]
    sequences = StepSequences(prompts * group, numbers, drawn_tokens(len(numbers), 4), group)
    for seed in range(5):
        found = draw(sequences, count, generator(seed))
        assert sorted(i for indices in found for i in indices) == list(range(len(numbers)))
        assert all(found) and len(found) <= count
        if not missing:
            assert len(found) == min(count, prompts * group)
            assert max(map(len, found)) <= math.ceil(group / math.ceil(count / prompts)) * math.ceil(prompts / count)
