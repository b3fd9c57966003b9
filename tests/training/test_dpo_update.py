"""DPO's loss and gradients: the formula on whole logits, TRL's own, and the same however the pairs are cut."""

import copy
import math

import pytest
import torch

from starling_train.config.dpo import DpoLossConfig
from starling_train.config.sections import OptimConfig
from starling_train.evals.held_out_pairs import pair_metrics
from starling_train.models.actors import Actors
from starling_train.models.budget import Budget
from starling_train.run.runtime import Runtime
from starling_train.training.dpo import update
from starling_train.training.dpo.update import EncodedPairedRow
from starling_train.training.local import LocalOptimizer

SIZES = [((4, 6), (4, 3)), ((7, 2), (7, 9)), ((3, 1), (3, 12)), ((5, 5), (5, 5)), ((9, 4), (9, 2))]
SINGLE = "layers.1.mlp"


def rows(pairs: list[tuple[int, int]] | None = None, answers: int = 2) -> list[EncodedPairedRow]:
    """Prompts of some tokens with two answers each, or more; the reference's log-probs are made up."""
    draw = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(97, (count,), generator=draw).tolist()

    found = []
    for place, sizes in enumerate(SIZES):
        prompt = ids(sizes[0][0])
        responses = [ids(sizes[i % 2][1] + i // 2) for i in range(answers)]
        reference = [-4.5 * len(response) + float(torch.randn(1, generator=draw)) for response in responses]
        found.append(EncodedPairedRow(place, [prompt] * answers, responses, pairs or [(0, 1)], reference))
    return found


@pytest.fixture
def net(tiny_mistral) -> Actors:
    """Of three layers, the second one's MLP trains."""
    policy = tiny_mistral(initializer_range=0.3)
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(SINGLE in name)
    return Actors(policy, "none", lowest=1, has_reference=False)


def gradients(
    net: Actors, given: list[EncodedPairedRow], config: DpoLossConfig, anchor: float = 0.0
) -> tuple[float, dict]:
    """Loss and gradients as a step computes them."""
    net.zero_grad(set_to_none=True)
    kept: dict[str, torch.Tensor] = {}
    optimizer = optimizer_of(net)
    optimizer.step = lambda is_finite: kept.update({n: p.grad for n, p in net.trainable().items()}) or 1.0
    updated = update.update(net, optimizer, given, config, anchor=anchor)
    assert ("dpo/drift" in updated.metrics) == (anchor > 0)
    return updated.metrics["dpo/loss"], kept


def by_hand(
    net: Actors, given: list[EncodedPairedRow], config: DpoLossConfig, anchor: float = 0.0
) -> tuple[float, dict]:
    """The paper's formula, a whole forward pass of the plain model for each answer alone."""
    model = copy.deepcopy(net.policy)

    def logprob(prompt: list[int], response: list[int]) -> torch.Tensor:
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1)[range(len(response)), response].sum()

    losses, drifts = [], []
    for row in given:
        values = [logprob(*pair) for pair in zip(row.prompts, row.responses, strict=True)]
        for better, worse in row.pairs:
            drifts += [
                (values[one] - row.reference[one]) ** 2 / (2 * len(row.responses[one])) / 2 for one in (better, worse)
            ]
            h = (values[better] - values[worse]) - (row.reference[better] - row.reference[worse])
            if config.loss == "ipo":
                losses.append((h - 1 / (2 * config.beta)) ** 2)
            else:
                e, margin = config.label_smoothing, config.beta * h
                losses.append((1 - e) * (1 + (-margin).exp()).log() + e * (1 + margin.exp()).log())
    loss = torch.stack(losses).mean()
    (loss + anchor * torch.stack(drifts).sum() / len(losses)).backward()
    return float(loss.detach()), {f"policy.{n}": p.grad for n, p in model.named_parameters() if p.requires_grad}


def same(found: tuple[float, dict], expected: tuple[float, dict], tolerance: float = 1e-5) -> None:
    assert found[0] == pytest.approx(expected[0], abs=tolerance, rel=tolerance)
    assert found[1].keys() == expected[1].keys() and found[1]
    scale = max(float(gradient.abs().max()) for gradient in expected[1].values())
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, atol=tolerance * max(1.0, scale), rtol=tolerance, msg=name)


