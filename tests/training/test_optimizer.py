import os

import pytest
import torch
from torch import nn

from starling_train.config.fields import UserError
from starling_train.config.sections import OptimConfig
from starling_train.training import local
from starling_train.training.adam import schedule
from starling_train.training.local import LocalOptimizer
from starling_train.training.staging import Staging


def test_schedules_by_hand():
    assert [schedule("linear", s, 4, 0) for s in (1, 2, 3, 4)] == [1.0, 0.75, 0.5, 0.25]
    assert [schedule("constant", s, 4, 0) for s in (1, 4)] == [1.0, 1.0]
    assert schedule("cosine", 3, 4, 0) == pytest.approx(0.5)
    assert [schedule("linear", s, 6, 2) for s in (1, 2, 3, 4)] == [1 / 3, 2 / 3, 1.0, 0.75]


def parameters(dtype):
    torch.manual_seed(0)
    return {"a": nn.Parameter(torch.randn(4, 3, dtype=dtype))}, {"b": nn.Parameter(torch.randn(5, dtype=dtype))}


def optimizer_of(policy, critic, config, offloaded=False) -> LocalOptimizer:
    return LocalOptimizer(nn.Identity(), (policy, critic), config, offloaded=offloaded)


def train(policy, critic, optimizer, steps, first=0):
    for step in range(first, first + steps):
        optimizer.set_rates(step + 1, 20)
        generator = torch.Generator().manual_seed(step)
        for p in [*policy.values(), *critic.values()]:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()


def test_going_back_to_before_the_first_step_leaves_no_moments():
    policy, critic = parameters(torch.float32)
    optimizer = optimizer_of(policy, critic, OptimConfig())
    start = [{k: t.clone() for k, t in of.items()} for of in (optimizer.trainable_tensors(), optimizer.state_tensors())]
    train(policy, critic, optimizer, 3)
    straight = {k: t.clone() for k, t in optimizer.trainable_tensors().items()}
    optimizer.load(*start)
    assert optimizer.state_tensors() == {}
    train(policy, critic, optimizer, 3)
    assert all(torch.equal(straight[k], t) for k, t in optimizer.trainable_tensors().items())


