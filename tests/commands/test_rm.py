"""`rm`: real Nectar rows, the files it writes, exact resume, what it starts from, and wrong input."""

import hashlib
import json
import math
import os
import signal
from functools import partial
from pathlib import Path

import openchat_tokenizer
import pytest
import torch
from fault_process import Started, kill_in_call
from reward_checkpoints import SIZE, conversations, fresh_net, load, small_tokenizer
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from starling_train import rm
from starling_train.models.reward.checkpoint import write_starling_7b, write_starling_34b
from starling_train.training.reward_model import update as ranking

PROMISED = {
    "step", "episodes", "rm/loss", "rm/accuracy", "rm/score_mean", "rm/score_std", "rm/centring",
    "rm/truncated_answers", "rm/truncated_prompts", "optim/learning_rate", "optim/gradient_norm", "optim/skipped",
    "time/encode_s",
    "time/update_s", "time/step_s", "throughput/samples_per_s", "throughput/tokens_per_s", "memory/peak_gb",
}  # fmt: skip
UNTRAINED = math.log(math.factorial(7)) / 6
WORDS = ("good", "fine", "fair", "weak", "bad")


@pytest.fixture(scope="session")
def bases(tmp_path_factory) -> Path:
    """Directories to start from: llama/ and mistral/ (causal LMs of one shape), rm_7b/ and rm_34b/ (reward models)."""
    root = tmp_path_factory.mktemp("bases")
    tokenizer = small_tokenizer()
    positions = {"max_position_embeddings": 512, "pad_token_id": None}
    torch.manual_seed(0)
    for name, config, build in (
        ("llama", LlamaConfig(**SIZE, **positions), LlamaForCausalLM),
        ("mistral", MistralConfig(**SIZE, **positions), MistralForCausalLM),
    ):
        build(config).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    write_starling_7b(fresh_net(), root / "rm_7b", tokenizer)
    write_starling_34b(fresh_net(), root / "rm_34b", tokenizer)
    return root


@pytest.fixture(scope="session")
def rows(tmp_path_factory) -> Path:
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


def arguments(bases: Path, rows: Path, *more: str, base: str = "llama") -> list[str]:
    return [
        f"model.path={bases / base}", f"data.path={rows}", "model.dtype=float32", "cluster.device=cpu", "run_dir=run",
        "model.gradient_checkpointing=false", "rm.max_length=128", "rm.prompts_per_step=8", "rm.epochs=2",
        "data.eval_prompts=6", "evaluation.every=3", "checkpoint.every=2", "optim.learning_rate=0.01", *more,
    ]  # fmt: skip


