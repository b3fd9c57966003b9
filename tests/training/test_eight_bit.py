"""Moments in eight bits survive a checkpoint: with a stand-in that keeps its state as bitsandbytes' AdamW8bit does."""

import pytest
import torch
from torch import nn

from starling_train.config.sections import OptimConfig
from starling_train.files.identity import Identity
from starling_train.run import manifest
from starling_train.run.checkpoints import Checkpoints
from starling_train.run.runtime import Runtime
from starling_train.run.state import TrainState
from starling_train.training import local
from starling_train.training.local import LocalOptimizer
from starling_train.training.session import restore

BLOCK, SMALLEST = 256, 4096  # elements that share a scale; tensors of fewer elements keep float32 moments


class AdamW8bit(torch.optim.Optimizer):
    """What `Optimizer2State` of bitsandbytes does, in torch.

    `step` is an int; `state1` and `state2` are uint8, indices into the code books `qmap1` and `qmap2`, each of which is
    one tensor for all parameters; `absmax1` and `absmax2` are the scales of blocks. Small tensors have float32 moments.
    """

    def __init__(self, groups, betas, eps, weight_decay):
        super().__init__(groups, {"lr": 0.0, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.name2qmap = {"dynamic": torch.linspace(-1, 1, 256), "udynamic": torch.linspace(0, 1, 256) ** 2}

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(group, parameter, self.state[parameter])

    def _update(self, group, parameter, state):
        if not state:
            self._init_state(parameter, state)
        state["step"] += 1
        for number, (beta, of) in enumerate(zip(group["betas"], (parameter.grad, parameter.grad**2), strict=True), 1):
            moment = self._read(state, number).view_as(parameter)
            self._write(state, number, moment.mul_(beta).add_(of, alpha=1 - beta))
        first, second = (self._read(state, number).view_as(parameter) for number in (1, 2))
        scales = [1 - beta ** state["step"] for beta in group["betas"]]
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_((first / scales[0]) / ((second / scales[1]).sqrt() + group["eps"]), alpha=-group["lr"])

    def _init_state(self, parameter, state):
        state["step"] = 0
        for number, name in enumerate(("dynamic", "udynamic"), 1):
            if parameter.numel() < SMALLEST:
                state[f"state{number}"] = torch.zeros(parameter.numel())
                continue
            state[f"qmap{number}"] = self.name2qmap[name]
            zero = 128 if name == "dynamic" else 0
            state[f"state{number}"] = torch.full((parameter.numel(),), zero, dtype=torch.uint8)
            state[f"absmax{number}"] = torch.zeros(-(-parameter.numel() // BLOCK))

    def _read(self, state, number):
        stored = state[f"state{number}"]
        if stored.dtype == torch.float32:
            return stored
        scale = state[f"absmax{number}"].repeat_interleave(BLOCK)[: len(stored)]
        return state[f"qmap{number}"][stored.long()] * scale

    def _write(self, state, number, moment):
        stored, flat = state[f"state{number}"], moment.flatten()
        if stored.dtype == torch.float32:
            stored.copy_(flat)
            return
        blocks = nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
        state[f"absmax{number}"].copy_(blocks.abs().amax(1))
        share = flat / state[f"absmax{number}"].clamp_min(1e-30).repeat_interleave(BLOCK)[: len(flat)]
        stored.copy_(torch.bucketize(share, state[f"qmap{number}"]).clamp_max(255))


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.setattr(local, "eight_bit_adam", lambda on_gpu: AdamW8bit)


def begin(dtype=torch.bfloat16) -> tuple[LocalOptimizer, dict[str, nn.Parameter]]:
    random = torch.Generator().manual_seed(0)
    shapes = {"q": (64, 80), "k": (32, 200), "norm": (80,)}
    policy = {name: nn.Parameter(torch.randn(shape, generator=random).to(dtype)) for name, shape in shapes.items()}
    critic = {"head": nn.Parameter(torch.randn(90, 50, generator=random))}
    config = OptimConfig(learning_rate=1e-2, eight_bit=True, weight_decay=0.1)
    return LocalOptimizer(nn.Identity(), (policy, critic), config), policy | critic


def train(optimizer: LocalOptimizer, parameters: dict[str, nn.Parameter], steps: range) -> None:
    for step in steps:
        random = torch.Generator().manual_seed(step)
        optimizer.set_rates(step + 1, 20)
        for parameter in parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=random).to(parameter.dtype)
        optimizer.step()


def test_a_resumed_run_has_the_moments_of_the_straight_one(tmp_path):
    straight, parameters = begin()
    train(straight, parameters, range(3))
    books = [state["qmap1"] for state in straight._adam.state.values() if "qmap1" in state]
    assert len(books) == 3 and len({book.data_ptr() for book in books}) == 1  # one tensor, in every state

    checkpoints = Checkpoints(tmp_path, 2, Identity("0" * 64, {}))
    checkpoints.save(straight.trainable_tensors(), straight.state_tensors(), TrainState(3, 24))
    train(straight, parameters, range(3, 6))

    resumed, again = begin()
    assert restore(Checkpoints(tmp_path, 2, Identity("0" * 64, {})), resumed, 3, Runtime("cpu")) == TrainState(3, 24)
    assert {type(state["step"]) for state in resumed._adam.state.values()} == {int}
    train(resumed, again, range(3, 6))
    for name, parameter in parameters.items():
        assert torch.equal(parameter, again[name]), name
    one, other = straight.state_tensors(), resumed.state_tensors()
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Second:
    """A process that does not choose the checkpoint: the first has found step 3."""

    is_main = False

    def on_first(self, make):
        return 3


def test_only_the_process_that_chooses_a_checkpoint_reads_it_to_compare_it(tmp_path, monkeypatch):
    optimizer, parameters = begin()
    train(optimizer, parameters, range(1))
    saved = Checkpoints(tmp_path, 2, Identity("0" * 64, {}))
    saved.save(optimizer.trainable_tensors(), optimizer.state_tensors(), TrainState(3, 24))

    hashed = []
    plain = manifest.sha256
    monkeypatch.setattr(manifest, "sha256", lambda path: hashed.append(path.name) or plain(path))
    for process, names in ((Runtime("cpu"), 3), (Second(), 0)):
        hashed.clear()
        other, _ = begin()
        assert restore(Checkpoints(tmp_path, 2, Identity("0" * 64, {})), other, 3, process) == TrainState(3, 24)
        assert len(hashed) == names
        assert torch.equal(other.state_tensors()["q/state1"], optimizer.state_tensors()["q/state1"])
