"""The toy with 8-bit moments, saved at each step, ended and gone on with: does what was saved load?

python benchmarks/eight_bit.py DIR --device cuda          needs bitsandbytes
python benchmarks/eight_bit.py DIR --device cpu           with moments in float32, for there are no others on a CPU

JSON in the last line: rewards and gradient norms by step of the run that was ended after two steps and gone on with,
and of one that was not; on a GPU they agree to some digits, not to the bit.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SHOWN = ("reward/score_mean", "optim/gradient_norm", "policy/ratio_first")


def main() -> int:
    """Run the toy three times; return 1 if a run failed or the third did not go on from the second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    settings = [f"cluster.device={arguments.device}", f"optim.eight_bit={str(arguments.device == 'cuda').lower()}"]
    settings += ["evaluation.every=0", "evaluation.suites=[]", "checkpoint.every=1", "optim.schedule=constant"]
    settings += ["rollout.max_new_tokens=12", "algorithm.prompts_per_step=16"]
    straight, stopped = arguments.directory / "straight", arguments.directory / "stopped"
    for run, steps in ((straight, 3), (stopped, 2), (stopped, 3)):
        command = [sys.executable, "-m", "starling_train.ppo", "+recipe=toy", *settings]
        done = subprocess.run([*command, f"algorithm.steps={steps}", f"run_dir={run}"])
        if done.returncode:
            return 1
    found = {name: rows(run) for name, run in (("straight", straight), ("stopped", stopped))}
    print(json.dumps(found))
    return int(len(found["straight"]) != len(found["stopped"]))


def rows(run: Path) -> list[dict[str, Any]]:
    """Return what is shown of each step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in ("step", *SHOWN) if key in line} for line in lines]


if __name__ == "__main__":
    sys.exit(main())