def test_float32_equals_plain_adamw_with_clipping():
    policy, critic = parameters(torch.float32)
    config = OptimConfig(learning_rate=1e-2, critic_learning_rate=5e-2, schedule="constant", weight_decay=0.1)
    train(policy, critic, optimizer_of(policy, critic, config), 5)

    a, b = (next(iter(group.values())) for group in parameters(torch.float32))
    adam = torch.optim.AdamW(
        [{"params": [a], "lr": 1e-2}, {"params": [b], "lr": 5e-2}], betas=(0.9, 0.95), eps=1e-5, weight_decay=0.1
    )
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        for p in (a, b):
            p.grad = torch.randn(p.shape, generator=generator)
        total = (a.grad.square().sum() + b.grad.square().sum()).sqrt()
        for p in (a, b):
            p.grad *= min(1.0, 1.0 / float(total))
        adam.step()
    torch.testing.assert_close(policy["a"].data, a.data, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(critic["b"].data, b.data, atol=1e-6, rtol=1e-5)


def test_bfloat16_moves_at_rates_that_its_own_precision_would_swallow():
    policy, critic = parameters(torch.bfloat16)
    before = policy["a"].detach().clone()
    config = OptimConfig(learning_rate=1e-5, schedule="constant", weight_decay=0.0)
    optimizer = optimizer_of(policy, critic, config)
    for _ in range(600):
        for p in [*policy.values(), *critic.values()]:
            p.grad = torch.ones_like(p)
        optimizer.set_rates(1, 10)
        optimizer.step()
    moved = (before - policy["a"]).float()
    assert policy["a"].dtype == torch.bfloat16
    assert moved.mean().item() == pytest.approx(600 * 1e-5, rel=0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_goes_on_exactly(dtype):
    config = OptimConfig(learning_rate=1e-2)
    policy, critic = parameters(dtype)
    straight = optimizer_of(policy, critic, config)
    train(policy, critic, straight, 3)
    saved = {n: t.clone() for n, t in straight.state_tensors().items()}
    values = {n: p.detach().clone() for n, p in (policy | critic).items()}
    train(policy, critic, straight, 3, first=3)

    again_policy, again_critic = parameters(dtype)
    resumed = optimizer_of(again_policy, again_critic, config)
    resumed.load(values, saved)
    train(again_policy, again_critic, resumed, 3, first=3)
    assert torch.equal(policy["a"], again_policy["a"])
    assert torch.equal(critic["b"], again_critic["b"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_update_of_some_tensors_at_a_time_is_that_of_all_at_once(dtype, monkeypatch):
    """To the bit; and gradients in float32 exist only for some."""

    def trained(chunk: int) -> tuple[list[torch.Tensor], int]:
        torch.manual_seed(0)
        policy = {f"p{i}": nn.Parameter(torch.randn(4, 3, dtype=dtype)) for i in range(5)}
        critic = {"head": nn.Parameter(torch.randn(6))}  # float32 beside bfloat16, and its own master
        monkeypatch.setattr(local, "CHUNK", chunk)
        optimizer = optimizer_of(policy, critic, OptimConfig(learning_rate=1e-2, weight_decay=0.1))
        plain, held = optimizer._adam.step, []

        def step():
            held.append(sum(g.numel() for g in (m.grad for m in optimizer._masters.values()) if g is not None))
            plain()

        monkeypatch.setattr(optimizer._adam, "step", step)
        train(policy, critic, optimizer, 4)
        tensors = optimizer.trainable_tensors() | optimizer.state_tensors()
        return [tensors[name] for name in sorted(tensors)], max(held)

    (whole, all_at_once), (some, at_a_time) = trained(10**9), trained(24)
    assert (all_at_once, at_a_time) == (5 * 12 + 6, 24)
    for one, other in zip(whole, some, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("chunk", [10**9, 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_update_in_host_memory_is_that_on_the_device(dtype, chunk, monkeypatch):
    """To the bit, with rates, clipping and a critic that learns alone; what is saved has the same names and bytes."""
    monkeypatch.setattr(local, "CHUNK", chunk)

    def trained(offloaded: bool):
        torch.manual_seed(0)
        policy = {f"p{i}": nn.Parameter(torch.randn(4, 3, dtype=dtype)) for i in range(5)}
        critic = {"head": nn.Parameter(torch.randn(7))}  # float32 beside bfloat16
        optimizer = optimizer_of(policy, critic, OptimConfig(learning_rate=1e-2, weight_decay=0.1), offloaded)
        critic["head"].grad = torch.full((7,), 0.1)
        optimizer.set_rates(1, 20, train_policy=False)
        norms = [optimizer.step()]
        train(policy, critic, optimizer, 4, first=1)
        assert all(p.grad is None for p in [*policy.values(), *optimizer._masters.values()])
        return optimizer, norms

    (plain, norms), (elsewhere, others) = trained(False), trained(True)
    assert norms == others and plain.saved_bytes() == elsewhere.saved_bytes()
    assert elsewhere.describe().endswith("(whole, in host memory)")
    for mine, expected in (
        (elsewhere.trainable_tensors(), plain.trainable_tensors()),
        (elsewhere.state_tensors(), plain.state_tensors()),
    ):
        assert mine.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(mine[name], tensor), name
    # each loads what the other has saved
    for optimizer, saver in ((plain, elsewhere), (elsewhere, plain)):
        saved = [{n: t.clone() for n, t in of().items()} for of in (saver.trainable_tensors, saver.state_tensors)]
        assert optimizer.fits(*saved)
        optimizer.load(*saved)
        assert all(torch.equal(t, saved[1][n]) for n, t in optimizer.state_tensors().items())


def test_float32_weights_that_were_loaded_are_those_that_go_on():
    """Their copies in host memory are in no checkpoint."""
    (policy, critic), loaded = parameters(torch.float32), {}
    optimizer = optimizer_of(policy, critic, OptimConfig(learning_rate=1e-2), offloaded=True)
    loaded = {"a": torch.full((4, 3), 2.0), "b": torch.full((5,), 3.0)}
    optimizer.load(loaded, {})
    train(policy, critic, optimizer, 1)
    assert (policy["a"] - 2).abs().max() < 0.1 and (critic["b"] - 3).abs().max() < 0.1


def test_what_passes_through_host_memory_keeps_shape_type_and_value():
    staging = Staging(torch.device("cpu"))
    tensors = {
        "odd": torch.tensor([1.5, -2.0, 3.25], dtype=torch.bfloat16),
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "scalar": torch.tensor(7.0),
        "none": torch.empty(0, 4),
    }
    fetched = staging.fetch(tensors)
    assert all(torch.equal(fetched[name], tensor) for name, tensor in tensors.items())
    targets = {"odd": torch.zeros(3, dtype=torch.bfloat16), "turned": torch.zeros(3, 2)}
    staging.send({"odd": torch.tensor([1.0 + 2**-9, 1.0, -1.0]), "turned": torch.full((3, 2), 0.1)}, targets)
    assert targets["odd"].tolist() == [1.0, 1.0, -1.0] and torch.equal(targets["turned"], torch.full((3, 2), 0.1))


@pytest.mark.parametrize(
    "offloaded,words", [(False, "cluster.offload=optimizer, or begin"), (True, "more host memory")]
)
def test_out_of_memory_in_a_step_is_told_in_one_line(offloaded, words):
    policy, critic = parameters(torch.bfloat16)
    optimizer = optimizer_of(policy, critic, OptimConfig(), offloaded)
    (a,) = policy.values()
    a.grad = torch.ones_like(a)

    def refuse():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    optimizer._adam.step = refuse
    with pytest.raises(UserError, match=r"^optim: out of memory in the optimizer's step \(CUDA out of memory") as told:
        optimizer.step()
    assert "cluster.zero_stage=2" in str(told.value) and words in str(told.value)
    assert "\n" not in str(told.value)
    assert optimizer.applied == 1  # some tensors may have been updated, so that what is in memory belongs to no step


def test_old_locks_of_compilations_are_removed(tmp_path, monkeypatch):
    from starling_train.training import zero

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    locks = [tmp_path / "py311_cpu" / name / "lock" for name in ("old", "new")]
    for lock in locks:
        lock.parent.mkdir(parents=True)
        lock.touch()
    os.utime(locks[0], (1.0, 1.0))
    zero.remove_old_locks()
    assert [lock.exists() for lock in locks] == [False, True]
