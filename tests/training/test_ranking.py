"""Ranked rows: loss, gradients and validation do not depend on how the rows are cut."""

import pytest
import torch
from reward_checkpoints import fresh_net

from starling_train.config.rm import RankingConfig
from starling_train.config.sections import OptimConfig
from starling_train.core.preference import kwise_losses
from starling_train.models.reward.net import RewardNet
from starling_train.training.local import LocalOptimizer
from starling_train.training.reward_model import update
from starling_train.training.reward_model.update import EncodedRankedRow


def rows() -> list[EncodedRankedRow]:
    draw = torch.Generator().manual_seed(0)

    def sequence() -> list[int]:
        return torch.randint(5, 200, (int(torch.randint(3, 30, (1,), generator=draw)),), generator=draw).tolist()

    return [
        EncodedRankedRow([sequence() for _ in places], places)
        for places in ([1, 2, 3], [1, 2], [1, 2, 3, 4, 5, 6, 7], [1, 1, 2, 2], [1, 2, 2, 3])
    ]


def optimizer_of(net: RewardNet) -> LocalOptimizer:
    config = OptimConfig(learning_rate=1e-2, schedule="constant")
    optimizer = LocalOptimizer(net, (dict(net.named_parameters()), {}), config)
    optimizer.set_rates(1, 10)
    return optimizer


def gradients(config: RankingConfig) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Metrics and gradients of one step."""
    net = fresh_net()
    kept: dict[str, torch.Tensor] = {}
    optimizer = optimizer_of(net)
    optimizer.step = lambda: kept.update({n: p.grad for n, p in net.named_parameters()}) or 1.0
    return update.update(optimizer, rows(), config), kept


@pytest.mark.parametrize("centring", [0.0, 0.1])
def test_gradients_do_not_depend_on_the_micro_batches(centring):
    _, whole = gradients(RankingConfig(tokens_per_microbatch=100_000, centring=centring))
    for budget in (1, 150, 400):
        _, cut = gradients(RankingConfig(tokens_per_microbatch=budget, centring=centring))
        for name in whole:
            torch.testing.assert_close(cut[name], whole[name], rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_mean_over_rows_of_each_row_alone():
    net, centring = fresh_net(), 0.1
    expected, totals = [], []
    for row in rows():
        scores = torch.stack(
            [net(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long)).squeeze(0) for ids in row.sequences]
        )
        expected.append(kwise_losses(scores[None], None, torch.tensor([row.ranks])).squeeze(0))
        totals.append(scores.sum())
    total = torch.stack(expected).mean() + centring * torch.stack(totals).square().mean()
    total.backward()
    metrics, found = gradients(RankingConfig(centring=centring))
    assert metrics["rm/loss"] == pytest.approx(float(torch.stack(expected).mean().detach()), abs=1e-5)
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_validation_by_hand_and_however_it_is_cut():
    net = fresh_net()
    measured = [update.evaluate(net, rows(), RankingConfig(tokens_per_microbatch=b)) for b in (1, 100_000)]
    assert measured[0].keys() == measured[1].keys()
    assert measured[0] == pytest.approx(measured[1], abs=1e-5)
    keys = [key for key in measured[0] if "distance" in key]
    assert keys == [f"eval/preference_accuracy_distance_{d}" for d in range(1, 7)]
    # one row of two answers: right or wrong as a whole
    one = update.evaluate(net, rows()[1:2], RankingConfig())
    assert one["eval/preference_accuracy"] in (0.0, 1.0)
    other = update.evaluate(net, [EncodedRankedRow(rows()[1].sequences[::-1], [1, 2])], RankingConfig())
    assert one["eval/preference_accuracy"] + other["eval/preference_accuracy"] == 1.0


def test_an_update_lowers_the_loss_and_one_that_is_not_finite_is_skipped():
    net = fresh_net()
    optimizer = optimizer_of(net)
    losses = [update.update(optimizer, rows(), RankingConfig())["rm/loss"] for _ in range(5)]
    assert losses[-1] < losses[0]
    with torch.no_grad():
        net.v_head.weight[0, 0] = torch.nan
    before = net.transformer.layers[0].mlp.up_proj.weight.clone()
    assert update.update(optimizer, rows(), RankingConfig())["optim/skipped"] == 1
    assert torch.equal(net.transformer.layers[0].mlp.up_proj.weight, before)
