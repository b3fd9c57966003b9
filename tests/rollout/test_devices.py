"""What a GPU must give, where there is one, and the same of a CPU: captured steps, and bfloat16."""

import pytest
import torch
from test_slots import MODELS, chat, make, prompts, settings  # noqa: F401 (chat is a fixture)

from starling_train.rollout.generate import generate

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: graphs cannot be captured")
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
FAMILIES = pytest.mark.parametrize("name", ["mistral", "mistral with a short window", "qwen2 with layers of two kinds"])


@DEVICES
@FAMILIES
def test_responses_are_those_of_generate_with_their_states(device, name, chat):  # noqa: F811
    model = make(MODELS[name]).to(device)
    expected = generate(model, chat, prompts(30), settings(engine="hf"), greedy=True)
    for count in (3, 64):
        found = generate(model, chat, prompts(30), settings(slots=count), greedy=True, keep_layer=1)
        assert found == expected
        for prompt, response, states in zip(found.prompts, found.responses, found.entering, strict=True):
            ids = torch.tensor([(prompt + response)[:-1]], device=device)
            forward = model(ids, output_hidden_states=True, use_cache=False).hidden_states[1][0]
            torch.testing.assert_close(states.whole(), forward.detach(), atol=1e-4, rtol=1e-4)


@DEVICES
@FAMILIES
@torch.no_grad()
def test_in_bfloat16_each_token_is_the_most_probable_or_as_good_as(device, name, chat):  # noqa: F811
    """By a forward pass over the whole sequence in float32 of the same weights; logits differ by rounding alone."""
    model = make(MODELS[name]).to(device, torch.bfloat16)
    found = generate(model, chat, prompts(30), settings(slots=5), greedy=True)
    assert len({len(response) for response in found.responses}) > 3
    model.float()
    for prompt, response in zip(found.prompts, found.responses, strict=True):
        logits = model(torch.tensor([prompt + response], device=device)).logits[0, len(prompt) - 1 : -1]
        drawn = logits.gather(-1, torch.tensor(response, device=device)[:, None])[:, 0]
        assert (logits.amax(-1) - drawn).max() <= 0.25  # two units in the last place of logits from 16 to 32
        assert logits.topk(100).values.diff(dim=-1).sum(-1).max() < -5  # where another token would be far off
