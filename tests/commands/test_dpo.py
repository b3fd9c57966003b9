"""`dpo`: real Nectar rows, the files it writes, exact resume, what may train, and wrong input."""

import hashlib
import json
import math
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from fault_process import Started, kill_in_call
from transformers import AutoModelForCausalLM, AutoTokenizer

from starling_train import dpo
from starling_train.models.actors import Actors
from starling_train.training.dpo import reference
from starling_train.training.dpo import update as dpo_update

PROMISED = {
    "step", "episodes", "dpo/loss", "dpo/accuracy", "dpo/margin", "dpo/chosen_reward", "dpo/rejected_reward",
    "dpo/chosen_logprob", "dpo/rejected_logprob", "dpo/pairs", "dpo/truncated_answers", "optim/learning_rate",
    "optim/gradient_norm", "optim/skipped", "time/encode_s", "time/update_s", "time/step_s",
    "throughput/samples_per_s", "throughput/tokens_per_s", "memory/peak_gb",
}  # fmt: skip
EVALUATED = {
    "eval/loss", "eval/preference_accuracy", "eval/reward_margin", "eval/chosen_reward", "eval/rejected_reward",
    "eval/length_mean", "eval/eos_fraction", "eval/words_mean",
}  # fmt: skip
WORDS = ("good", "fine", "fair", "weak", "bad")


def words(conversations: list[list[dict]]) -> list[float]:
    """A measure of one's own, named in `evaluation.functions`."""
    return [float(len(conversation[-1]["content"].split())) for conversation in conversations]


@pytest.fixture(scope="session")
def ranked_rows(tmp_path_factory) -> Path:
    """Thirty rows whose answers a word tells apart; 3 to 5 answers; some tied, repeated or empty."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    made = []
    for i in range(30):
        answers = [
            {"answer": f"{word} {i}", "model": "m", "rank": float(rank)}
            for rank, word in enumerate(WORDS[: 3 + i % 3], 1)
        ]
        if i % 5 == 0:
            answers[2]["rank"] = answers[1]["rank"]
            answers += [{"answer": "", "model": "m", "rank": 6.0}, answers[0] | {"rank": 7.0}]
        made.append({"prompt": f"\n\nHuman: How is {i}?\n\nAssistant: ", "answers": answers})
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


@pytest.fixture(scope="session")
def settings(small_models, ranked_rows) -> list[str]:
    """24 rows in 3 steps of 8, twice; a checkpoint every second step."""
    return [
        f"model.path={small_models / 'policy'}", f"data.path={ranked_rows}", "model.dtype=float32",
        "cluster.device=cpu", "cluster.threads=1", "freeze.top_percent=50", "run_dir=run", "dpo.prompts_per_step=8",
        "dpo.epochs=2", "dpo.beta=0.5", "dpo.max_length=128", "data.max_prompt_tokens=64", "data.eval_prompts=6",
        "evaluation.every=3", "evaluation.responses=4", "+evaluation.functions.words=test_dpo:words",
        "checkpoint.every=2", "optim.learning_rate=0.01", "rollout.max_new_tokens=6", "logging.samples=3",
    ]  # fmt: skip


def run_here(folder: Path, argv: list[str]) -> Path:
    """dpo in this process, in `folder`, with the signal handlers as they were afterwards; gives its run directory."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["dpo", *argv])
        try:
            dpo.main()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return folder / "run"


def lines(run: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line, parse_constant=pytest.fail) for line in (run / name).read_text().splitlines()]


def outcome(run: Path) -> tuple:
    """What must be the same however a run was disturbed: weights, all numbers but times, samples, reference."""
    untimed = [
        {k: v for k, v in row.items() if not k.startswith(("time/", "throughput/", "memory/"))} for row in lines(run)
    ]
    newest = sorted((run / "checkpoints").iterdir())[-1]
    files = [newest / "trainable.safetensors", newest / "optimizer.safetensors", run / "policy" / "model.safetensors"]
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return hashes, untimed, (run / "samples.jsonl").read_text(), (run / "reference.jsonl").read_text()


