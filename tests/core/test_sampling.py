import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from starling_train.core.sampling import distribution, draw


@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 5, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.2, 1e-3])
def test_the_distribution_is_that_of_transformers_samplers(temperature, top_k, top_p):
    logits = 3 * torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        warpers.append(TopPLogitsWarper(top_p))
    expected = warpers(None, logits).softmax(-1)
    torch.testing.assert_close(distribution(logits, temperature, top_p, top_k), expected)


def test_top_k_by_hand():
    found = distribution(torch.tensor([[0.0, 2.0, 1.0, -5.0]]), top_k=2)
    e = torch.tensor(1.0).exp()
    torch.testing.assert_close(found, torch.tensor([[0.0, e / (1 + e), 1 / (1 + e), 0.0]]))


def test_draw_by_hand():
    probabilities = torch.tensor([[0.25, 0.0, 0.5, 0.25, 0.0]]).repeat(7, 1)
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 0.9999, 1 - 2**-24])
    assert draw(probabilities, uniforms).tolist() == [0, 0, 2, 2, 3, 3, 3]


def test_what_has_no_probability_is_never_drawn():
    probabilities = torch.zeros(1000, 50000)
    probabilities[:, 17], probabilities[:, 49_000] = 1e-7, 0.7  # a sum that is not 1
    uniforms = torch.rand(1000, generator=torch.Generator().manual_seed(1))
    uniforms[-1] = 1 - 2**-24
    assert set(draw(probabilities, uniforms).tolist()) <= {17, 49_000}


def test_frequencies():
    probabilities = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).expand(40_000, 4)
    drawn = draw(probabilities, torch.rand(40_000, generator=torch.Generator().manual_seed(2)))
    torch.testing.assert_close(torch.bincount(drawn) / 40_000, probabilities[0], atol=0.01, rtol=0)
