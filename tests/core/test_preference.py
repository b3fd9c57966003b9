import math

import pytest
import torch

from starling_train.core.preference import PairCounts, count_pairs, dpo_losses, drift, kwise_loss, kwise_losses


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
    assert count_pairs([[3.0, 1.0, 2.0], [1.0, 1.0]], [[1, 2, 3], [1, 2]]).accuracy == (1 + 1 + 0 + 0.5) / 4


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
    assert count_pairs(scores.tolist(), place.tolist()).accuracy == 1.0


def test_pairs_by_distance_by_hand():
    # places 1, 2, 2, 4: distances of (a,b) 1, (a,c) 1, (a,d) 3, (b,d) 2, (c,d) 2; b and c are tied
    counts = count_pairs([[1.0, 2.0, 1.0, 0.0]], [[1, 2, 2, 4]])
    assert counts.by_distance == {1: (0.5, 2), 2: (2.0, 2), 3: (1.0, 1)}
    assert (counts.right, counts.pairs, counts.accuracy) == (3.5, 5, 0.7)


def test_the_order_of_answers_does_not_matter_to_pairs():
    counts = count_pairs([[3.0, 1.0, 2.0], [0.0, 9.0]], [[1, 3, 2], [2, 1]])
    assert (counts.right, counts.pairs) == (4.0, 4)


def test_no_pairs_have_no_accuracy():
    assert math.isnan(count_pairs([[1.0]], [[1.0]]).accuracy)


def test_counts_of_parts_add_up():
    parts = [PairCounts({2: (1.0, 1)}), PairCounts({1: (0.5, 3), 2: (0.0, 4)}), PairCounts({})]
    assert list(PairCounts.sum(parts).by_distance.items()) == [(1, (0.5, 3)), (2, (1.0, 5))]


def test_dpo_by_hand():
    """log-ratios 2 and -2, so h = 4: at beta 0.1 the margin is 0.4 and the loss log(1 + e^-0.4) = 0.5130153."""
    chosen, rejected = (torch.tensor([value], requires_grad=True) for value in (-10.0, -20.0))
    reference = torch.tensor([-12.0]), torch.tensor([-18.0])
    found = dpo_losses(chosen, rejected, *reference, beta=0.1)
    expected = {"loss": 0.5130153, "chosen_reward": 0.2, "rejected_reward": -0.2}
    assert {k: float(v.detach()) for k, v in found._asdict().items()} == pytest.approx(expected, abs=1e-6)
    found.loss.backward()  # beta x sigmoid(-0.4) = 0.1 x 0.4013123
    assert float(chosen.grad) == pytest.approx(-0.04013123, abs=1e-7)
    assert float(rejected.grad) == pytest.approx(0.04013123, abs=1e-7)


def test_label_smoothing_by_hand():
    """0.9 x 0.5130153 + 0.1 x log(1 + e^0.4) = 0.9 x 0.5130153 + 0.1 x 0.9130153."""
    numbers = [torch.tensor([value]) for value in (-10.0, -20.0, -12.0, -18.0)]
    assert float(dpo_losses(*numbers, beta=0.1, label_smoothing=0.1).loss) == pytest.approx(0.5530153, abs=1e-6)


def test_ipo_by_hand():
    """(4 - 1 / (2 x 0.1))^2 = 1; it is 0 where h = 5, and pulls back beyond it."""
    numbers = [torch.tensor([value]) for value in (-10.0, -20.0, -12.0, -18.0)]
    assert float(dpo_losses(*numbers, beta=0.1, kind="ipo").loss) == pytest.approx(1.0, abs=1e-5)
    at = [float(dpo_losses(torch.tensor([h]), *[torch.zeros(1)] * 3, beta=0.1, kind="ipo").loss) for h in (4.9, 5, 5.1)]
    assert at[1] == 0 < at[0] == pytest.approx(at[2], abs=1e-5)


@pytest.mark.parametrize("kind,expected", [("sigmoid", math.log(2)), ("ipo", 25.0)])
def test_a_policy_that_is_its_reference(kind, expected):
    numbers = torch.randn(2, 7, generator=torch.Generator().manual_seed(0))
    found = dpo_losses(*numbers, *numbers, beta=0.1, kind=kind)
    torch.testing.assert_close(found.loss, torch.full((7,), expected))
    assert not found.chosen_reward.any() and not found.rejected_reward.any()


def test_dpo_with_margins_beyond_floats():
    """log sigmoid, not log of sigmoid: at -1000 that would be infinite."""
    found = dpo_losses(torch.tensor([-1000.0]), *[torch.zeros(1)] * 3, beta=1.0)
    assert float(found.loss) == 1000.0


def test_drift_by_hand_and_back_to_the_reference():
    """(-6 + 4)^2 / (2 x 8), and 0 where nothing moved; the gradient is (log policy / reference) / tokens."""
    logprobs = torch.tensor([-6.0, -4.0, -3.0], requires_grad=True)
    moved = drift(logprobs, torch.tensor([-4.0, -4.0, -4.0]), torch.tensor([8, 8, 2]))
    assert moved.tolist() == [0.25, 0.0, 0.25]
    moved.sum().backward()
    assert logprobs.grad.tolist() == [-0.25, 0.0, 0.5]  # descent goes up, nowhere, down


def test_drift_is_k2_where_all_tokens_moved_alike_and_never_more():
    from starling_train.core.ppo import kl_estimate

    alike, apart = torch.tensor([0.3, 0.3, 0.3]), torch.tensor([0.9, -0.2, 0.2])
    for per_token, exact in ((alike, True), (apart, False)):
        k2 = kl_estimate(per_token, torch.zeros(3), "k2").sum()
        summed = drift(per_token.sum()[None], torch.zeros(1), torch.tensor([3]))[0]
        assert torch.isclose(summed, k2) if exact else summed < k2
