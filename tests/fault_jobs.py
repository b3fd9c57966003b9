"""What fault tests need: small jobs, what must come out of them, and moments to disturb them at."""

import json
import os
import random
import time
from pathlib import Path

import pytest
from fault_process import Started, ready

from starling_train.files.lock import Lock

RUNS = int(os.environ.get("STARLING_FAULT_RUNS", "30"))  # kills of each command in `make test-faults`

# Command -> arguments of a run of seconds. A new command adds a line, and every fault test tries it.
JOBS = {
    "ppo": [
        "+recipe=debug", "algorithm.steps=5", "algorithm.prompts_per_step=8", "data.eval_prompts=8",
        "evaluation.suites=[]", "reward.max_length=512",
    ],
    "rm": ["+recipe=toy_rm", "rm.epochs=0.02", "rm.prompts_per_step=4", "data.eval_prompts=8", "evaluation.every=2"],
    "dpo": [
        "+recipe=toy_dpo", "dpo.epochs=0.02", "dpo.prompts_per_step=4", "data.eval_prompts=8",
        "evaluation.responses=4", "evaluation.every=2", "evaluation.suites=[]",
    ],
}  # fmt: skip
# Other runs of `ppo`, three responses to each of three prompts, which only `make test-faults` disturbs
GROUPS = {
    name: [*JOBS["ppo"], f"algorithm={name}", "algorithm.prompts_per_step=3", "algorithm.responses_per_prompt=3", *more]
    for name, more in (
        ("rloo", ["algorithm.kl.target=2", "algorithm.kl.horizon=50"]),
        ("grpo", ["algorithm.drop_truncated=true", "rollout.max_new_tokens=12"]),
    )
}
EVERY_STEP = ["checkpoint.every=1"]
# What a run hides while it is half written or half deleted
WRITES = {"saving": "checkpoints/.step_*.partial", "deleting": "checkpoints/.step_*.old", "ending": ".*.partial"}
# Of a state: times, and whether its evaluation was done already when it was saved
MAY_DIFFER = ("seconds", "unlogged", "best_step", "best_score")
UNTIMED = ("time/", "throughput/", "memory/")


def command_of(name: str) -> tuple[str, list[str]]:
    """The command of a job, and its arguments."""
    return ("ppo", GROUPS[name]) if name in GROUPS else (name, JOBS[name])


class Job:
    """One run on the toy, and how it comes out undisturbed; `start_s`, `step_s`: seconds of start and of a step."""

    def __init__(self, name: str, straight: Path):
        self.name, self.straight = name, straight
        self.command, self.arguments = command_of(name)
        self.steps, self.start_s, self.step_s = 0, 0.0, 0.0

    def measure(self) -> None:
        """Run undisturbed, unless another worker of the tests has, and learn how long start and step take."""
        measured = self.straight.parent / "measured.json"
        self.straight.parent.mkdir(exist_ok=True)
        with Lock(self.straight.parent / ".lock"):
            if not measured.exists():
                self._run_straight()
                measured.write_text(json.dumps([self.steps, self.start_s, self.step_s]))
        self.steps, self.start_s, self.step_s = json.loads(measured.read_text())

    def _run_straight(self) -> None:
        ready()
        began = time.monotonic()
        arguments = ["run_dir=run", *self.arguments, *EVERY_STEP]
        process = Started(self.command, arguments, self.straight.parent)
        process.wait_until(lambda: step(self.straight) == 0)
        trains = time.monotonic()
        assert process.wait() == 0, process.error()
        self.steps = step(self.straight)
        self.start_s, self.step_s = trains - began, (time.monotonic() - trains) / (self.steps + 1)

    def start(self, folder: Path, *more: str) -> Started:
        arguments = ["run_dir=run", *self.arguments, *more]
        return Started(self.command, arguments, folder)

    def finish(self, folder: Path, *more: str) -> None:
        """Start (again) and let it end; it must have come out as the undisturbed run."""
        again = self.start(folder, *more)
        assert again.wait() == 0, again.error()
        self.check_same(again.run)

    def check_same(self, run: Path) -> None:
        assert outcome(run) == outcome(self.straight)
        hidden = {path.name for path in run.rglob(".*")}
        assert not hidden, "half-written files or a lock stayed"


KEPT = ("samples.jsonl", "cases.jsonl", "reference.jsonl")


def outcome(run: Path) -> dict:
    """All that must not depend on what happened to a run on its way."""
    newest = sorted((run / "checkpoints").iterdir())[-1]
    state = json.loads((newest / "state.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    return {
        "weights": [(newest / f"{part}.safetensors").read_bytes() for part in ("trainable", "optimizer")],
        "model": [path.read_bytes() for path in sorted(run.glob("policy/*.safetensors"))],
        "state": {key: value for key, value in state.items() if key not in MAY_DIFFER},
        "metrics": rows(run),
        **{name: (run / name).read_text() for name in KEPT if (run / name).exists()},
        "summary": {key: summary[key] for key in ("steps", "best_step", "best_score", "first_eval", "last_eval")},
    }


def rows(run: Path) -> list[dict]:
    """metrics.jsonl but for what a clock says; strict JSON, every line whole."""
    text = (run / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    lines = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(UNTIMED)} for line in lines]


def step(run: Path) -> int:
    """The last step that metrics.jsonl has; -1 if none."""
    path = run / "metrics.jsonl"
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return json.loads(whole.splitlines()[-1])["step"] if whole else -1


def saved_step(run: Path) -> int:
    return max((int(path.name.removeprefix("step_")) for path in (run / "checkpoints").glob("step_*")), default=0)


def wait_for_moment(job: Job, process: Started, kind: str, seed: int) -> None:
    """Wait until a moment that the seed chooses: while it starts, at any time of the run, or in a write."""
    chance = random.Random(f"{kind} {seed}")
    run = process.run
    if kind == "starting":
        time.sleep(chance.uniform(0.0, job.start_s))
    elif kind == "training":
        wanted = chance.randint(-1, job.steps - 2)
        process.wait_until(lambda: step(run) >= wanted and (run / "config.yaml").exists())
        time.sleep(chance.uniform(0.0, job.step_s))
    else:
        wanted = chance.randint(0, job.steps - 2)
        process.wait_until(lambda: saved_step(run) >= wanted, pause=0)
        process.wait_until(lambda: any(run.glob(WRITES[kind])), pause=0)
        time.sleep(chance.choice((0.0, 0.001, 0.003, 0.01)))
