"""Responses a second: our slots, transformers' `generate`, and transformers' continuous batching, alternating.

python benchmarks/rollout.py                                          a 20 M Mistral on two CPU cores
python benchmarks/rollout.py --model-shape 7b --device cuda --dtype bfloat16 --prompts 256 --limit 512 --mean 192

Held equal: weights (random, see models.py), prompts, temperature 1, the limit, how responses end, how many run side by
side (slots, rows of a batch, requests in flight), dtype, threads. Not equal: random numbers, so lengths differ a
little from round to round; seconds are therefore given per 1,000 tokens. `generate` runs batch after batch, each until
its longest response ends; `generate-all` is `generate` with all prompts in one batch, which takes the memory for it.
Continuous batching is given no more cache than the requests in flight need, 1,024 tokens a step, and the same attention
as the others. No stop strings anywhere. `vllm`, where it is installed, reads the same weights from a directory, and on a
GPU has a copy of them there.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]

import machine
import models

from starling_train.config.sections import RolloutConfig
from starling_train.data.chat import Chat
from starling_train.rollout.generate import generate

Responses = list[list[int]]


def ours(
    engine: str, policy: torch.nn.Module, prompts: Responses, arguments: argparse.Namespace, rows: int = 0
) -> Responses:
    """Run our two engines: `slots`, and `hf`, which is `generate`."""
    config = RolloutConfig(engine, rows or arguments.slots, arguments.limit, stop_strings=[])
    return generate(policy, Chat(models.tokenizer(policy.config.vocab_size)), prompts, config).responses


def continuous(policy: torch.nn.Module, prompts: Responses, arguments: argparse.Namespace) -> Responses:
    """Run transformers' own engine."""
    from transformers import GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    longest = max(map(len, prompts)) + arguments.limit
    page = 32
    settings = GenerationConfig(
        do_sample=True, temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=arguments.limit,
        eos_token_id=models.END_ID, pad_token_id=models.SPECIALS.index(models.PAD),
    )  # fmt: skip
    batching = ContinuousBatchingConfig(
        page_size=page, num_blocks=arguments.slots * -(-longest // page), max_batch_tokens=1024,
        auto_switch_to_flash=False,
    )  # fmt: skip
    policy.eval()
    with torch.no_grad():
        found = policy.generate_batch(
            prompts, generation_config=settings, continuous_batching_config=batching, warmup=False
        )
    return [output.generated_tokens for output in found.values()]


def vllm(policy: torch.nn.Module, arguments: argparse.Namespace) -> Callable[[Responses], Responses]:
    """Return vLLM with the policy's weights, as many requests at a time as we have slots."""
    from vllm import LLM, SamplingParams

    directory = tempfile.mkdtemp(prefix="rollout_vllm_")
    try:
        policy.save_pretrained(directory)
        models.tokenizer(policy.config.vocab_size).save_pretrained(directory)
        engine = LLM(
            model=directory, dtype=arguments.dtype, max_num_seqs=arguments.slots, max_model_len=1024 + arguments.limit,
            gpu_memory_utilization=0.5, enable_prefix_caching=False, seed=0,
        )  # fmt: skip
    finally:
        shutil.rmtree(directory)
    settings = SamplingParams(
        temperature=1.0, max_tokens=arguments.limit, stop_token_ids=[models.END_ID], detokenize=False
    )

    def respond(prompts: Responses) -> Responses:
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        return [list(done.outputs[0].token_ids) for done in engine.generate(asked, settings, use_tqdm=False)]

    return respond


def main() -> None:
    """Run rounds of all engines in turn; print medians, and JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-shape", default="20m", choices=models.SHAPES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--limit", type=int, default=128)
    parser.add_argument("--mean", type=float, default=48.0, help="tokens of a response")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", nargs="+", default=["slots", "generate", "generate-all", "continuous"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype)
    policy = models.policy(arguments.model_shape, arguments.mean, arguments.device, dtype, limit=arguments.limit)
    prompts = models.prompts(arguments.prompts, arguments.model_shape)
    engines: dict[str, Callable[[Responses], Responses]] = {
        "slots": lambda chosen: ours("slots", policy, chosen, arguments),
        "generate": lambda chosen: ours("hf", policy, chosen, arguments),
        "generate-all": lambda chosen: ours("hf", policy, chosen, arguments, len(chosen)),
        "continuous": lambda chosen: continuous(policy, chosen, arguments),
    }
    if "vllm" in arguments.engines:
        engines["vllm"] = vllm(policy, arguments)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.engines}
    for name in arguments.engines:
        engines[name](prompts[: arguments.slots // 4])  # warm
    for number in range(arguments.rounds):
        for name in arguments.engines:
            torch.manual_seed(number)
            start = time.perf_counter()
            responses = engines[name](prompts)
            machine.wait(arguments.device)
            seconds, tokens = time.perf_counter() - start, sum(map(len, responses))
            found[name].append({"seconds": seconds, "tokens": tokens, "ms_per_token": 1000 * seconds / tokens})
            print(f"{name}: {seconds:.1f} s, mean response {tokens / len(prompts):.1f}", flush=True)
    base = found[arguments.engines[0]]
    for name, rows in found.items():
        ratios = [row["ms_per_token"] / mine["ms_per_token"] for row, mine in zip(rows, base, strict=True)]
        cost = statistics.median(row["ms_per_token"] for row in rows)
        print(f"{name}: {cost:.3f} s per 1,000 tokens, {statistics.median(ratios):.2f} times {arguments.engines[0]}'s")
    print(json.dumps({"settings": vars(arguments), "rounds": found}))


if __name__ == "__main__":
    main()