@pytest.mark.parametrize(
    "settings", [{"beta": 0.1}, {"beta": 0.7, "label_smoothing": 0.2}, {"beta": 0.4, "loss": "ipo"}], ids=str
)
def test_loss_and_gradients_are_the_formula(net, settings):
    config = DpoLossConfig(tokens_per_microbatch=40, **settings)
    same(gradients(net, rows(), config), by_hand(net, rows(), config))


@pytest.mark.parametrize("pairs,answers", [(None, 2), ([(0, 1), (0, 2), (1, 2)], 3)])
def test_an_anchor_adds_the_mean_drift_of_a_pairs_answers_to_the_gradients(net, pairs, answers):
    config, given = DpoLossConfig(beta=0.3, tokens_per_microbatch=60), rows(pairs, answers)
    anchored = gradients(net, given, config, 0.2)
    same(anchored, by_hand(net, given, config, 0.2))  # dpo/loss itself is without it
    plain = gradients(net, given, config)
    assert any(not torch.allclose(anchored[1][name], plain[1][name]) for name in plain[1])


def test_all_pairs_of_an_answer_share_its_forward_pass(net):
    config, every = DpoLossConfig(beta=0.3), [(0, 1), (0, 2), (1, 2), (2, 3), (0, 3)]
    given = rows(every, answers=4)
    same(gradients(net, given, config), by_hand(net, given, config))


def test_loss_and_gradients_are_trls(net, tmp_path):
    """DPOTrainer.compute_loss on the same weights and ids, padded, with a second model as reference."""
    trl = pytest.importorskip("trl", reason="trl is in the test extra")
    import openchat_tokenizer
    from datasets import Dataset
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    reference, draw = copy.deepcopy(net.policy), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=draw))
    known = update.logprobs_of(
        Actors(reference, "none", lowest=0, has_reference=False), rows(), Budget("test", 60), Runtime()
    )
    given = [EncodedPairedRow(r.index, r.prompts, r.responses, r.pairs, v) for r, v in zip(rows(), known, strict=True)]
    model = copy.deepcopy(net.policy)
    settings = trl.DPOConfig(str(tmp_path), beta=0.3, max_length=None, report_to=[], bf16=False, use_cpu=True)
    unused = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])  # it wants to tokenise something
    trainer = trl.DPOTrainer(
        model, reference, settings, train_dataset=unused, processing_class=openchat_tokenizer.build()
    )
    loss = trainer.compute_loss(
        model,
        DataCollatorForPreference(pad_token_id=0)(
            [
                {"prompt_ids": row.prompts[0], "chosen_ids": row.responses[0], "rejected_ids": row.responses[1]}
                for row in given
            ]
        ),
    )
    loss.backward()
    theirs = float(loss.detach()), {f"policy.{n}": p.grad for n, p in model.named_parameters() if p.requires_grad}
    ours = gradients(net, given, DpoLossConfig(beta=0.3, tokens_per_microbatch=60))
    assert ours[0] != pytest.approx(math.log(2), abs=0.01)
    same(ours, theirs)


def test_nothing_depends_on_micro_batches_or_order(net):
    given = rows([(0, 1), (0, 2), (1, 2)], answers=3)
    whole = gradients(net, given, DpoLossConfig(tokens_per_microbatch=100_000))
    for budget in (1, 60, 130):
        same(gradients(net, given, DpoLossConfig(tokens_per_microbatch=budget)), whole)
    same(gradients(net, given[::-1], DpoLossConfig(tokens_per_microbatch=130)), whole)


def test_log_probs_do_not_depend_on_what_lies_beside_an_answer(net):
    alone = [update.logprobs_of(net, [row], Budget("test", 1), Runtime())[0] for row in rows()]
    together = update.logprobs_of(net, rows(), Budget("test", 100_000), Runtime())
    for mine, beside in zip(alone, together, strict=True):
        assert mine == pytest.approx(beside, abs=1e-5)


def optimizer_of(net: Actors, rate: float = 1e-3) -> LocalOptimizer:
    optimizer = LocalOptimizer(net, net.groups(), OptimConfig(learning_rate=rate, schedule="constant"))
    optimizer.set_rates(1, 10)
    return optimizer


