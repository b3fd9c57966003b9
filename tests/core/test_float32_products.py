import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import linear

from starling_train.core.float32_products import InFloat32, product, product_into
from starling_train.core.logprobs import token_logprobs


def exact(inputs, weight, bias=None):
    return linear(inputs.double(), weight.double(), None if bias is None else bias.double())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 7, 70])
@pytest.mark.parametrize("outputs", [1, 3000])  # a reward head's and a vocabulary's
def test_what_a_short_product_rounds_away_is_there(dtype, rows, outputs):
    torch.manual_seed(0)
    inputs, weight, bias = (torch.randn(size).to(dtype) for size in ((2, rows, 96), (outputs, 96), (outputs,)))
    right = exact(inputs, weight, bias)
    ours = product(inputs, weight, bias)
    assert ours.dtype == torch.float32 and ours.shape == right.shape
    rounding = float((linear(inputs, weight, bias).double() - right).abs().max())
    assert float((ours.double() - right).abs().max()) < max(rounding / 50, 1e-5)


def test_float32_and_mixed_types_are_what_a_linear_layer_gives():
    inputs, weight = torch.randn(5, 96), torch.randn(300, 96)
    assert torch.equal(product(inputs, weight), linear(inputs, weight))
    layer = nn.Linear(96, 300)
    with InFloat32(layer.weight):
        assert torch.equal(layer(inputs), linear(inputs, layer.weight, layer.bias))


def test_gradients_are_computed_in_the_weights_type():
    torch.manual_seed(0)
    start = torch.randn(2, 3, 96).bfloat16(), torch.randn(1000, 96).bfloat16()
    direction = torch.randn(2, 3, 1000)
    ours = [tensor.clone().requires_grad_() for tensor in start]
    plain = [tensor.double().requires_grad_() for tensor in start]
    (product(*ours) * direction).sum().backward()
    (exact(*plain) * direction).sum().backward()
    for mine, right in zip(ours, plain, strict=True):
        assert mine.grad.dtype == torch.bfloat16
        assert float((mine.grad - right.grad).norm() / right.grad.norm()) < 0.006
    frozen = start[1].clone()
    product(ours[0], frozen).sum().backward()
    assert frozen.grad is None


def test_only_the_named_weights_give_float32_and_hooks_run():
    named, other = nn.Linear(96, 3, dtype=torch.bfloat16), nn.Linear(96, 3, dtype=torch.bfloat16)
    calls = []
    named.register_forward_pre_hook(lambda *_: calls.append(0))
    inputs = torch.randn(2, 96).bfloat16()
    with InFloat32(named.weight):
        assert named(inputs).dtype == torch.float32 and other(inputs).dtype == torch.bfloat16
    assert named(inputs).dtype == torch.bfloat16 and len(calls) == 2


def test_on_a_gpu_cublas_gives_float32():
    """Types and shapes only: tensors without numbers stand for a GPU's."""
    with FakeTensorMode():
        inputs, weight = (torch.empty(n, 96, dtype=torch.bfloat16, device="cuda") for n in (5, 1000))
        room = torch.empty(5, 1000, device="cuda")
        product_into(room, inputs, weight)
        assert product(inputs, weight).dtype == torch.float32


@pytest.mark.parametrize("learns", ["nothing", "states", "head"])
@pytest.mark.parametrize("bias", [False, True])
def test_logprobs_of_bfloat16_weights_are_not_rounded_and_do_not_depend_on_the_others(learns, bias):
    torch.manual_seed(0)
    hidden, head = torch.randn(70, 96).bfloat16() * 2, torch.randn(5000, 96).bfloat16() / 3
    offset = torch.randn(5000).bfloat16() if bias else None
    tokens = torch.randint(5000, (70,))
    right = exact(hidden, head, offset).log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    hidden.requires_grad_(learns == "states")
    head.requires_grad_(learns == "head")
    ours = token_logprobs(hidden, head, tokens, bias=offset)[0]
    assert float((ours.double() - right).abs().max()) < 5e-4
    rounded = linear(hidden, head, offset).float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    assert float((rounded.double() - right).abs().max()) > 0.02
    some = torch.cat([token_logprobs(hidden[i : i + 9], head, tokens[i : i + 9], bias=offset)[0] for i in (40, 3)])
    assert torch.equal(some, torch.cat([ours[40:49], ours[3:12]]))
    if learns != "nothing":
        assert torch.equal(ours.detach(), token_logprobs(hidden.detach(), head.detach(), tokens, bias=offset)[0])
