"""How fast conversations are scored: length-sorted batches beside padded ones, and a server with 32 connections.

python benchmarks/score.py write DIR                     a random reward model with Openchat's tokenizer
python benchmarks/score.py batches DIR NECTAR            tokens/s of `score`'s batching, and of batches that are all
                                                         padded to the longest allowed length
python benchmarks/score.py server DIR NECTAR             requests/s over HTTP: one at a time, and 32 connections
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from starling_train.data import nectar
from starling_train.models.reward import RewardNet, write_starling_7b
from starling_train.models.reward.model import RewardModel, load_reward_model


def write(arguments: argparse.Namespace) -> None:
    """Write a checkpoint in Starling-RM-7B-alpha's layout."""
    import openchat_tokenizer
    from transformers import LlamaConfig

    torch.manual_seed(0)
    hidden = arguments.hidden
    net = RewardNet.from_config(
        LlamaConfig(
            vocab_size=32002,
            hidden_size=hidden,
            intermediate_size=hidden * 11 // 4,
            num_hidden_layers=arguments.layers,
            num_attention_heads=hidden // 64,
            num_key_value_heads=hidden // 64,
        )
    )
    torch.nn.init.normal_(net.v_head.weight, std=0.02)
    write_starling_7b(net, arguments.reward, openchat_tokenizer.build())


def conversations(arguments: argparse.Namespace) -> list[list[dict]]:
    """Return the first of Nectar's prompts with each of their answers, in the file's order."""
    return [
        [*row.messages, {"role": "assistant", "content": answer.text}]
        for row in nectar.load(arguments.data).rows
        for answer in row.answers
    ][: arguments.conversations]


def load(arguments: argparse.Namespace) -> RewardModel:
    return load_reward_model(
        "starling_7b",
        arguments.reward,
        dtype=arguments.dtype,
        device=arguments.device,
        max_length=arguments.max_length,
        tokens_per_batch=arguments.tokens_per_batch,
    )


def batches(arguments: argparse.Namespace) -> None:
    """Time one pass of each way over the same conversations; the scores must agree."""
    model, asked = load(arguments), conversations(arguments)
    encoded = [model.encode(messages) for messages in asked]
    tokens = sum(map(len, encoded))
    model.score_ids(encoded[:8])  # warm
    ours, scores = timed(lambda: model.score_ids(encoded), arguments.device)
    padded, others = timed(lambda: score_padded(model, encoded), arguments.device)
    apart = max(abs(a - b) for a, b in zip(scores, others, strict=True))
    print(
        f"{where(arguments)}, {arguments.dtype}, {len(asked)} conversations, {tokens / len(asked):.0f} tokens on average"
    )
    print(f"length-sorted, {model.tokens_per_batch} tokens a batch: {tokens / ours:,.0f} tokens/s")
    print(f"padded to {model.max_length}: {tokens / padded:,.0f} tokens/s; {padded / ours:.1f} times slower")
    print(f"largest difference of two scores {apart:.1e}")


def score_padded(model: RewardModel, encoded: list[list[int]]) -> list[float]:
    """Score in the given order, every row padded to the longest allowed length, as many rows as the budget holds."""
    scores: list[float] = []
    rows = max(1, model.tokens_per_batch // model.max_length)
    for start in range(0, len(encoded), rows):
        group = encoded[start : start + rows]
        ids = torch.zeros(len(group), model.max_length, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(group):
            ids[row, : len(sequence)], mask[row, : len(sequence)] = torch.tensor(sequence), 1
        with torch.inference_mode():
            scores += model.net(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).tolist()
    return scores


def timed(work: Callable, device: str) -> tuple[float, object]:
    """Return wall seconds and the result."""
    began = time.perf_counter()
    result = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, result


def server(arguments: argparse.Namespace) -> None:
    """Time requests of one conversation each; the client is one asyncio loop for both ways."""
    from reward_server import Served, ask_all

    asked = conversations(arguments)
    settings = [
        f"reward.path={arguments.reward}", f"reward.dtype={arguments.dtype}", f"cluster.device={arguments.device}",
        f"reward.max_length={arguments.max_length}", f"reward.tokens_per_batch={arguments.tokens_per_batch}",
        f"cluster.threads={arguments.threads}",
    ]  # fmt: skip
    with Served(*settings, OMP_NUM_THREADS=str(arguments.threads)) as served:
        ask_all(served.port, asked[:32], 32)  # warm
        print(f"{where(arguments)}, {arguments.dtype}, {len(asked)} requests of one conversation")
        for connections in (1, 32):
            _, seconds = ask_all(served.port, asked, connections)
            print(f"{connections} connections: {len(asked) / seconds:,.1f} requests/s", flush=True)


def where(arguments: argparse.Namespace) -> str:
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else f"CPU, {arguments.threads} threads"
    return f"torch {torch.__version__}, {device}"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    writer = commands.add_parser("write")
    writer.add_argument("reward", type=Path)
    writer.add_argument("--hidden", type=int, default=256)
    writer.add_argument("--layers", type=int, default=4)
    writer.set_defaults(run=write, threads=1)
    for work in (batches, server):
        command = commands.add_parser(work.__name__)
        command.add_argument("reward", type=Path)
        command.add_argument("data", help="Nectar: a directory, parquet or JSONL")
        command.add_argument("--conversations", type=int, default=200)
        command.add_argument("--max-length", type=int, default=2048)
        command.add_argument("--tokens-per-batch", type=int, default=16384)
        command.add_argument("--dtype", default="float32")
        command.add_argument("--device", default="cpu")
        command.add_argument("--threads", type=int, default=2)
        command.set_defaults(run=work)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.run(arguments)


if __name__ == "__main__":
    main()
