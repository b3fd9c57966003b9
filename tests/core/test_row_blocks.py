import pytest
import torch
from torch.nn.functional import linear

from starling_train.core.row_blocks import ROWS, RowBlocks, filled_up, in_blocks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(576, 576), (192, 576), (1536, 576), (576, 1536)], ids=str)
def test_a_row_is_the_same_whatever_its_place_and_the_number_of_the_others(dtype, size):
    torch.manual_seed(0)
    weight, bias = torch.randn(size).to(dtype) / 20, torch.randn(size[0]).to(dtype)
    rows = torch.randn(ROWS + 200, size[1]).to(dtype)
    with RowBlocks():
        together = linear(rows, weight, bias)
        for part in (rows[:1], rows[:7], rows[100:300], rows[3 : ROWS + 3], rows[-130:]):
            first = int((rows == part[0]).all(-1).nonzero()[0])
            assert torch.equal(linear(part, weight, bias), together[first : first + len(part)])
        assert torch.equal(linear(rows.flip(0), weight, bias).flip(0), together)
        assert torch.equal(linear(rows.view(8, -1, size[1]), weight, bias).flatten(0, 1), together)
    exact = linear(rows.double(), weight.double(), bias.double())
    torch.testing.assert_close(together.double(), exact, atol=0.02, rtol=0.01)


@pytest.mark.parametrize("count", [3, ROWS, ROWS + 5])
@pytest.mark.parametrize("has_bias", [False, True])
def test_gradients_are_those_of_a_linear_layer(count, has_bias):
    torch.manual_seed(0)
    start = [torch.randn(1, count, 6), torch.randn(4, 6), *([torch.randn(4)] if has_bias else [])]
    direction = torch.randn(1, count, 4)
    results = []
    for blocks in (False, True):
        tensors = [tensor.clone().requires_grad_() for tensor in start]
        if blocks:
            with RowBlocks():
                out = linear(*tensors)
        else:
            out = linear(*tensors)
        results.append([out.detach(), *torch.autograd.grad((out * direction).sum(), tensors)])
    for mine, plain in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(mine, plain)


def test_a_part_that_is_frozen_gets_no_gradient():
    rows, weight = torch.randn(3, 6).bfloat16().requires_grad_(), torch.randn(4, 6).bfloat16()
    with RowBlocks():
        linear(input=rows, weight=weight, bias=None).float().sum().backward()
    torch.testing.assert_close(rows.grad, weight.sum(0).expand(3, 6), atol=0.05, rtol=0.02)
    assert weight.grad is None


def test_only_states_of_16_bits_on_a_cpu_are_filled_up():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert in_blocks(torch.bfloat16, cpu) and in_blocks(torch.float16, cpu)
    assert not in_blocks(torch.float32, cpu) and not in_blocks(torch.bfloat16, gpu)
    rows = torch.ones(2, 3)
    assert filled_up(rows, 5) is rows
    assert filled_up(rows.bfloat16(), 4).tolist() == [[1] * 3, [1] * 3, [0] * 3, [0] * 3]


def test_inputs_of_a_frozen_weight_are_not_kept_for_the_gradient():
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: held.append(tensor.shape) or tensor, lambda it: it):
        for learns in (False, True):
            rows, weight = torch.randn(3, 6, requires_grad=True), torch.randn(4, 6, requires_grad=learns)
            with RowBlocks():
                linear(rows, weight)
            assert ((3, 6) in held) is learns
