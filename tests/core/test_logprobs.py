import math

import pytest
import torch

from starling_train.core.logprobs import HeadForm, token_logprobs, token_logprobs_by


def plain(hidden, head, tokens, temperature):
    distribution = torch.distributions.Categorical(logits=hidden @ head.T / temperature)
    return distribution.log_prob(tokens), distribution.entropy()


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_equal_the_plain_way_for_any_chunk(chunk, temperature):
    torch.manual_seed(0)
    tokens = torch.randint(11, (7,))
    inputs = [(torch.randn(7, 5).requires_grad_(), torch.randn(11, 5).requires_grad_())]
    inputs.append(tuple(x.detach().clone().requires_grad_() for x in inputs[0]))
    weights = torch.randn(2, 7)
    for (hidden, head), function in zip(inputs, (plain, token_logprobs), strict=True):
        extra = (chunk,) if function is token_logprobs else ()
        logprobs, entropy = function(hidden, head, tokens, temperature, *extra)
        (logprobs * weights[0] + entropy * weights[1]).sum().backward()
    with torch.no_grad():
        for a, b in zip(
            plain(*inputs[0], tokens, temperature), token_logprobs(*inputs[1], tokens, temperature, chunk), strict=True
        ):
            torch.testing.assert_close(a, b)
    for a, b in zip(*inputs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_a_frozen_head_gives_the_same_values_and_gradients(chunk):
    torch.manual_seed(0)
    tokens, head, weights = torch.randint(11, (7,)), torch.randn(11, 5), torch.randn(7)
    ours = torch.randn(7, 5).requires_grad_()
    other = ours.detach().clone().requires_grad_()
    for (logprobs, entropy), hidden in (
        (token_logprobs(ours, head, tokens, 0.7, chunk), ours), (plain(other, head, tokens, 0.7), other)
    ):  # fmt: skip
        (logprobs * weights).sum().backward()
        assert entropy.shape == hidden.shape[:1]
    torch.testing.assert_close(ours.grad, other.grad)


@pytest.mark.parametrize("probability", [0.3, 0.9, 0.99, 0.999])
def test_bfloat16_gradients_of_confident_tokens_are_as_good_as_autograd_s(probability):
    """Near p = 1 the gradient is a small difference: rounding p before taking it would leave little else than noise."""
    torch.manual_seed(0)
    tokens, head = torch.arange(20), torch.randn(1000, 64).bfloat16()
    needed = torch.tensor(probability / (1 - probability) * 1000).log()
    directions = head[:20].float()
    hidden = (needed * directions / directions.square().sum(-1, keepdim=True)).bfloat16()
    gradients = {}
    for name, start in (("ours", hidden), ("autograd", hidden), ("exact", hidden.double())):
        start = start.clone().requires_grad_()
        if name == "ours":
            logprobs, _ = token_logprobs(start, head, tokens)
        else:
            logits = start @ head.to(start.dtype).T
            logits = logits if name == "exact" else logits.float()
            logprobs = logits.log_softmax(-1).gather(-1, tokens[:, None])
        logprobs.sum().backward()
        gradients[name] = start.grad.double()
    assert float(logprobs.detach().exp().mean()) == pytest.approx(probability, rel=0.3)
    exact = gradients.pop("exact")
    ours, autograd = ((g - exact).norm() / exact.norm() for g in (gradients["ours"], gradients["autograd"]))
    assert ours < 1.2 * autograd + 0.005


def test_uniform_logits_by_hand():
    logprobs, entropy = token_logprobs(torch.zeros(2, 3), torch.randn(8, 3), torch.tensor([0, 5]))
    torch.testing.assert_close(logprobs, torch.full((2,), -torch.log(torch.tensor(8.0))))
    torch.testing.assert_close(entropy, torch.full((2,), torch.log(torch.tensor(8.0))))


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("form", [HeadForm(scale=0.25), HeadForm(softcap=1.5), HeadForm(0.5, 2.0)])
def test_scaled_and_capped_heads_with_a_bias_equal_autograd(form, frozen):
    torch.manual_seed(0)
    tokens, weights = torch.randint(11, (7,)), torch.randn(7)
    bias, start, matrix = torch.randn(11), torch.randn(7, 5), 2 * torch.randn(11, 5)
    results = []
    for ours in (True, False):
        hidden, head = start.clone().requires_grad_(), matrix.clone().requires_grad_(not frozen)
        if ours:
            logprobs, entropy = token_logprobs(hidden, head, tokens, 0.7, 3, bias=bias, form=form)
        else:
            scaled = form.scale * (hidden @ head.T + bias)
            logits = scaled if form.softcap is None else form.softcap * torch.tanh(scaled / form.softcap)
            of_all = torch.distributions.Categorical(logits=logits / 0.7)
            logprobs, entropy = of_all.log_prob(tokens), of_all.entropy()
        (logprobs * weights).sum().backward()
        results.append([logprobs.detach(), entropy.detach(), hidden.grad, *([] if frozen else [head.grad])])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other)


def test_a_capped_logit_by_hand():
    # 2 tanh(0.5 * 8 / 2) = 2 tanh(2) = 1.928, against 0 for the other token
    logprobs, _ = token_logprobs(
        torch.ones(1, 1), torch.tensor([[8.0], [0.0]]), torch.tensor([1]), form=HeadForm(0.5, 2.0)
    )
    assert float(logprobs) == pytest.approx(-math.log(1 + math.exp(2 * math.tanh(2.0))), abs=1e-6)


def test_any_way_to_logits_gives_the_same_as_the_known_one():
    torch.manual_seed(0)
    hidden, head, tokens = torch.randn(7, 5).requires_grad_(), torch.randn(11, 5), torch.randint(11, (7,))
    known = token_logprobs(hidden, head, tokens, 0.7)
    other = token_logprobs_by(lambda rows: rows @ head.T, 11, hidden, tokens, 0.7, chunk=3)
    for mine, theirs in zip(known, other, strict=True):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(values[0].sum(), hidden)[0] for values in (known, other)))
