import pytest
import torch

from starling_train.core.logprobs import token_logprobs


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


def test_uniform_logits_by_hand():
    logprobs, entropy = token_logprobs(torch.zeros(2, 3), torch.randn(8, 3), torch.tensor([0, 5]))
    torch.testing.assert_close(logprobs, torch.full((2,), -torch.log(torch.tensor(8.0))))
    torch.testing.assert_close(entropy, torch.full((2,), torch.log(torch.tensor(8.0))))
