"""Sequences that go on from the same beginning, in one row, against each by itself."""

from typing import Any

import families
import pytest
import torch
from test_families import CUT, plain, train_from

from starling_train.core.micro_batches import Beginning, cut_packed
from starling_train.models import packing
from starling_train.models.actors import Actors
from starling_train.models.micro_batch import micro_batch

PROMPTS = [[1, 17, 23, 5, 8, 90, 3], [1, 9], [1, 17, 23, 5, 8, 90, 3], [1, 9], [1, 9]]
RESPONSES = [[31, 2], [90, 14, 77, 6, 150, 21, 2], [40, 41, 42, 7, 8, 9, 10, 11, 2], [40], [6, 5, 4, 2]]
OF = [0, 1, 0, 1, 1]


@pytest.mark.parametrize("attend", ["one_by_one", "padded"])
@pytest.mark.parametrize("name", CUT)
def test_log_probs_and_gradients_are_those_of_the_plain_forward(name, attend, monkeypatch):
    if attend == "padded":  # as on a GPU
        monkeypatch.setattr(packing, "attend_one_by_one", packing.attend_padded)
    model = families.model_of(name)
    train_from(model, 1)
    actors = Actors(model, "none", 1)
    assert actors.shares_prompts
    batch = micro_batch(PROMPTS, RESPONSES, "cpu", OF)
    assert len(batch.ids) == 7 + 2 + sum(len(response) - 1 for response in RESPONSES)
    logprobs = actors(batch).logprobs
    expected = torch.cat([plain(model, p, r) for p, r in zip(PROMPTS, RESPONSES, strict=True)])
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = torch.linspace(-1, 1, len(expected))
    for mine, theirs in zip(
        *(torch.autograd.grad((x * weights).sum(), trained) for x in (logprobs, expected)), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("window", [None, 3, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attend", [packing.attend_one_by_one, packing.attend_padded])
def test_attention_by_hand(window, dtype, attend):
    """Weights of equal scores: each token gets the mean of the values that it sees, which are their positions."""
    together = packing.Packing(
        [4, 60, 30, 70, 2], begins=[None, 0, 0, None, 3]
    )  # some go on past 64, or are padded to it
    positions = together.positions.tolist()
    assert positions[:6] == [0, 1, 2, 3, 4, 5] and positions[64:66] == [4, 5] and positions[-3:] == [69, 70, 71]
    values = together.positions.to(dtype).view(1, 1, -1, 1).expand(1, 2, -1, 8).clone().requires_grad_()
    scores = torch.zeros(1, 2, len(positions), 8, dtype=dtype, requires_grad=True)
    module: Any = torch.nn.Module()
    mixed = attend(module, scores, scores, values, together, window=window, dropout=0.0, scaling=1.0)
    first = [0 if window is None else max(0, p - window + 1) for p in positions]
    expected = [(f + p) / 2 for f, p in zip(first, positions, strict=True)]
    torch.testing.assert_close(mixed[0, :, 0, 0].float(), torch.tensor(expected), atol=0.3, rtol=0)
    mixed.sum().backward()
    assert scores.grad.isfinite().all()
    # every token of a value is weighed by all that see it, and all weights of one that looks sum to 1
    assert float(values.grad[0, 0, :, 0].float().sum()) == pytest.approx(len(positions), rel=0.02)


def test_micro_batches_keep_those_of_a_beginning_together_and_count_it_once():
    of = [Beginning(0, 10), Beginning(1, 4), Beginning(0, 10), Beginning(1, 4), Beginning(0, 10)]
    lengths = [12, 6, 13, 5, 11]  # 10 + 2 + 3 + 1 and 4 + 2 + 1
    assert cut_packed(lengths, 100, of) == [[2, 0, 4, 1, 3]]
    assert cut_packed(lengths, 20, of) == [[2, 0, 4], [1, 3]]
    assert cut_packed(lengths, 13, of) == [[2], [0, 4], [1, 3]]
    assert cut_packed(lengths, 100) == [[2, 0, 4, 1, 3]] and cut_packed(lengths, 20) == [[2], [0], [4], [1, 3]]
