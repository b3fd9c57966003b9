"""Measure on one NVIDIA GPU, part by part in processes of their own; the failure of one part leaves the others.

python benchmarks/gpu.py DIR                  in ten minutes: the job of `+recipe=small`, random weights of 7B shapes
python benchmarks/gpu.py DIR --only tests step
python benchmarks/gpu.py DIR --miniature      a toy on a CPU: that every part runs, not what it takes

DIR/gpu.json is written after each part: the card, and for each part its command, exit code, seconds, the JSON that it
prints and the end of what it said; DIR/NAME.txt has all of it. A part that has no time left is not begun. Exit
code 1: a part failed.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
LAST_LINES = 40  # of a part's output that gpu.json keeps


@dataclass(frozen=True)
class Part:
    """A command. limit_s: it is ended after so many seconds. needs: a module without which it is left out."""

    name: str
    command: list[str]
    limit_s: int
    needs: str | None = None


def parts(out: Path, miniature: bool) -> list[Part]:
    """Return what is measured, most valuable first."""
    device = ["--device", "cpu" if miniature else "cuda"]
    chosen = [str(ROOT / "tests" / "rollout" / "test_devices.py")] if miniature else [str(ROOT / "tests"), "-m", "gpu"]
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
    # one step that is timed; of the first of them two, with the shares of what the card can do
    variant = ["--steps", "1", "--no-rates"]
    heads: dict[str, tuple[list[str], int]] = {
        "step": (["--steps", "2"], 180),
        "step, cuDNN's attention": ([*variant, "--cudnn-attention"], 120),
        "step, lowest layer 8": ([*variant, "--lowest-layer", "1" if miniature else "8"], 100),
        # 25 % would need some 100 GB
        "step, twin critic": ([*variant, "--critic", "twin", "--percent", "50" if miniature else "10"], 120),
    }
    steps = [
        Part(name, [str(HERE / "ppo_step.py"), *_small(miniature), *device, *options], limit)
        for name, (options, limit) in heads.items()
    ]
    checkpoint = [str(HERE / "eight_bit.py"), str(out / "eight_bit"), *device]
    scan = [str(HERE / "snr.py"), *device, "random", str(out / "random"), "--layers", "2"]
    scan += ["--hidden", "64"] if miniature else []
    return [
        Part("machine", [str(HERE / "machine.py"), *device], 60),
        Part("tests", tests, 120),
        *steps,
        Part("rollout", [str(HERE / "rollout.py"), *device, *_rollout(miniature, "generate")], 120),
        Part("eight-bit moments", checkpoint, 90, None if miniature else "bitsandbytes"),
        Part("snr", scan, 90),
        Part("vLLM", [str(HERE / "rollout.py"), *device, *_rollout(miniature, "vllm")], 180, "vllm"),
    ]


def _small(miniature: bool) -> list[str]:
    """Return the job of `small`: its shapes, lengths and batches."""
    if miniature:
        shape = "--model-shape toy --dtype bfloat16 --prompts 4 --prompt 8 --limit 12 --mean-response 6 --slots 4"
    else:
        shape = (
            "--model-shape 7b --dtype bfloat16 --prompts 64 --prompt 170 --limit 1024 --mean-response 338 --slots 32"
        )
    job = "--critic head --percent 25 --lowest-layer 0 --epochs 2 --minibatches 4 --gradient-checkpointing"
    return f"{shape} {job} --tokens-per-microbatch {256 if miniature else 8192}".split()


def _rollout(miniature: bool, other: str) -> list[str]:
    """Return the options of a rollout with slots and another engine."""
    # vLLM on a CPU has no attention for heads as small as the toy's
    small = f"{'20m' if other == 'vllm' else 'toy'} --prompts 8 --slots 4 --limit 12 --mean 6"
    shape = small if miniature else "7b --prompts 64 --slots 32 --limit 256 --mean 128"
    return f"--dtype bfloat16 --rounds 1 --engines slots {other} --model-shape {shape}".split()


def run(part: Part, out: Path, seconds: float) -> dict[str, Any]:
    """Run a part within its limit and `seconds`; return what gpu.json says of it."""
    started, path = time.monotonic(), out / f"{part.name.replace(' ', '_').replace(',', '')}.txt"
    command = [sys.executable, *part.command]
    told: dict[str, Any] = {"command": " ".join(part.command), "limit_s": part.limit_s}
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with path.open("w") as file:
        try:
            code = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, timeout=min(part.limit_s, seconds), env=environment
            ).returncode
        except subprocess.TimeoutExpired:
            code = 124
    lines = path.read_text(errors="replace").splitlines()
    told |= {"code": code, "seconds": round(time.monotonic() - started, 1)}
    for line in reversed(lines):  # libraries that shut down speak after the figures
        if line.startswith("{"):
            with contextlib.suppress(ValueError):
                told["figures"] = json.loads(line)
                lines.remove(line)
                break
    return told | {"said": lines[-LAST_LINES:]}


def main() -> int:
    """Run the parts that are asked for; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="DIR")
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="in all; parts that no time is left for are left out"
    )
    parser.add_argument("--only", nargs="+", metavar="PART", help="names, as in gpu.json")
    parser.add_argument("--miniature", action="store_true")
    arguments = parser.parse_args()
    chosen = parts(arguments.out, arguments.miniature)
    names = [part.name for part in chosen]
    if unknown := sorted(set(arguments.only or []) - set(names)):
        parser.error(f"--only: no part {', '.join(unknown)}; there are: {', '.join(names)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    end, found = time.monotonic() + 60 * arguments.minutes, {"miniature": arguments.miniature, "parts": {}}
    for part in chosen:
        if arguments.only and part.name not in arguments.only:
            continue
        left = end - time.monotonic()
        if part.needs and not _installed(part.needs):
            told: dict[str, Any] = {"left_out": f"needs {part.needs}, which is not installed"}
        elif left < 15:
            told = {"left_out": "no time was left"}
        else:
            told = run(part, arguments.out, left)
        found["parts"][part.name] = told
        (arguments.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
        end_of = told.get("left_out") or f"{told['seconds']:.0f} s" + (
            "" if not told["code"] else f", FAILED ({told['code']})"
        )
        print(f"{part.name}: {end_of}", flush=True)
    return int(any(told.get("code") for told in found["parts"].values()))


def _installed(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


if __name__ == "__main__":
    sys.exit(main())
