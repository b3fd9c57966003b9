"""`ppo` on the toy: what a run writes, exact resume, and, in full, what the toy must show."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from fault_process import Started
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMISED = {
    "step", "episodes", "reward/score_mean", "reward/score_std", "reward/total_mean", "kl/reference", "kl/coefficient",
    "policy/loss", "policy/entropy", "policy/clip_fraction", "policy/approx_kl", "policy/ratio_first", "value/loss",
    "value/explained_variance", "value/clip_fraction", "response/length_mean", "response/length_max",
    "response/eos_fraction", "optim/learning_rate", "optim/gradient_norm", "optim/skipped", "time/rollout_s",
    "time/score_s", "time/update_s", "time/step_s", "throughput/samples_per_s", "throughput/tokens_per_s",
    "memory/peak_gb",
}  # fmt: skip
EVALUATED = {"eval/score_mean", "eval/score_std", "eval/function_calling", "eval/gold_mean"}
# the beginnings of all lines that a run prints
SAYS = re.compile(
    r"debug: /.*/policy on CPU, \d+ threads?; files go to run$|"
    r"\d+ rows read|module type |[a-z_.]+ +\d+ of +\d+ |CPU, |step \d+/\d+  |peak memory of a process: |"
    r"reward: an empty answer scores |warning: an answer |warning: \d+ % of the first answers |"
    r" +step 0 +step 3 |[\w%, ]+?  +-?\d+\.\d+ +-?\d+\.\d+ +[+-]\d+\.\d+$|"
    r"(time|memory|trained|model|checkpoints|metrics|samples)  |report: "
)
ROOT = Path(__file__).parents[2]


def metrics(run: Path) -> list[dict]:
    return [json.loads(line, parse_constant=pytest.fail) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_times(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "throughput/", "memory/"))} for row in rows]


def weights(run: Path) -> str:
    return hashlib.sha256((run / "policy" / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def straight(toy, tmp_path_factory) -> Path:
    """A run of `debug` in one go."""
    folder = tmp_path_factory.mktemp("straight")
    process = start(folder, "run_dir=run")
    assert process.wait(280) == 0, process.error()
    assert process.out().splitlines()[-1] == f"report: {folder / 'run' / 'report.html'}"
    return folder / "run"


def start(folder: Path, *arguments: str) -> Started:
    return Started("ppo", ["+recipe=debug", "algorithm.steps=3", *arguments], folder)


def test_the_run_directory_holds_what_is_promised(straight):
    names = {p.name for p in straight.iterdir()}
    assert names == {
        "config.yaml", "snr.json", "unfrozen.yaml", "metrics.jsonl", "samples.jsonl", "cases.jsonl", "checkpoints",
        "policy", "summary.json", "report.html", "starts.jsonl",
    }  # fmt: skip
    assert sorted(p.name for p in (straight / "checkpoints").iterdir()) == ["step_000002", "step_000003"]


def test_the_output_is_ours_line_by_line(straight):
    """No library says anything; the last lines are before and after, time, memory, and where things are."""
    assert (straight.parent / "stderr").read_text() == ""
    lines = (straight.parent / "stdout").read_text().splitlines()
    for line in lines:
        assert SAYS.match(line), line
    table = lines[lines.index(next(line for line in lines if line.split()[:2] == ["step", "0"])) :]
    assert table[0].split() == ["step", "0", "step", "3", "change"]
    first, last = metrics(straight)[0], metrics(straight)[-1]
    score = next(line for line in table if line.startswith("score, held out")).split()[-3:]
    assert score[:2] == [f"{row['eval/score_mean']:.2f}" for row in (first, last)]
    assert [line.split()[0] for line in table[-8:]] == [
        "time", "memory", "trained", "model", "checkpoints", "metrics", "samples", "report:",
    ]  # fmt: skip


def test_metrics_have_every_promised_key_and_one_line_a_step(straight):
    rows = metrics(straight)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert rows[0].keys() >= EVALUATED
    for row in rows[1:]:
        assert row.keys() >= PROMISED
        assert row["policy/ratio_first"] < 1e-4
    assert [row.keys() >= EVALUATED for row in rows] == [True, False, True, True]  # every 2 steps, and the last
    assert [row["episodes"] for row in rows] == [0, 16, 32, 48]


def test_samples_are_the_same_prompts_at_every_evaluation(straight):
    rows = [json.loads(line) for line in (straight / "samples.jsonl").read_text().splitlines()]
    by_step = {step: [r["prompt"] for r in rows if r["step"] == step] for step in (0, 2, 3)}
    assert by_step[0] == by_step[2] == by_step[3] and len(by_step[0]) == 16
    assert {"step", "prompt", "response", "score", "kl"} <= rows[0].keys()
    assert all(row["kl"] == 0 for row in rows if row["step"] == 0)


def test_what_counts_right_answers_says_which_were_right(straight):
    rows = [json.loads(line) for line in (straight / "cases.jsonl").read_text().splitlines()]
    measured = {row["step"]: row for row in metrics(straight)}
    assert [row["step"] for row in rows] == [0, 2, 3]
    for row in rows:
        assert len(row["eval/function_calling"]) == 4
        for key in row.keys() - {"step"}:  # the whole, and each category
            share = row[key].count("1") / len(row[key])
            assert measured[row["step"]][key] == pytest.approx(100 * share)


def test_the_final_model_loads_and_only_the_selection_moved(straight, toy):
    trained = AutoModelForCausalLM.from_pretrained(straight / "policy")
    base = AutoModelForCausalLM.from_pretrained(toy / "policy")
    pairs = zip(trained.named_parameters(), base.named_parameters(), strict=True)
    moved = {name for (name, a), (_, b) in pairs if not a.equal(b)}
    listed = [line for line in (straight / "unfrozen.yaml").read_text().splitlines() if line.startswith("- ")]
    assert len(moved) == len(listed) == 7  # one of two matrices, of each of seven types
    scan = json.loads((straight / "snr.json").read_text())
    for name in moved:
        module = name.removesuffix(".weight")
        rival = module.replace(".0.", ".#.").replace(".1.", ".0.").replace(".#.", ".1.")
        assert scan[module]["snr"] >= scan[rival]["snr"]
    tokenizer, original = (AutoTokenizer.from_pretrained(p / "policy") for p in (straight, toy))
    messages = [{"role": "user", "content": "Hello"}]
    ids = [t.apply_chat_template(messages, add_generation_prompt=True) for t in (tokenizer, original)]
    assert ids[0] == ids[1]


def test_summary_and_checkpoint_hold_what_they_say(straight):
    summary = json.loads((straight / "summary.json").read_text())
    rows = metrics(straight)
    assert summary["finished"] and summary["steps"] == 3
    assert summary["first_eval"]["eval/score_mean"] == rows[0]["eval/score_mean"]
    assert summary["last_eval"]["eval/score_mean"] == rows[-1]["eval/score_mean"]
    assert summary["trainable"]["matrices"] == 7
    from safetensors.torch import load_file

    tensors = load_file(straight / "checkpoints" / "step_000003" / "trainable.safetensors")
    policy = [name for name in tensors if name.startswith("policy.")]
    assert len(policy) == 7 and all(name.startswith(("policy.", "value_head.")) for name in tensors)


def test_run_again_says_that_it_is_finished_and_does_nothing(straight):
    before = {p: p.stat().st_mtime_ns for p in straight.rglob("*")}
    process = start(straight.parent, "run_dir=run")
    assert process.wait() == 0 and "finished" in process.out()
    assert {p: p.stat().st_mtime_ns for p in straight.rglob("*")} == before


def test_other_settings_in_the_same_directory_are_refused(straight):
    process = start(straight.parent, "run_dir=run", "optim.learning_rate=0.5")
    assert process.wait() == 2
    assert "optim.learning_rate" in process.error() and process.error().count("\n") == 1


def logged(run: Path) -> int:
    return len((run / "metrics.jsonl").read_text().splitlines()) if (run / "metrics.jsonl").exists() else 0


@pytest.mark.parametrize(
    "sent,code",
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGUSR1, 138, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_stopped_goes_on_exactly(straight, tmp_path, sent, code):
    process = start(tmp_path, "run_dir=run")
    assert process.wait_until(lambda: logged(process.run) > 1, pause=0.02), process.error()
    process.send(sent)
    assert process.wait() == code
    assert not (tmp_path / "run" / "summary.json").exists()
    again = start(tmp_path, "run_dir=run")
    assert again.wait(280) == 0, again.error()
    assert weights(tmp_path / "run") == weights(straight)
    assert without_times(metrics(tmp_path / "run")) == without_times(metrics(straight))
    for name in ("samples.jsonl", "cases.jsonl"):
        assert (tmp_path / "run" / name).read_text() == (straight / name).read_text()


@pytest.mark.parametrize(
    "changes",
    [
        ["algorithm.critic=twin", "algorithm.kl.target=6", "rollout.temperature=0.8"],
        ["freeze.adapter=lora", "freeze.lora.rank=4", "algorithm.critic=twin", "freeze.method=none", "rollout=hf"],
        ["algorithm.critic=separate", "algorithm=apa", "freeze=last_layers", "freeze.last_layers=1"],
        [
            "freeze=none",
            "reward.scale=none",
            "algorithm.steps=2",
            "algorithm.critic_warmup_steps=1",
            "model.dtype=bfloat16",
        ],
        ["freeze=random", "model.gradient_checkpointing=true", "algorithm.length_penalty=0.5", "evaluation.every=0"],
    ],
    ids=["twin", "adapters", "separate-apa", "everything-bf16", "random-checkpointing"],
)
def test_other_ways_to_train_run(toy, tmp_path, monkeypatch, changes):
    from starling_train import ppo

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["ppo", "+recipe=debug", "run_dir=run", "algorithm.steps=1", *changes])
    ppo.main()
    row = metrics(tmp_path / "run")[-1]
    limit = 0.2 if "model.dtype=bfloat16" in changes else 1e-4
    assert row["policy/ratio_first"] < limit and row["optim/skipped"] == 0


def test_adaptive_kl_and_critic_warm_up(toy, tmp_path, monkeypatch):
    """The coefficient of a step follows from the KL of the step before; a policy that waits does not move."""
    from safetensors.torch import load_file

    from starling_train import ppo

    changes = ["algorithm.steps=3", "algorithm.critic_warmup_steps=1", "algorithm.kl.target=2", "evaluation.every=0"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["ppo", "+recipe=debug", "run_dir=run", "checkpoint.keep=3", *changes])
    ppo.main()
    rows = metrics(tmp_path / "run")
    for before, after in pairwise(rows):
        error = min(max(before["kl/reference"] / 2 - 1, -0.2), 0.2)
        assert after["kl/coefficient"] == pytest.approx(before["kl/coefficient"] * (1 + error * 16 / 10000))
    saved = [tmp_path / "run" / "checkpoints" / f"step_{n:06d}" / "trainable.safetensors" for n in (1, 2)]
    base = AutoModelForCausalLM.from_pretrained(toy / "policy").state_dict()
    moved = [
        any(not t.equal(base[n.removeprefix("policy.")]) for n, t in load_file(path).items() if n.startswith("policy."))
        for path in saved
    ]
    assert moved == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["toy", "toy_lora"])
def test_the_toy_shows_what_it_promises(toy, tmp_path, recipe):
    """The demo, and with adapters: reward rises by a standard deviation, true quality rises, the skill stays."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "starling_train.ppo", f"+recipe={recipe}"], cwd=tmp_path, check=True, env=environment
    )
    print(f"seconds: {time.monotonic() - began:.0f}")
    rows = metrics(tmp_path / "runs" / recipe)
    first, last = rows[0], rows[-1]
    assert last["eval/score_mean"] >= first["eval/score_mean"] + first["eval/score_std"]
    assert last["eval/gold_mean"] > first["eval/gold_mean"]
    assert last["eval/function_calling"] >= first["eval/function_calling"] - 3.0
    kl = [row["kl/reference"] for row in rows[1:]]
    # the estimate is signed: while the policy has hardly moved, its noise is below 0 on some processors
    assert all(-0.05 < k < float("inf") for k in kl) and min(kl[len(kl) // 2 :]) > 0
    assert max(row["policy/ratio_first"] for row in rows[1:]) < 1e-4
    assert (tmp_path / "runs" / recipe / "report.html").stat().st_size > 10_000
