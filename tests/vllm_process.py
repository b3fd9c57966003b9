"""Run by a Python that has vLLM: a model's responses and log-probs in vLLM beside those of `slots`, as JSON.

python vllm_process.py DIRECTORY DTYPE

Once with the weights as they are, and after each of a few changes of what trains.
"""

import json
import sys
from collections.abc import Callable, Iterator

import torch

from starling_train.config.sections import LoraConfig, ModelConfig, RolloutConfig
from starling_train.core.excluded import NOTHING
from starling_train.models import adapters, causal_lm
from starling_train.models.actors import Actors
from starling_train.models.source import ModelSource
from starling_train.rollout.exclusions import exclusions
from starling_train.rollout.generate import generate
from starling_train.rollout.vllm import engine
from starling_train.training import policy
from starling_train.training.ppo.batches import Batches
from starling_train.training.ppo.experience import forward_all

QUESTIONS = ("Name three colours.", "Why is the sky blue?", "What is 2 and 2?", "Tell me of a fox.", "Who flies?")


def train(model, *names: str) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in names))


def disturb(model, scale: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * parameter.std() * torch.randn_like(parameter))


def changes(model) -> Iterator[tuple[str, Callable[[], None]]]:
    """Name what trains, and give what changes it."""
    yield "as it is", lambda: None
    for what, names in (("one matrix", ("layers.1.self_attn.q_proj",)), ("two", ("up_proj", "o_proj")),
                        ("all matrices", ("layers.", "h."))):  # fmt: skip
        train(model, *names)
        if any(p.requires_grad for p in model.parameters()):
            yield what, lambda: disturb(model, 0.1)
    train(model, "")
    yield "everything", lambda: disturb(model, 0.05)
    linear = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear) and ".layers." in name]
    train(model, "nothing")
    if linear:
        adapters.add(model, [f"{name}.weight" for name in linear[::2]], LoraConfig(rank=4))
        yield "adapters", lambda: disturb_adapters(model)


def disturb_adapters(model) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(0, 0.05)


def gaps(model, chat, rollout, config) -> torch.Tensor:
    """|log-prob there - here| of every token that vLLM drew, rescored as training does."""
    excluded = exclusions(model.config, chat, config.min_new_tokens) or NOTHING
    actors = Actors(model, "none", 0, config.temperature, has_reference=False, excluded=excluded)
    actors.reference_logprobs = lambda batch, states: torch.zeros(sum(map(len, rollout.responses)))
    with torch.no_grad():
        is_response, logprobs, *_ = forward_all(actors, Batches(rollout, actors.device), 10**6)
    there = torch.tensor([one for row in rollout.drawn_logprobs for one in row])
    return (logprobs[is_response] - there).abs()


def main(directory: str, dtype: str) -> None:
    torch.manual_seed(0)
    source = ModelSource.open(directory)
    chat = policy.load_chat(source, ModelConfig(path=directory))
    model = causal_lm.load_causal_lm(source, dtype=dtype).requires_grad_(False)
    prompts = [chat.prompt([{"role": "user", "content": question}]) for question in QUESTIONS]
    here = RolloutConfig(slots=4, max_new_tokens=16, temperature=0.8, min_new_tokens=2)
    there = RolloutConfig(engine="vllm", cache_gb=0.05, slots=4, max_new_tokens=16, temperature=0.8, min_new_tokens=2)
    rows = []
    for what, change in changes(model):
        change()
        greedy = generate(model, chat, prompts, there, greedy=True)
        expected = generate(model, chat, prompts, here, greedy=True)
        torch.manual_seed(5)
        sampled = generate(model, chat, prompts, there)
        torch.manual_seed(5)
        again = generate(model, chat, prompts, there)
        gap = gaps(model, chat, sampled, there)
        rows.append(
            {
                "what": what,
                "same": sum(a == b for a, b in zip(greedy.responses, expected.responses, strict=True)),
                "of": len(prompts),
                "gap": engine.opened(model, chat, there).gap,
                "mean": float(gap.mean()),
                "most": float(gap.max()),
                "repeats": sampled.responses == again.responses,
                "least": min(map(len, sampled.responses)),
            }
        )
    print("found:", json.dumps(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