@pytest.fixture(scope="module", autouse=True)
def small_chunks():
    """24 training rows are then four chunks of the reference's pass."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "CHUNK", 7)
        yield


@pytest.fixture(scope="module")
def straight(settings, tmp_path_factory) -> Path:
    """A run in one go."""
    return run_here(tmp_path_factory.mktemp("straight"), settings)


def test_the_run_directory_holds_what_is_promised(straight):
    assert {path.name for path in straight.iterdir()} == {
        "config.yaml", "snr.json", "unfrozen.yaml", "metrics.jsonl", "samples.jsonl", "reference.jsonl", "checkpoints",
        "policy", "summary.json", "report.html", "starts.jsonl",
    }  # fmt: skip
    rows = lines(straight)
    assert [row["step"] for row in rows] == list(range(7))
    assert all(row.keys() >= PROMISED for row in rows[1:])
    assert [row.keys() >= EVALUATED for row in rows] == [True, False, False, True, False, False, True]
    summary = json.loads((straight / "summary.json").read_text())
    assert (summary["command"], summary["finished"], summary["steps"], summary["episodes"]) == ("dpo", True, 6, 48)
    assert summary["last_eval"]["eval/reward_margin"] == rows[-1]["eval/reward_margin"]
    samples = lines(straight, "samples.jsonl")
    assert [row["step"] for row in samples] == [0, 0, 0, 3, 3, 3, 6, 6, 6]
    assert samples[0].keys() == {"step", "prompt", "response", "ended", "words"}
    report = (straight / "report.html").read_text()
    assert "Pairs of answers" in report and "<strong>DPO</strong>" in report and "Reward</h3>" not in report


def test_it_starts_even_and_learns(straight):
    first, last = lines(straight)[0], lines(straight)[-1]
    assert (first["eval/preference_accuracy"], first["eval/reward_margin"]) == (0.5, 0.0)
    assert first["eval/loss"] == pytest.approx(math.log(2))
    assert lines(straight)[1]["dpo/loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert last["eval/preference_accuracy"] > 0.8 and last["eval/reward_margin"] > 0.1
    assert last["eval/loss"] < first["eval/loss"]


def test_the_final_model_loads_and_only_the_selection_moved(straight, small_models):
    trained, base = (AutoModelForCausalLM.from_pretrained(p / "policy") for p in (straight, small_models))
    moved = {n for (n, a), b in zip(trained.named_parameters(), base.parameters(), strict=True) if not a.equal(b)}
    listed = [line for line in (straight / "unfrozen.yaml").read_text().splitlines() if line.startswith("- ")]
    assert len(moved) == len(listed) == 14  # two of four matrices, of each of seven types
    assert AutoTokenizer.from_pretrained(straight / "policy").chat_template


def test_margins_of_the_files_are_those_of_the_metrics(straight, small_models, ranked_rows):
    """Held-out accuracy and margin again, from `policy/` and the base, by transformers alone."""
    from starling_train.data import nectar, openchat, prompts

    tokenizer = AutoTokenizer.from_pretrained(straight / "policy")
    trained, base = (AutoModelForCausalLM.from_pretrained(p / "policy") for p in (straight, small_models))
    _, held_out = prompts.hold_out(nectar.load(ranked_rows).rows, 6, 0)

    @torch.no_grad()
    def reward(row: nectar.RankedRow, text: str) -> float:
        asked = openchat.encode(row.messages, tokenizer)
        whole = openchat.encode(
            [*row.messages, {"role": "assistant", "content": text}], tokenizer, add_generation_prompt=False
        )
        ids, answer = torch.tensor([whole]), whole[len(asked) :]
        logprobs = [
            model(input_ids=ids).logits[0, len(asked) - 1 : -1].log_softmax(-1)[range(len(answer)), answer].sum()
            for model in (trained, base)
        ]
        return 0.5 * float(logprobs[0] - logprobs[1])

    margins = [reward(row, row.answers[0].text) - reward(row, row.answers[-1].text) for row in held_out]
    last = lines(straight)[-1]
    assert sum(margins) / len(margins) == pytest.approx(last["eval/reward_margin"], abs=1e-4)
    assert sum(margin > 0 for margin in margins) / len(margins) == pytest.approx(last["eval/preference_accuracy"])


def test_finished_and_other_settings(straight, settings, capsys):
    before = {p: p.stat().st_mtime_ns for p in straight.rglob("*")}
    run_here(straight.parent, settings)
    assert "finished, nothing to do" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        run_here(straight.parent, [*settings, "dpo.beta=0.1"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "dpo.beta" in error and error.count("\n") == 1
    assert {p: p.stat().st_mtime_ns for p in straight.rglob("*")} == before


def kill_in(function: str, call: int) -> None:
    reference.CHUNK = 7
    kill_in_call("training.dpo.update", function, call)


@pytest.mark.parametrize(
    "function,call,steps",
    [("update", 4, [0, 1, 2, 3]), pytest.param("logprobs_of", 3, [], marks=pytest.mark.slow)],
)
def test_after_a_kill_it_goes_on_exactly(straight, settings, tmp_path, monkeypatch, capsys, function, call, steps):
    """Killed in an update, and while the reference's log-probabilities are computed."""
    process = Started("dpo", settings, tmp_path, prepare=partial(kill_in, function, call))
    assert process.wait() == -signal.SIGKILL, process.error()
    run = tmp_path / "run"
    assert [row["step"] for row in (lines(run) if steps else [])] == steps
    assert len(lines(run, "reference.jsonl")) == (6 if steps else 3)  # who it is, then chunks
    capsys.readouterr()
    computed, compute = [], dpo_update.logprobs_of
    monkeypatch.setattr(dpo_update, "logprobs_of", lambda *a: computed.append(len(a[1])) or compute(*a))
    run_here(tmp_path, settings)
    said = capsys.readouterr().out
    assert ("resumed after step 2" in said) == bool(steps)
    planned = json.loads((straight / "summary.json").read_text())["planned_peak_gb"]
    assert f"peak memory of a process: planned {planned:.3g} GB at the longest texts, measured " in said
    assert computed[:3] == ([6, 6] if steps else [7, 3, 6, 6])[:3]  # 24 rows in sevens, of which two were done
    assert outcome(run) == outcome(straight)


