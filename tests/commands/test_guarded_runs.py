"""Runs with a guard: what it does to them, the files they leave, and that a kill changes nothing of it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from fault_process import Started, kill_in_call
from safetensors.torch import load_file

TEXT = " ".join(f"The {word} fox number {i} jumps over the lazy dog." for i, word in enumerate(["quick", "brown"] * 20))
WEIGHTS = ("trainable.safetensors", "optimizer.safetensors")
RANKED = [
    {"prompt": f"How is {i}?", "answers": [{"answer": f"{word} {i}", "model": "m", "rank": float(rank)}
     for rank, word in enumerate(("good", "fine", "bad"), 1)]} for i in range(30)
]  # fmt: skip


@pytest.fixture(scope="module")
def arguments(small_models, small_run, tmp_path_factory) -> dict[str, list[str]]:
    """Eight steps of dpo, and of ppo, of a model that soon forgets the text, measured every second one."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "text.txt").write_text(TEXT)
    for name, rows in (("ranked", RANKED), ("prompts", [{"prompt": row["prompt"]} for row in RANKED])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    guarded = [
        "evaluation.suites=[perplexity]", f"evaluation.perplexity.path={folder / 'text.txt'}",
        "evaluation.perplexity.window=32", "evaluation.every=2", "guard.skills=[eval/perplexity:7]",
        "checkpoint.every=3", "checkpoint.keep=1",
    ]  # fmt: skip
    dpo = [
        f"model.path={small_models / 'policy'}", f"data.path={folder / 'ranked.jsonl'}", "model.dtype=float32",
        "cluster.device=cpu", "cluster.threads=1", "freeze.top_percent=50", "run_dir=run", "dpo.prompts_per_step=6",
        "dpo.epochs=2", "dpo.max_length=128", "data.max_prompt_tokens=64", "data.eval_prompts=6",
        "evaluation.responses=0", "optim.learning_rate=0.02", "rollout.max_new_tokens=6",
    ]  # fmt: skip
    ppo = [*small_run, f"data.path={folder / 'prompts.jsonl'}", "algorithm.steps=8", "optim.learning_rate=0.02"]
    return {"dpo": [*dpo, *guarded], "ppo": [*ppo, *guarded]}


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def outcome(run: Path) -> tuple:
    """What must be the same however a run was disturbed."""
    untimed = [
        {k: v for k, v in row.items() if not k.startswith(("time/", "throughput/", "memory/"))} for row in lines(run)
    ]
    folders = sorted((run / "checkpoints").iterdir())
    files = [*(folder / name for folder in folders for name in WEIGHTS), run / "policy" / "model.safetensors"]
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files], [f.name for f in folders], untimed


