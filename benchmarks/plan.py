"""Planned memory against the measured peak of PPO steps on a CPU, a fresh process for each configuration.

python benchmarks/plan.py                      all configurations, a table
python benchmarks/plan.py --only 100m-twin     one of them

The steps are those of `benchmarks/ppo_step.py`. The plan is computed for the lengths that were drawn, because a run's
plan is made for the longest, which random models do not reach. Measured is the peak above the process's memory after
the imports and one step of a toy, in which libraries load their parts. `MALLOC_ARENA_MAX=2` and
`MALLOC_MMAP_THRESHOLD_=2097152` keep glibc from holding on to free memory: the program's need is measured, not what the
allocator keeps; `--default-malloc` leaves glibc as it is.
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

BASE = {
    "model_shape": "20m", "device": "cpu", "dtype": "float32", "threads": 1, "critic": "twin", "percent": 25.0,
    "lowest_layer": None, "prompts": 16, "prompt": 32, "limit": 64, "mean_response": 40.0, "epochs": 1,
    "minibatches": 2, "tokens_per_microbatch": 512, "engine": "slots", "slots": 16, "steps": 2,
    "gradient_checkpointing": False, "eight_bit": False,
}  # fmt: skip
LARGE = {"model_shape": "100m", "prompts": 8, "minibatches": 1, "slots": 8, "tokens_per_microbatch": 256}
CONFIGURATIONS = {
    "20m-head": {"critic": "head"},
    "20m-twin": {},
    "20m-separate": {"critic": "separate"},
    "20m-twin-all": {"percent": 100.0},
    "20m-twin-large-batch": {"tokens_per_microbatch": 4096, "prompts": 32, "slots": 32, "minibatches": 1},
    "100m-head": LARGE | {"critic": "head"},
    "100m-twin": LARGE,
    "100m-twin-50": LARGE | {"percent": 50.0},
    "100m-separate": LARGE | {"critic": "separate"},
    "100m-twin-spread": LARGE | {"lowest_layer": 0},
    "100m-twin-checkpointing": LARGE | {"gradient_checkpointing": True, "lowest_layer": 0, "percent": 50.0},
    "100m-head-all": LARGE | {"critic": "head", "percent": 100.0, "tokens_per_microbatch": 2048},
    "100m-twin-bfloat16": LARGE | {"dtype": "bfloat16"},
}


def settings(name: str) -> argparse.Namespace:
    return argparse.Namespace(**(BASE | CONFIGURATIONS[name]))


def measure(name: str) -> dict:
    """Return plan and peak of a configuration, decimal GB, in this process."""
    sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]
    import machine
    import torch
    from ppo_step import Job

    arguments = settings(name)
    torch.set_num_threads(arguments.threads)
    _step(Job(argparse.Namespace(**(vars(arguments) | {"model_shape": "toy", "percent": 100.0}))), 0)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    peak = machine.peak_memory("cpu")
    torch.manual_seed(0)
    job = Job(arguments)
    phases, lengths = {"made": peak()}, []
    for step in range(arguments.steps):
        lengths += _step(job, step, phases, peak)
    measured = peak()
    plan = planned(job, arguments, lengths)
    return {
        "name": name,
        "planned_gb": plan.total / 1e9,
        "measured_gb": measured,
        "error": plan.total / 1e9 / measured - 1,
        "parts": plan.render(),
        "phases": phases,
    }


def _step(job, step: int, phases: dict | None = None, peak=None) -> list[int]:
    """Make one PPO step; return the tokens of each of its sequences. phases: the highest peak so far after each."""
    rollout = job.rollout(step)
    lengths = rollout.lengths()
    note = (lambda name: None) if phases is None else (lambda name: phases.update({f"{step} {name}": peak()}))
    note("rollout")
    experience = job.score(rollout)
    note("scoring")
    job.update(experience)
    note("update")
    return lengths


def planned(job, arguments: argparse.Namespace, lengths: list[int]):
    """Plan the run. lengths: tokens of its sequences."""
    from starling_train.planning.memory import Judge, plan
    from starling_train.planning.memory import TrainingJob as Planned
    from starling_train.planning.shapes import Shape

    policy = job.actors.policy
    shape = Shape.of(policy.config)
    layers = {name.split(".")[2] for name in job.table.names if name.startswith("model.layers.")}
    step_tokens = sum(lengths) // arguments.steps
    mean = step_tokens / arguments.prompts
    longest = max(lengths)
    return plan(
        shape,
        [Judge(shape, dtype=arguments.dtype, tokens=arguments.tokens_per_microbatch)],
        Planned(
            parameters=job.table.parameters_of,
            trainable=job.table.parameters_trained,
            dtype=arguments.dtype,
            critic=arguments.critic,
            slots=arguments.slots,
            sequence_tokens=longest,
            prompt_tokens=round(arguments.prompt / mean * longest),
            step_tokens=step_tokens,
            minibatch_tokens=step_tokens // arguments.minibatches,
            tokens_per_microbatch=arguments.tokens_per_microbatch,
            layers_above_lowest=shape.layers - job.table.lowest_layer,
            layers_trained=len(layers),
            gradient_checkpointing=arguments.gradient_checkpointing,
            eight_bit=arguments.eight_bit,
            device=arguments.device,
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CONFIGURATIONS)
    parser.add_argument("--here", action="store_true", help="in this process, JSON out")
    parser.add_argument("--parts", action="store_true", help="memory by part, and the peak after each phase")
    parser.add_argument("--default-malloc", action="store_true")
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(measure(arguments.only)))
        return
    malloc = {} if arguments.default_malloc else {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "2097152"}
    print("| configuration | planned GB | measured GB | planned / measured |\n|---|---|---|---|", flush=True)
    for name in [arguments.only] if arguments.only else CONFIGURATIONS:
        command = [sys.executable, __file__, "--here", "--only", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | malloc)
        found = json.loads(done.stdout.splitlines()[-1])
        ratio = 1 + found["error"]
        print(f"| {name} | {found['planned_gb']:.3f} | {found['measured_gb']:.3f} | {ratio:.2f} |", flush=True)
        if arguments.only or arguments.parts:
            print(found["parts"], found["phases"], sep="\n", flush=True)


if __name__ == "__main__":
    main()