def test_after_a_signal_the_state_is_saved(straight, settings, tmp_path, monkeypatch):
    update = dpo_update.update

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return update(*arguments)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(dpo_update, "update", interrupted)
        run_here(tmp_path, settings)
    assert stopped.value.code == 143
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_000001"]  # not a step of `every`
    assert outcome(run_here(tmp_path, settings)) == outcome(straight)


def test_a_signal_while_the_reference_is_computed(straight, settings, tmp_path, monkeypatch):
    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGUSR1)
        pytest.fail("the phase was not left")

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(dpo_update, "logprobs_of", interrupted)
        run_here(tmp_path, settings)
    assert stopped.value.code == 138
    assert outcome(run_here(tmp_path, settings)) == outcome(straight)


def spoil_reference(run: Path, change) -> None:
    path = run / "reference.jsonl"
    path.write_text("".join(f"{line}\n" for line in change(path.read_text().splitlines())))


@pytest.mark.parametrize(
    "change,says",
    [
        (lambda rows: [], "reference.jsonl is not whole, and cannot be computed"),
        (lambda rows: rows[:2], "reference.jsonl is not whole, and cannot be computed"),
        (lambda rows: [rows[0], rows[1].replace("[[-", "[[-1"), *rows[2:]], "line 2 of "),
        (lambda rows: [rows[0].replace('"base": "', '"base": "0'), *rows[1:]], "of another model"),
        (lambda rows: [rows[0].replace('"data": "', '"data": "0'), *rows[1:]], "of other data"),
    ],
)
def test_a_reference_that_is_not_this_runs_is_refused(settings, tmp_path, monkeypatch, capsys, straight, change, says):
    shutil.copytree(straight, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    spoil_reference(tmp_path / "run", change)
    with pytest.raises(SystemExit) as stopped:
        run_here(tmp_path, settings)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: run_dir: ") and says in error
    assert "another run_dir" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "changes",
    [
        ["dpo.pairs=all", "freeze=last_layers", "freeze.last_layers=1", "dpo.label_smoothing=0.1"],
        ["dpo.pairs=best_random", "freeze=none", "model.dtype=bfloat16", "optim.learning_rate=0.001"],
        ["dpo.loss=ipo", "model.gradient_checkpointing=true", "evaluation.responses=0", "dpo.epochs=0.2"],
    ],
    ids=["all-last-smoothed", "random-everything-bf16", "ipo-checkpointing"],
)
def test_other_ways_to_train_run(settings, tmp_path, changes):
    run = run_here(tmp_path, [*settings, "dpo.epochs=1", *changes])
    rows = lines(run)
    assert all(math.isfinite(row["dpo/loss"]) and not row["optim/skipped"] for row in rows[1:])
    assert (rows[-1]["dpo/pairs"] > 8) == ("dpo.pairs=all" in changes)
    assert rows[0]["eval/preference_accuracy"] == 0.5
    if "dpo.epochs=0.2" in changes:  # one step of 8 rows, and only theirs were computed
        assert len(rows) == 2 and sum(len(row["logprobs"]) for row in lines(run, "reference.jsonl")[1:]) == 8 + 6
        assert (run / "samples.jsonl").exists() is False


def test_adapters_train_and_go_on_exactly(settings, small_models, tmp_path, monkeypatch):
    """With dropout, whose masks depend on the step alone; what is left is read by PEFT and by transformers."""
    from peft import PeftModel

    more = ["freeze.adapter=lora", "freeze.lora.rank=4", "freeze.lora.dropout=0.2", "freeze.head=true", "dpo.epochs=1"]
    (tmp_path / "whole").mkdir()
    whole = run_here(tmp_path / "whole", [*settings, *more])
    assert lines(whole)[0]["eval/preference_accuracy"] == 0.5  # adapters start as nothing
    assert lines(whole)[-1]["eval/reward_margin"] > 0
    update = dpo_update.update
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(dpo_update, "update", lambda *a: os.kill(os.getpid(), signal.SIGTERM) or update(*a))
        run_here(tmp_path, [*settings, *more])
    assert outcome(run_here(tmp_path, [*settings, *more])) == outcome(whole)
    ids = torch.arange(1, 40)[None]
    base = AutoModelForCausalLM.from_pretrained(small_models / "policy")
    written = AutoModelForCausalLM.from_pretrained(whole / "policy")(ids).logits
    assert not torch.allclose(base(ids).logits, written)
    read = PeftModel.from_pretrained(base, whole / "checkpoints" / "step_000003")
    torch.testing.assert_close(read(ids).logits, written, rtol=1e-5, atol=1e-5)