def referenced(net: Actors) -> list[EncodedPairedRow]:
    """The rows with the policy itself as reference."""
    known = update.logprobs_of(net, rows(), Budget("test", 60), Runtime())
    return [EncodedPairedRow(r.index, r.prompts, r.responses, r.pairs, v) for r, v in zip(rows(), known, strict=True)]


def test_updates_widen_the_margin_and_the_first_one_starts_at_log_2(net):
    given, config = referenced(net), DpoLossConfig(tokens_per_microbatch=60)
    optimizer = optimizer_of(net)
    found = [update.update(net, optimizer, given, config).metrics for _ in range(6)]
    assert found[0]["dpo/loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert found[0]["dpo/margin"] == pytest.approx(0, abs=1e-5) and found[0]["dpo/pairs"] == 5
    assert found[-1]["dpo/loss"] < found[0]["dpo/loss"] and found[-1]["dpo/margin"] > 0.01
    for line in found:
        assert line["dpo/margin"] == pytest.approx(line["dpo/chosen_reward"] - line["dpo/rejected_reward"])


def test_validation_of_the_untrained_policy_is_exactly_even(net):
    """The reference's numbers came out of the same pass, so no rounding decides a pair."""
    config, budget = DpoLossConfig(tokens_per_microbatch=60), Budget("test", 60)
    found = pair_metrics(net, [referenced(net)], config, budget, Runtime())
    assert found["eval/preference_accuracy"] == 0.5
    assert found["eval/reward_margin"] == 0 and found["eval/loss"] == pytest.approx(math.log(2))
    optimizer = optimizer_of(net)
    given = referenced(net)
    update.update(net, optimizer, given, config)
    after = pair_metrics(net, [given[:2], given[2:]], config, budget, Runtime())
    assert after["eval/reward_margin"] > 0


@pytest.mark.parametrize("what", ["reference", "weights"])
def test_what_is_not_finite_is_not_applied_and_named(net, what):
    given, config = referenced(net), DpoLossConfig(tokens_per_microbatch=60)
    before = {name: p.detach().clone() for name, p in net.trainable().items()}
    if what == "reference":
        given[3].reference[0] = math.inf
    else:
        with torch.no_grad():
            net.policy.lm_head.weight.mul_(math.nan)
    optimizer = optimizer_of(net)
    updated = update.update(net, optimizer, given, config)
    assert updated.metrics["optim/skipped"] == 1 and optimizer.applied == 0
    assert updated.skipped == ([3] if what == "reference" else [0, 1, 2, 3, 4])
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in net.trainable().items())


def test_a_row_without_pairs_counts_for_nothing(net):
    """Its pairs may have lost their reference."""
    given, config = rows(), DpoLossConfig(tokens_per_microbatch=60)
    empty = EncodedPairedRow(9, [], [], [], [])
    measured = []
    for batch in ([empty, *given], given):
        again = copy.deepcopy(net)
        measured.append(update.update(again, optimizer_of(again), batch, config).metrics)
    with_it, without = measured
    assert {k: v for k, v in with_it.items() if k.startswith("dpo/")} == pytest.approx(
        {k: v for k, v in without.items() if k.startswith("dpo/")}
    )


def test_out_of_memory_halves_the_micro_batch_and_changes_nothing(net, monkeypatch):
    given, config = rows(), DpoLossConfig(tokens_per_microbatch=80)
    expected = gradients(net, given, config)
    net.zero_grad(set_to_none=True)
    tried, forward = [], Actors.forward

    def starved(self, batch, states=None):
        tried.append(len(batch.ids))
        if len(batch.ids) > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, batch, states)

    monkeypatch.setattr(Actors, "forward", starved)
    budget = Budget("dpo.tokens_per_microbatch", 80, lambda line: None)
    kept: dict = {}
    optimizer = optimizer_of(net)
    monkeypatch.setattr(
        optimizer, "step", lambda _: kept.update({n: p.grad for n, p in net.trainable().items()}) or 1.0
    )
    metrics = update.update(net, optimizer, given, config, Runtime(), budget).metrics
    assert budget.amount == 40 and max(tried) > 40
    same((metrics["dpo/loss"], kept), expected)