def run_here(folder: Path, argv: list[str]) -> Path:
    """rm in this process, in `folder`, with the signal handlers as they were afterwards; gives its run directory."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["rm", *argv])
        try:
            rm.main()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return folder / "run"


def metrics(run: Path) -> list[dict]:
    return [json.loads(line, parse_constant=pytest.fail) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_times(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "throughput/", "memory/"))} for row in rows]


def weights(run: Path) -> str:
    """Of the last checkpoint: a .bin also holds when it was written."""
    newest = sorted((run / "checkpoints").iterdir())[-1]
    return hashlib.sha256(
        b"".join((newest / f"{n}.safetensors").read_bytes() for n in ("trainable", "optimizer"))
    ).hexdigest()


def test_real_nectar_rows_are_learned(data_dir, tmp_path):
    """One layer on the last 64 tokens of each of 190 x 7 answers: enough to fit the rows that it trains on."""
    shape = LlamaConfig(**SIZE | {"vocab_size": 32002, "num_hidden_layers": 1}, initializer_range=0.1)
    shape.save_pretrained(tmp_path / "shape")
    openchat_tokenizer.build().save_pretrained(tmp_path / "shape")
    run = run_here(tmp_path, arguments(
        tmp_path, data_dir / "nectar", "rm.fresh=true", "rm.max_length=64", "rm.prompts_per_step=19", "rm.epochs=2",
        "data.eval_prompts=16", "evaluation.every=100", "checkpoint.every=0", "optim.learning_rate=0.02", base="shape",
    ))  # fmt: skip
    lines = metrics(run)
    assert lines[0]["eval/kwise_loss"] == pytest.approx(UNTRAINED, abs=0.03)  # a few rows have fewer than 7 answers
    assert lines[0]["eval/preference_accuracy"] == 0.5  # a head of zeros orders nothing
    assert lines[1]["rm/loss"] == pytest.approx(UNTRAINED, abs=0.03)
    assert sum(line["rm/loss"] for line in lines[-4:]) / 4 < 1.25
    assert lines[-1]["eval/preference_accuracy"] > 0.6
    keys = [key for key in lines[-1] if key.startswith("eval/preference_accuracy_distance_")]
    assert keys == [f"eval/preference_accuracy_distance_{d}" for d in range(1, 7)]
    assert 0 < lines[-1]["rm/truncated_answers"] <= lines[-1]["rm/truncated_prompts"] <= 19 * 7


@pytest.fixture(scope="module")
def straight(bases, rows, tmp_path_factory) -> Path:
    """A run in one go."""
    return run_here(tmp_path_factory.mktemp("straight"), arguments(bases, rows))


def test_the_run_directory_holds_what_is_promised(straight):
    names = {p.name for p in straight.iterdir()}
    assert names == {
        "config.yaml", "unfrozen.yaml", "metrics.jsonl", "checkpoints", "reward", "summary.json", "report.html",
        "starts.jsonl",
    }  # fmt: skip
    lines = metrics(straight)
    assert [line["step"] for line in lines] == list(range(7))  # 24 rows, 2 epochs, 8 a step
    assert all(line.keys() >= PROMISED for line in lines[1:])
    assert ["eval/kwise_loss" in line for line in lines] == [True, False, False, True, False, False, True]
    assert lines[-1]["eval/kwise_loss"] < lines[0]["eval/kwise_loss"]
    summary = json.loads((straight / "summary.json").read_text())
    assert (summary["command"], summary["finished"], summary["steps"], summary["episodes"]) == ("rm", True, 6, 48)
    assert summary["last_eval"]["eval/preference_accuracy"] == lines[-1]["eval/preference_accuracy"]


def test_the_written_model_scores_as_the_one_that_was_trained(straight):
    model = load("starling_7b", straight / "reward", max_length=128)
    newest = sorted((straight / "checkpoints").iterdir())[-1]
    trained = load_file(newest / "trainable.safetensors")
    saved = model.net.state_dict()
    assert trained.keys() == saved.keys() and all(torch.equal(trained[name], saved[name]) for name in saved)
    good, bad = (
        [{"role": "user", "content": "How is 3?"}, {"role": "assistant", "content": f"{w} 3"}] for w in WORDS[::4]
    )
    assert len(set(model.score([good, bad]))) == 2


def test_finished_and_other_settings(straight, bases, rows, capsys):
    before = {p: p.stat().st_mtime_ns for p in straight.rglob("*")}
    run_here(straight.parent, arguments(bases, rows))
    assert "finished, nothing to do" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        run_here(straight.parent, arguments(bases, rows, "rm.epochs=3"))
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "rm.epochs" in error and error.count("\n") == 1
    assert {p: p.stat().st_mtime_ns for p in straight.rglob("*")} == before


def test_after_a_kill_it_goes_on_exactly(straight, bases, rows, tmp_path, capsys):
    kill_in_step_4 = partial(kill_in_call, "training.reward_model.update", "update", 4)
    process = Started("rm", arguments(bases, rows, "cluster.threads=1"), tmp_path, prepare=kill_in_step_4)
    assert process.wait() == -signal.SIGKILL, process.error()
    assert [line["step"] for line in metrics(tmp_path / "run")] == [0, 1, 2, 3]
    run_here(tmp_path, arguments(bases, rows))
    said = capsys.readouterr().out
    assert "resumed after step 2" in said
    same(tmp_path / "run", straight)
    planned = json.loads((straight / "summary.json").read_text())["planned_peak_gb"]
    assert f"peak memory of a process: planned {planned:.3g} GB at the longest texts, measured " in said


def test_after_a_signal_the_state_is_saved(straight, bases, rows, tmp_path, monkeypatch):
    update = ranking.update

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return update(*arguments)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(ranking, "update", interrupted)
        run_here(tmp_path, arguments(bases, rows))
    assert stopped.value.code == 143
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_000001"]  # not a step of `every`
    same(run_here(tmp_path, arguments(bases, rows)), straight)


def same(run: Path, straight: Path) -> None:
    assert weights(run) == weights(straight)
    assert without_times(metrics(run)) == without_times(metrics(straight))


@pytest.mark.parametrize(
    "base,changes",
    [
        ("llama", ["freeze=snr", "freeze.top_percent=50", "freeze.embeddings=false", "rm.kind=starling_34b"]),
        ("mistral", ["freeze=last_layers", "freeze.last_layers=1", "model.gradient_checkpointing=true"]),
        ("rm_34b", ["freeze=random", "freeze.top_percent=50", "rm.centring=0.01", "model.dtype=bfloat16"]),
    ],
)
def test_other_starts_and_selections(bases, rows, tmp_path, base, changes):
    """Only what is selected, and the head, moves; the output loads in the layout that was asked for."""
    run = run_here(tmp_path, arguments(bases, rows, "rm.epochs=0.5", "evaluation.every=0", *changes, base=base))
    kind = "starling_34b" if "rm.kind=starling_34b" in changes else "starling_7b"
    model = load(kind, run / "reward", max_length=128)
    before = {
        name[name.index("layers.") :]: tensor
        for name, tensor in load_file(bases / base / weights_file(bases / base)).items()
        if "layers." in name
    }
    after = {f"layers.{name}": p for name, p in model.net.transformer.layers.named_parameters()}
    dtype = torch.bfloat16 if "model.dtype=bfloat16" in changes else torch.float32
    moved = {n for n, p in after.items() if not torch.equal(p, before[n].to(dtype).float())}
    norms = 2 if "freeze=last_layers" in changes else 0
    assert len(moved) == 7 + norms  # one of two layers, of each of seven module types
    assert model.net.v_head.weight.abs().sum() > 0


def test_adapters_are_merged_into_what_is_written(bases, rows, tmp_path):
    """A plain reward model: base + alpha / rank B A, by hand, and the trained head."""
    changes = ("freeze=snr", "freeze.top_percent=50", "freeze.embeddings=false", "freeze.norms=false")
    lora = ("freeze.adapter=lora", "freeze.lora.rank=4", "freeze.lora.alpha=8", "evaluation.every=0")
    run = run_here(tmp_path, arguments(bases, rows, "rm.epochs=0.5", *changes, *lora, base="llama"))
    model = load("starling_7b", run / "reward", max_length=128)
    before = load_file(bases / "llama" / weights_file(bases / "llama"))
    trained = load_file(sorted((run / "checkpoints").iterdir())[-1] / "trainable.safetensors")
    moved = 0
    for name, parameter in model.net.transformer.named_parameters():
        module = f"transformer.{name.removesuffix('.weight')}"
        expected = before[f"model.{name}"]
        if f"{module}.lora_A.default.weight" in trained:
            down, up = (trained[f"{module}.lora_{part}.default.weight"] for part in "AB")
            expected, moved = expected + 8 / 4 * up @ down, moved + 1
            assert up.abs().sum() > 0
        torch.testing.assert_close(parameter, expected, msg=name)
    assert moved == 7 and len(trained) == 15
    assert torch.equal(model.net.v_head.weight, trained["v_head.weight"])


def weights_file(directory: Path) -> str:
    return next(path.name for path in directory.glob("*.safetensors"))


def begin_at(directory: Path):
    from starling_train.config.rm import RankingConfig, RmConfig
    from starling_train.config.sections import ModelConfig
    from starling_train.models.reward import start

    return start.find_start(RmConfig(model=ModelConfig(path=str(directory)), rm=RankingConfig(max_length=256)))


def test_a_mistral_becomes_a_llama_that_computes_the_same(bases):
    from starling_train.models.reward import start

    begin = begin_at(bases / "mistral")
    net = start.make_net(begin, fresh=False, dtype="float32", attention="sdpa", device="cpu")
    original = MistralForCausalLM.from_pretrained(bases / "mistral").model
    ids = torch.randint(len(begin.tokenizer), (2, 40), generator=torch.Generator().manual_seed(0))
    expected = original(input_ids=ids).last_hidden_state
    torch.testing.assert_close(net.transformer(input_ids=ids).last_hidden_state, expected)
    assert begin.config.model_type == "llama" and not net.v_head.weight.any()


@pytest.mark.parametrize("base", ["rm_7b", "rm_34b"])
def test_a_reward_model_goes_on_from_its_own_scores(bases, base):
    from starling_train.models.reward import start

    net = start.make_net(begin_at(bases / base), fresh=False, dtype="float32", attention="sdpa", device="cpu")
    model = load(f"starling{base[2:]}", bases / base)
    own = model.score(conversations())
    model.net = net
    assert model.score(conversations()) == own


def test_dry_run_loads_no_weights(bases, rows, tmp_path, monkeypatch, capsys):
    (tmp_path / "shape").mkdir()
    for path in (bases / "llama").iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / "shape" / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["rm", *arguments(
        bases, rows, "dry_run=true", f"model.path={tmp_path / 'shape'}", "freeze=snr", "freeze.top_percent=50"
    )])  # fmt: skip
    rm.main()
    out = capsys.readouterr().out
    assert "24 training rows, 6 held out" in out and "6 left out: empty" in out
    assert "peak" in out and "mlp.down_proj" in out
    assert not (tmp_path / "run").exists()