def test_pairs_without_a_finite_reference_are_dropped_with_a_line(settings, tmp_path, monkeypatch, capsys):
    compute = dpo_update.logprobs_of

    def odd(net, rows, budget, runtime):
        found = compute(net, rows, budget, runtime)
        if len(rows) == 3:  # the last piece of the training rows
            found[0][0], found[2][1] = math.nan, -math.inf
        return found

    monkeypatch.setattr(dpo_update, "logprobs_of", odd)
    run = run_here(tmp_path, [*settings, "dpo.epochs=1"])
    assert "2 training pairs and 0 held-out ones dropped: the reference's log-prob" in capsys.readouterr().out
    rows = lines(run)
    assert sum(row["dpo/pairs"] for row in rows[1:]) == 24 - 2
    assert not any(row["optim/skipped"] for row in rows[1:])


def test_no_finite_reference_at_all(settings, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dpo_update, "logprobs_of", lambda net, rows, *_: [[math.nan] * 2 for _ in rows])
    with pytest.raises(SystemExit) as stopped:
        run_here(tmp_path, settings)
    assert stopped.value.code == 2 and capsys.readouterr().err.startswith("error: model.path: not one answer")


def test_an_update_that_is_not_finite_is_skipped_and_its_row_written(settings, tmp_path, monkeypatch):
    forward, calls = Actors.forward, []

    def odd(self, batch, states=None):
        outputs = forward(self, batch, states)
        if not torch.is_grad_enabled():
            return outputs
        calls.append(None)
        return outputs._replace(logprobs=outputs.logprobs * (math.nan if len(calls) == 2 else 1.0))

    monkeypatch.setattr(Actors, "forward", odd)
    run = run_here(tmp_path, [*settings, "dpo.epochs=1"])
    assert [row["optim/skipped"] for row in lines(run)[1:]] == [0, 1, 0]
    skipped = lines(run, "skipped.jsonl")
    assert {row["step"] for row in skipped} == {2} and len(skipped) == 8
    assert skipped[0]["reason"] == "update" and skipped[0]["conversation"][-1]["role"] == "assistant"
    assert lines(run)[2]["dpo/loss"] is None  # strict JSON has no NaN


def test_pairs_of_a_jsonl_file(settings, tmp_path):
    rows = [{"prompt": f"How is {i}?", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(20)]
    rows += [
        {"prompt": "Same?", "chosen": "x", "rejected": "x"},
        {"prompt": "y " * 200, "chosen": "a", "rejected": "b"},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = run_here(tmp_path, [*settings, "data.path=pairs.jsonl", "dpo.epochs=1"])
    assert lines(run)[-1]["episodes"] == 16  # 14 rows to train on: the second step begins again with two


def test_real_nectar_rows(data_dir, settings, tmp_path, capsys):
    more = [
        f"data.path={data_dir / 'nectar'}", "data.max_prompt_tokens=100", "dpo.max_length=160", "dpo.epochs=0.01",
        "dpo.tokens_per_microbatch=2048", "dpo.pairs=all", "evaluation.responses=0", "data.eval_prompts=2",
        "dpo.prompts_per_step=4",
    ]  # fmt: skip
    run = run_here(tmp_path, [*settings, *more])
    assert "longer than 100 tokens" in capsys.readouterr().out
    rows = lines(run)
    assert rows[-1]["dpo/truncated_answers"] > 0 and rows[-1]["dpo/pairs"] > 50
    assert rows[-1]["dpo/loss"] < 1.0


def test_dry_run_loads_no_weights(settings, small_models, tmp_path, monkeypatch, capsys):
    (tmp_path / "shape").mkdir()
    for path in (small_models / "policy").iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / "shape" / path.name).write_bytes(path.read_bytes())
    run_here(tmp_path, [*settings, "dry_run=true", f"model.path={tmp_path / 'shape'}", "freeze=last_layers"])
    out = capsys.readouterr().out
    assert "24 training prompts with 24 pairs (best_worst), 6 held out with 6" in out and "6 steps" in out
    assert "6 left out: empty" in out and "peak" in out and "mlp.down_proj" in out
    assert not (tmp_path / "run").exists()
