"""The share of an update in which each process works, counted: no model and no other process is needed.

python benchmarks/process_shares.py                       64 and 256 prompts a step, 2 to 16 processes, a table

Processes wait for each other after every mini-batch, so it takes as long as the one with the most tokens in it. The share
is the tokens of all, over those of the process with most, times processes, summed over mini-batches; means over steps and
both epochs. Counted are `training.ppo.mini_batches` and a plain draw, in which a mini-batch takes sequences without
regard to whose they are. The bound is what no way to divide a process's own sequences can pass.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import torch

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]

from step_lengths import lengths

from starling_train.training.ppo.mini_batches import StepSequences, draw

MINI_BATCHES, EPOCHS = 4, 2  # of the recipe `small`
Draw = Callable[[StepSequences, int, torch.Generator], list[list[int]]]


def plain(sequences: StepSequences, count: int, generator: torch.Generator) -> list[list[int]]:
    """Draw mini-batches from all sequences alike."""
    order = torch.randperm(len(sequences.tokens), generator=generator)
    return [part.tolist() for part in order.tensor_split(count)]


def share(sequences: StepSequences, mini_batches: list[list[int]], processes: int) -> float:
    """Return the share of the time that processes work in the mean. Process r has sequences r, r + processes, ..."""
    longest = 0
    for indices in mini_batches:
        tokens = [0] * processes
        for index in indices:
            tokens[sequences.numbers[index] % processes] += sequences.tokens[index]
        longest += max(tokens)
    return sum(sequences.tokens) / (processes * longest)


def counted(by: Draw, prompts: int, processes: int, steps: int = 50) -> float:
    """Return the mean share over some steps."""
    shares = []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        sequences = of_step(prompts, step)
        shares += [share(sequences, by(sequences, MINI_BATCHES, generator), processes) for _ in range(EPOCHS)]
    return mean(shares)


def of_step(prompts: int, step: int) -> StepSequences:
    """Draw the sequences of a step, all of them fit."""
    tokens = [prompt + response for prompt, response in zip(*lengths(prompts, step), strict=True)]
    return StepSequences(prompts, list(range(prompts)), tokens)


def whole(sequences: StepSequences, _: int, __: torch.Generator) -> list[list[int]]:
    """Make one mini-batch of all: processes wait for each other once, for the one with the most tokens."""
    return [list(range(len(sequences.tokens)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4, 8, 16])
    arguments = parser.parse_args()
    print("| prompts a step | processes | plain draw | same number and tokens of each | bound |\n|---|---|---|---|---|")
    for prompts in arguments.prompts:
        for processes in arguments.processes:
            shares = (counted(by, prompts, processes) for by in (plain, draw, whole))
            print(f"| {prompts} | {processes} | {' | '.join(f'{one:.2f}' for one in shares)} |")


if __name__ == "__main__":
    main()
