"""Full matrices against LoRA adapters on the same selection: parameters, peak memory and time of a PPO step, one table.

python benchmarks/adapters.py --rounds 2 -- --model-shape 20m --prompts 16

Arguments after `--` go to ppo_step.py, which measures each way in a separate process; the ways take turns, round by
round.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parent / "ppo_step.py"
WAYS = {"matrices": [], "adapters, rank 8": ["--adapter", "8"], "adapters, rank 64": ["--adapter", "64"]}
HEADER = "| critic | what trains | policy's parameters | peak MB | s a step: rollout, scoring, update | of matrices |"


def measure(options: list[str]) -> dict[str, Any]:
    command = [sys.executable, SCRIPT, "--no-rates", *options]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def row(critic: str, way: str, found: list[dict[str, Any]], plain: list[dict[str, Any]]) -> str:
    def mean(rows: list[dict[str, Any]], *keys: str) -> float:
        values = [r[keys[0]] if len(keys) == 1 else r[keys[0]][keys[1]] for r in rows]
        return statistics.mean(values)

    phases = ", ".join(f"{mean(found, 'phases_s', name):.1f}" for name in ("rollout", "scoring", "update"))
    seconds, memory = mean(found, "seconds_per_step"), mean(found, "peak_gb")
    of = f"{seconds / mean(plain, 'seconds_per_step'):.2f} of the time, {memory / mean(plain, 'peak_gb'):.2f} of the memory"
    return (
        f"| {critic} | {way} | {found[0]['trainable']:,} | {1000 * memory:.0f} | {seconds:.1f}: {phases} | "
        f"{of if found is not plain else ''} |"
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("options", nargs="*", help="for ppo_step.py, after --")
    arguments = parser.parse_args()
    print(HEADER)
    print("|---|---|---|---|---|---|")
    for critic in ("head", "twin"):
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for _ in range(arguments.rounds):
            for way, more in WAYS.items():
                found[way].append(measure(["--critic", critic, *more, *arguments.options]))
        for way, rows in found.items():
            print(row(critic, way, rows, found["matrices"]), flush=True)


if __name__ == "__main__":
    main()