def run_in(folder: Path, command: str, arguments: list[str], prepare=None, code: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    process = Started(command, arguments, folder, prepare=prepare)
    assert process.wait(280) == code, process.error()
    return folder / "run"


@pytest.fixture(scope="module")
def stopped(arguments, tmp_path_factory) -> Path:
    return run_in(tmp_path_factory.mktemp("stopped"), "dpo", [*arguments["dpo"], "guard.then=stop"])


@pytest.fixture(scope="module")
def anchored(arguments, tmp_path_factory) -> Path:
    return run_in(tmp_path_factory.mktemp("anchored"), "ppo", [*arguments["ppo"], "guard.then=anchor"])


def test_it_stops_with_the_best_model_that_kept_the_skill(stopped, small_models):
    rows = lines(stopped)
    assert [row["step"] for row in rows] == list(range(7))  # of eight
    assert {row["step"]: row["guard/kept"] for row in rows if "guard/kept" in row} == {0: 1, 2: 1, 4: 1, 6: 0}
    assert rows[6]["guard/perplexity_fall_low"] > 7 > rows[4]["guard/perplexity_fall_low"]
    rise = rows[6]["eval/perplexity"] - rows[0]["eval/perplexity"]
    assert rows[6]["guard/perplexity_fall"] == pytest.approx(rise, rel=1e-5)
    assert [folder.name for folder in sorted((stopped / "checkpoints").iterdir())] == ["step_000004", "step_000006"]
    base, policy = (load_file(folder / "policy" / "model.safetensors") for folder in (small_models, stopped))
    kept = load_file(stopped / "checkpoints" / "step_000004" / "trainable.safetensors")
    trained = {name.removeprefix("policy."): tensor for name, tensor in kept.items()}
    assert len(trained) == 14 and all(torch.equal(tensor, (base | trained)[name]) for name, tensor in policy.items())


def test_a_stopped_run_says_so_and_is_finished(stopped, arguments, capsys):
    summary = json.loads((stopped / "summary.json").read_text())
    told = summary["guard"]
    assert (told["then"], told["stopped"], told["policy_step"], told["lost_at"]) == ("stop", True, 4, [6])
    assert told["policy_eval"]["step"] == summary["best_step"] == 4 and summary["last_eval"]["step"] == 6
    said = (stopped.parent / "stdout").read_text()
    assert "\nguard: eval/perplexity may lose 7\n" in said and "of them beyond chance, and 7 may be lost\n" in said
    assert "guard: back to the model of step 4, the best that kept all skills; the run stops\n" in said
    assert "\nguard        a skill was lost at step 6 (guard.then=stop); the model is that of step 4\n" in said
    report = (stopped / "report.html").read_text()
    assert (
        "its guard went back to step 4" in report and "Lost perplexity by" in report and 'class="level mark"' in report
    )
    before = outcome(stopped)
    run_in(stopped.parent, "dpo", [*arguments["dpo"], "guard.then=stop"])
    assert "is finished, nothing to do" in (stopped.parent / "stdout").read_text() and outcome(stopped) == before


def in_evaluation(call: int) -> None:
    """A signal comes while an evaluation is under way."""
    from starling_train.evals import held_out_pairs

    calls, evaluate = [], held_out_pairs.evaluate

    def interrupted(*arguments):
        calls.append(None)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments)

    held_out_pairs.evaluate = interrupted


@pytest.mark.parametrize(
    "disturb,code",
    [
        pytest.param(
            partial(kill_in_call, "training.dpo.update", "update", 1), -signal.SIGKILL, marks=pytest.mark.slow
        ),
        (partial(kill_in_call, "training.dpo.update", "update", 6), -signal.SIGKILL),
        pytest.param(
            partial(kill_in_call, "models.causal_lm", "save_model", 1), -signal.SIGKILL, marks=pytest.mark.slow
        ),
        (partial(in_evaluation, 4), 143),
    ],
    ids=["step 1", "step 6", "the model", "the evaluation"],
)
def test_a_stop_is_the_same_after_a_kill(stopped, arguments, tmp_path, disturb, code):
    """Before the first checkpoint, just before the guard acts, while it does, and after."""
    guarded = [*arguments["dpo"], "guard.then=stop"]
    run = run_in(tmp_path / "here", "dpo", guarded, disturb, code)
    assert not (run / "summary.json").exists()
    assert outcome(run_in(tmp_path / "here", "dpo", guarded)) == outcome(stopped)


def test_an_anchor_goes_back_and_on_with_a_larger_coefficient(anchored):
    rows = lines(anchored)
    kept = {row["step"]: row["guard/kept"] for row in rows if "guard/kept" in row}
    assert kept[2] == 1 and kept[4] == 0 and len(kept) == 5
    assert [row["kl/coefficient"] for row in rows[1:6]] == [0.01] * 4 + [0.05]
    assert all(row["guard/coefficient"] == row["kl/coefficient"] for row in rows[1:])
    best = max((row for row in rows[:4] if "guard/kept" in row), key=lambda row: row["eval/score_mean"])["step"]
    said = (anchored.parent / "stdout").read_text()
    assert (
        f"guard: back to the model of step {best}, the best that kept all skills; KL coefficient 0.01 -> 0.05" in said
    )
    # the step after is that of the model it went back to: KL is as low again
    assert best == 2 and rows[5]["kl/reference"] == pytest.approx(rows[3]["kl/reference"], abs=0.3)
    assert json.loads((anchored / "summary.json").read_text())["guard"]["stopped"] is False


