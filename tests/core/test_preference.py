import math

import pytest
import torch

from starling_train.core.preference import kwise_loss, kwise_losses, pair_accuracy, pairs_by_distance


def test_seven_equal_scores_give_log_7_factorial_over_6():
    assert kwise_loss(torch.zeros(3, 7)).item() == pytest.approx(math.log(math.factorial(7)) / 6)


def test_kwise_by_hand():
    # scores 2, 1, 0: -[2 - log(e^2 + e + 1)] - [1 - log(e + 1)], over 2
    expected = (math.log(math.e**2 + math.e + 1) - 2 + math.log(math.e + 1) - 1) / 2
    assert kwise_loss(torch.tensor([[2.0, 1.0, 0.0]])).item() == pytest.approx(expected)


def test_two_answers_are_the_bradley_terry_loss():
    scores = torch.tensor([[0.3, -0.9], [1.0, 4.0]])
    expected = -torch.nn.functional.logsigmoid(scores[:, 0] - scores[:, 1]).mean()
    torch.testing.assert_close(kwise_loss(scores), expected)


def test_adding_a_constant_to_a_row_changes_nothing():
    scores = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(kwise_loss(scores + 3.0), kwise_loss(scores))


def test_rows_of_fewer_answers_count_as_if_alone():
    scores = torch.tensor([[2.0, 1.0, 0.0], [0.5, -0.5, 123.0], [7.0, 5.0, 5.0]])
    is_answer = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    alone = [kwise_loss(scores[:1]), kwise_loss(scores[1:2, :2])]  # a single answer says nothing
    torch.testing.assert_close(kwise_loss(scores, is_answer), torch.stack(alone).mean())


def test_padding_answers_get_no_gradient():
    scores = torch.tensor([[0.5, -0.5, 9.0]], requires_grad=True)
    kwise_loss(scores, torch.tensor([[True, True, False]])).backward()
    assert scores.grad.isfinite().all()
    assert scores.grad[0, 2] == 0 and scores.grad[0, 0] < 0 < scores.grad[0, 1]


def test_pair_accuracy_by_hand():
    # pairs of the first row: (3,1) right, (3,2) right, (1,2) wrong; of the second, with two answers: a tie
    scores = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 50.0]])
    is_answer = torch.tensor([[True, True, True], [True, True, False]])
    assert pair_accuracy(scores, is_answer).item() == pytest.approx((1 + 1 + 0 + 0.5) / 4)


def test_tied_answers_are_not_compared():
    # first, second and third share a place: only the last is chosen against; a: 3 - log(e^3 + e^1), b and c likewise
    scores = torch.tensor([[3.0, 2.0, 0.5, 1.0]])
    place = torch.tensor([[1, 1, 1, 2]])
    terms = [math.log(math.exp(r) + math.e) - r for r in (3.0, 2.0, 0.5)]
    assert kwise_loss(scores, None, place).item() == pytest.approx(sum(terms) / 3)
    # a tie at the bottom: one choice is made, against both
    place = torch.tensor([[1, 2, 2]])
    expected = math.log(math.exp(3.0) + math.exp(2.0) + math.exp(0.5)) - 3.0
    assert kwise_loss(scores[:, :3], None, place).item() == pytest.approx(expected)


def test_the_order_of_tied_answers_does_not_matter():
    scores = torch.randn(1, 5, generator=torch.Generator().manual_seed(1))
    place = torch.tensor([[1, 2, 2, 2, 3]])
    torch.testing.assert_close(kwise_loss(scores, None, place), kwise_loss(scores[:, [0, 3, 1, 2, 4]], None, place))


def test_rows_without_an_order_say_nothing():
    scores = torch.tensor([[1.0, 0.0], [5.0, -5.0]], requires_grad=True)
    place = torch.tensor([[1, 2], [4, 4]])
    loss = kwise_loss(scores, None, place)
    torch.testing.assert_close(loss, kwise_loss(scores[:1]))
    loss.backward()
    assert scores.grad[1].tolist() == [0.0, 0.0]
    assert kwise_losses(scores, None, place)[1] == 0
    assert pair_accuracy(scores, None, place) == 1.0


def test_pairs_by_distance_by_hand():
    # places 1, 2, 2, 4: distances of (a,b) 1, (a,c) 1, (a,d) 3, (b,d) 2, (c,d) 2; b and c are tied
    right, pairs = pairs_by_distance(torch.tensor([[1.0, 2.0, 1.0, 0.0]]), None, torch.tensor([[1, 2, 2, 4]]))
    assert pairs.tolist() == [0, 2, 2, 1]
    assert right.tolist() == [0, 0.5, 2, 1]
