import math

import pytest
import torch

from starling_train.core.preference import kwise_loss, pair_accuracy


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