@pytest.mark.parametrize("call", [5, pytest.param(6, marks=pytest.mark.slow)])
def test_an_anchor_is_the_same_after_a_kill(anchored, arguments, tmp_path, call):
    """Just after it went back, when the newest checkpoint is of before; and one step later."""
    guarded = [*arguments["ppo"], "guard.then=anchor"]
    kill = partial(kill_in_call, "training.ppo.update", "update", call)
    run_in(tmp_path / "here", "ppo", guarded, kill, -signal.SIGKILL)
    assert outcome(run_in(tmp_path / "here", "ppo", guarded)) == outcome(anchored)


def test_dpo_is_anchored_by_the_drift_of_its_pairs(arguments, tmp_path):
    more = ["guard.then=anchor", "guard.skills=[eval/perplexity:5]", "guard.least=0.2", "guard.most=0.3"]
    run = run_in(tmp_path / "here", "dpo", [*arguments["dpo"], *more])
    rows = lines(run)
    assert [row["guard/coefficient"] for row in rows[1:]] == [0, 0, 0.2, 0.2, 0.3, 0.3, 0.3, 0.3]
    assert ["dpo/drift" in row for row in rows[1:]] == [False] * 2 + [True] * 6
    assert all(row["dpo/drift"] >= 0 for row in rows[3:]) and not any(row["optim/skipped"] for row in rows[1:])
    assert rows[3]["dpo/drift"] == pytest.approx(0.0, abs=1e-6)  # of the start, to which it went back
    said = (run.parent / "stdout").read_text()
    assert "guard: back to the starting model; KL coefficient 0 -> 0.2\n" in said
    assert "KL coefficient of the guard" in (run / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "command,more",
    [
        ("dpo", ["freeze.adapter=lora", "freeze.lora.rank=4", "guard.skills=[eval/perplexity:0.01]"]),
        ("ppo", ["algorithm.name=apa", "algorithm.critic=twin", "guard.then=anchor"]),
    ],
    ids=["adapters", "apa"],
)
def test_other_ways_to_train_go_back_too(arguments, tmp_path, command, more):
    """Adapters go back to the start, which is no checkpoint of theirs that PEFT could not read."""
    run = run_in(tmp_path / "here", command, [*arguments[command], *more])
    rows = lines(run)
    assert 0 in [row["guard/kept"] for row in rows if "guard/kept" in row]
    step = json.loads((run / "summary.json").read_text())["guard"]["policy_step"]
    folder = run / "checkpoints" / f"step_{step:06d}"
    assert folder.is_dir() and (command == "ppo" or (folder / "adapter_model.safetensors").is_file())


@pytest.mark.parametrize("command", ["ppo", "dpo", "plan"])
def test_it_is_told_before_anything_is_done(arguments, command, run_command):
    done = run_command(command, *arguments["dpo" if command == "dpo" else "ppo"], "dry_run=true")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("guard ")]
    assert line == (
        "guard      eval/perplexity 7 may be lost, measured every 2 steps; else the run stops with the best checkpoint "
        "that kept them"
    )


@pytest.mark.processes
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_two_processes_go_back_together(arguments, small_models, tmp_path, stage):
    """What one of them decides both do, under ZeRO with shards of the moments, and of the weights: stop at step 6."""
    if stage:
        pytest.importorskip("deepspeed", reason="deepspeed is in the extra zero")
    line = [*arguments["dpo"], "guard.then=stop", f"cluster.zero_stage={stage}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [*command, "starling_train.dpo", *line],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("guard: back to the model of step 4, the best that kept all skills; the run stops") == 1
    base, policy = (load_file(folder / "policy" / "model.safetensors") for folder in (small_models, tmp_path / "run"))
    kept, last = (
        load_file(tmp_path / "run" / "checkpoints" / step / "trainable.safetensors")
        for step in ("step_000004", "step_000006")
    )
    assert all(torch.equal(kept[name], last[name]) for name in kept)
    trained = {name.removeprefix("policy."): tensor for name, tensor in kept.items()}
    assert all(torch.equal(tensor, (base | trained)[name]) for name, tensor in policy.items())
