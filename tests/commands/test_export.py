"""`export`: the model of a checkpoint is what the run itself writes, to the bit; whole or not at all; never on another
base."""

import json
import re
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from fault_process import Started
from reward_checkpoints import load as load_reward
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from upload_hub import READ_ONLY, TOKEN, UploadHub

from starling_train import export, ppo, rm

ROOT = Path(__file__).parents[2]
WORDS = ("good", "fine", "bad")


def run_here(command, folder: Path, *arguments: str) -> None:
    """A command in this process, in `folder`, with the signal handlers as they were afterwards."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", [command.__name__.rpartition(".")[2], *arguments])
        try:
            command.main()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


@pytest.fixture(scope="module")
def trained(small_models, small_run, tmp_path_factory) -> Path:
    """A folder with the run directory `run` of three bfloat16 steps with a twin critic, and all their checkpoints."""
    folder = tmp_path_factory.mktemp("ppo")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"What is {i}?"}) + "\n" for i in range(20)))
    run_here(
        ppo, folder, *small_run, "data.path=prompts.jsonl", "checkpoint.every=1", "checkpoint.keep=9",
        "evaluation.every=2", "model.dtype=bfloat16", "algorithm.critic=twin", "optim.learning_rate=0.01",
        "freeze.norms=true", "freeze.head=true",
    )  # fmt: skip
    return folder


def run_example(text: str, model: Path) -> str:
    """Run a card's example in a process of its own, in the model's directory; gives what it prints."""
    example = model.parent / "example.py"
    example.write_text(text)
    process = Started(str(example), [], model, model.parent / "said")
    assert process.wait() == 0, process.error()
    return process.out()


def rows(count: int) -> list[dict]:
    answers = [{"answer": word, "model": "m", "rank": float(rank)} for rank, word in enumerate(WORDS, 1)]
    return [{"prompt": f"\n\nHuman: How is {i}?\n\nAssistant: ", "answers": answers} for i in range(count)]


def small_rm(small_models: Path) -> list[str]:
    return [
        f"model.path={small_models / 'policy'}", "data.path=rows.jsonl", "model.dtype=float32", "cluster.device=cpu",
        "run_dir=run", "rm.max_length=64", "rm.prompts_per_step=4", "data.eval_prompts=2", "optim.learning_rate=0.01",
        "freeze=layers", "freeze.layers=[2,3]", "model.gradient_checkpointing=false",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def ranked(small_models, tmp_path_factory) -> Path:
    """A folder with the run directory `run` of a reward model."""
    folder = tmp_path_factory.mktemp("rm")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(12)))
    run_here(rm, folder, *small_rm(small_models))
    return folder


def copy(trained: Path, to: Path) -> Path:
    """A copy of the run to spoil."""
    shutil.copytree(trained / "run", to / "run")
    return to / "run"


def refused(folder: Path, capsys, *arguments: str) -> str:
    """The one line in which the command refuses; nothing is written."""
    before = sorted(folder.rglob("*"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run_here(export, folder, *arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1, error
    assert sorted(folder.rglob("*")) == before
    return error


def test_the_last_checkpoint_is_the_policy_that_the_run_wrote_byte_for_byte(trained, tmp_path):
    run_here(export, tmp_path, f"run_dir={trained / 'run'}", "output=deep/down/model")
    model = tmp_path / "deep" / "down" / "model"
    theirs = {path.name: path.read_bytes() for path in (trained / "run" / "policy").iterdir()}
    ours = {path.name: path.read_bytes() for path in model.iterdir()}
    assert ours.pop("README.md") and ours == theirs
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"} < ours.keys()
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_an_earlier_checkpoint_is_the_base_model_with_its_tensors(trained, small_models, tmp_path):
    run = trained / "run"
    run_here(export, tmp_path, f"run_dir={run}", "checkpoint=step_000002", "output=model")
    checkpoint = load_file(run / "checkpoints" / "step_000002" / "trainable.safetensors")
    assert any(name.startswith("critic.") for name in checkpoint)
    held = {name.removeprefix("policy."): t for name, t in checkpoint.items() if name.startswith("policy.")}
    base = AutoModelForCausalLM.from_pretrained(small_models / "policy", dtype=torch.bfloat16).state_dict()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto").state_dict()
    assert model.keys() == base.keys() and held.keys() < base.keys()
    assert all(tensor.dtype == torch.bfloat16 for tensor in model.values())
    assert all(torch.equal(model[name], held.get(name, base[name])) for name in base)
    last = load_file(run / "policy" / "model.safetensors")
    assert any(not torch.equal(last[name], model[name]) for name in last)


def test_best_is_the_step_of_the_highest_held_out_score(trained, tmp_path, capsys):
    state = copy(trained, tmp_path) / "checkpoints" / "step_000003" / "state.json"
    written = json.loads(state.read_text())
    for best, says in ((None, "no held-out score"), (0, "that of the base model"), (7, "has no 'step_000007'")):
        state.write_text(json.dumps(written | {"best_step": best}))
        assert says in refused(tmp_path, capsys, "checkpoint=best", "run_dir=run", "output=model")
    state.write_text(json.dumps(written | {"best_step": 2}))
    run_here(export, tmp_path, "checkpoint=best", "run_dir=run", "output=model")
    assert "of step 2: " in capsys.readouterr().out


def check_same_reward_model(run: Path, model: Path) -> None:
    theirs = torch.load(run / "reward" / "pytorch_model.bin", weights_only=True)
    ours = torch.load(model / "pytorch_model.bin", weights_only=True)
    assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for path in (run / "reward").iterdir():
        if path.suffix != ".bin":
            assert (model / path.name).read_bytes() == path.read_bytes()


def test_the_reward_model_is_the_one_that_the_run_wrote(ranked, tmp_path):
    run_here(export, tmp_path, f"run_dir={ranked / 'run'}", "output=model")
    check_same_reward_model(ranked / "run", tmp_path / "model")
    # and `reward.path=` takes it
    spoken = [[{"role": "user", "content": "How?"}, {"role": "assistant", "content": word}] for word in WORDS]
    scores = [
        load_reward("starling_7b", path).score(spoken) for path in (tmp_path / "model", ranked / "run" / "reward")
    ]
    assert scores[0] == scores[1] and len(set(scores[0])) == 3


def test_a_reward_model_from_fresh_weights_needs_only_a_shape(small_models, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(12)))
    shape = Path(shutil.copytree(small_models / "policy", tmp_path / "shape"))
    (shape / "model.safetensors").unlink()
    run_here(rm, tmp_path, *small_rm(small_models), "model.path=shape", "freeze=none", "rm.fresh=true")
    run_here(export, tmp_path, "run_dir=run", "output=model")
    check_same_reward_model(tmp_path / "run", tmp_path / "model")


@pytest.mark.parametrize("command", ["ppo", "rm"])
def test_adapters_are_merged_as_the_run_merges_them(small_models, small_run, tmp_path, capsys, command):
    lora = ["freeze.adapter=lora", "freeze.lora.rank=2", "optim.learning_rate=0.01"]
    if command == "ppo":
        (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "What is {i}?"}}\n' for i in range(20)))
        run_here(ppo, tmp_path, *small_run, "data.path=prompts.jsonl", "evaluation.every=0", "freeze.head=true",
                 "algorithm.steps=1", "model.dtype=bfloat16", *lora)  # fmt: skip
    else:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(12)))
        run_here(rm, tmp_path, *small_rm(small_models), *lora)
    run_here(export, tmp_path, "run_dir=run", "output=model")
    config = tmp_path / "run" / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("adapter: lora", "adapter: null"))
    assert "it has adapters" in refused(tmp_path, capsys, "run_dir=run", "output=other")
    config.write_text(text)
    if command == "ppo":
        theirs = (tmp_path / "run" / "policy" / "model.safetensors").read_bytes()
        assert (tmp_path / "model" / "model.safetensors").read_bytes() == theirs
    else:
        check_same_reward_model(tmp_path / "run", tmp_path / "model")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())["trainable"]
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"rank 2 and alpha 16, merged into the weights: {summary['matrices']} tensors" in card
    assert f"{summary['parameters']:,} of {summary['of']:,} parameters" in card


def test_a_run_that_is_not_finished_and_a_base_that_has_moved(trained, small_models, tmp_path, capsys):
    run = copy(trained, tmp_path)
    for name in ("policy", "checkpoints/step_000003", "checkpoints/step_000002"):
        shutil.rmtree(run / name)
    (run / "summary.json").unlink()
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().splitlines(keepends=True)[0])
    (run / "checkpoints" / ".step_000002.partial").mkdir()  # the run is writing it
    shutil.copytree(small_models / "policy", tmp_path / "moved")
    settings = (run / "config.yaml").read_text().replace(str(small_models / "policy"), str(tmp_path / "gone"))
    (run / "config.yaml").write_text(settings)
    assert "base: no such directory" in refused(tmp_path, capsys, "run_dir=run", "output=model")
    run_here(export, tmp_path, "run_dir=run", "output=model", "base=moved")
    assert "step 1: " in capsys.readouterr().out
    assert (run / "checkpoints" / ".step_000002.partial").is_dir()
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| step 0 |" in card and "step 2" not in card


def test_another_base_is_refused_to_the_byte(trained, small_models, tmp_path, capsys):
    base = Path(shutil.copytree(small_models / "policy", tmp_path / "base"))
    held = load_file(base / "model.safetensors")
    held["model.norm.weight"][0] += 1
    save_file(held, base / "model.safetensors", metadata={"format": "pt"})
    error = refused(tmp_path, capsys, f"run_dir={trained / 'run'}", "output=model", "base=base")
    assert error.startswith("error: base: ") and "is not the model" in error


@pytest.mark.parametrize("name", ["trainable.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_refused(trained, tmp_path, capsys, name):
    run = copy(trained, tmp_path)
    file = run / "checkpoints" / "step_000003" / name
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    error = refused(tmp_path, capsys, "run_dir=run", "output=model")
    assert error.startswith("error: checkpoint: ") and name in error
    run_here(export, tmp_path, "run_dir=run", "output=model", "checkpoint=step_000002")


def test_settings_that_are_not_the_runs_are_refused(trained, tmp_path, capsys):
    run = copy(trained, tmp_path)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("dtype: bfloat16", "dtype: float32", 1))
    assert "does not fit the model" in refused(tmp_path, capsys, "run_dir=run", "output=model")
    (run / "config.yaml").write_text(text.replace("  dtype: bfloat16", "  dtypo: bfloat16", 1))
    assert "dtypo: no such key" in refused(tmp_path, capsys, "run_dir=run", "output=model")


def test_a_dry_run_says_what_and_how_large_and_writes_nothing(trained, tmp_path, capsys):
    run_here(export, tmp_path, f"run_dir={trained / 'run'}", "output=model", "dry_run=true")
    said = capsys.readouterr().out
    size = sum(t.nbytes for t in load_file(trained / "run" / "policy" / "model.safetensors").values())
    assert f"the policy of step 3 to {tmp_path / 'model'}: {size / 1e9:.3g} GB" in said
    assert list(tmp_path.iterdir()) == []


def test_no_room_is_told_before_anything_is_read(trained, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
    error = refused(tmp_path, capsys, f"run_dir={trained / 'run'}", "output=model")
    assert error.startswith("error: output: ") and "has room for 0.00 GB" in error


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_disk_that_fills_up_leaves_nothing(trained, tmp_path, tmp_path_factory):
    """A limit on the size of files is met where the system's own full disk would be: in the middle of the weights."""
    assert (trained / "run" / "policy" / "model.safetensors").stat().st_size > 100_000
    arguments, output = [f"run_dir={trained / 'run'}", "output=model"], tmp_path_factory.mktemp("output")
    process = Started("export", arguments, tmp_path, output, prepare=limit_files)
    assert process.wait() == 2, process.error()
    assert process.error().splitlines()[-1].startswith("error: ") and "File too large" in process.error()
    assert list(tmp_path.iterdir()) == []


def test_the_card_says_what_is_known_and_its_example_runs(trained, small_models, tmp_path):
    run_here(export, tmp_path, f"run_dir={trained / 'run'}", "output=model")
    card = (tmp_path / "model" / "README.md").read_text()
    manifest = json.loads((trained / "run" / "checkpoints" / "step_000003" / "manifest.json").read_text())
    summary = json.loads((trained / "run" / "summary.json").read_text())
    assert manifest["content"]["base"]["sha256"] in card
    of, trains = summary["trainable"]["of"], summary["trainable"]["parameters"]
    assert f"{trains:,} of {of:,} parameters ({trains / of:.1%})" in card
    first, last = summary["first_eval"], summary["last_eval"]
    assert f"| `eval/score_mean` | {first['eval/score_mean']:.6g} | {last['eval/score_mean']:.6g} |" in card
    assert "base_model:" not in card  # a directory is no name on the hub
    example = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace("max_new_tokens=256", "max_new_tokens=4")
    run_example(example, tmp_path / "model")


def test_the_card_of_a_reward_model_and_its_example(ranked, tmp_path):
    run_here(export, tmp_path, f"run_dir={ranked / 'run'}", "output=model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "reward=starling_7b reward.path=DIR reward.max_length=64" in card and "eval/preference_accuracy" in card
    example = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert float(run_example(example, tmp_path / "model").strip("[]\n")) < 1e9


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on loopback, with the token of a user who may write."""
    from huggingface_hub import constants

    with UploadHub() as hub:
        for variable in ("HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # LFS: Xet has a server of its own
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        yield hub


def test_push_uploads_what_was_written_and_a_failed_upload_is_made_good_by_the_same_command(
    trained, hub, tmp_path, capsys
):
    arguments = [f"run_dir={trained / 'run'}", "output=model", "push=me/mine"]
    hub.refuse["PUT", "stored"] = 403
    with pytest.raises(SystemExit) as stopped:
        run_here(export, tmp_path, *arguments)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    model = tmp_path / "model"
    assert stopped.value.code == 2 and error.startswith("error: push: ")
    assert error.endswith(f"{model} is whole: the same command uploads it")
    written = {path.name: path.read_bytes() for path in model.iterdir()}
    assert hub.private == {"me/mine": True} and hub.repositories["me/mine"] == {} and "README.md" in written

    hub.refuse.clear()
    (model / "README.md").write_text((model / "README.md").read_text() + "\nOne more line, by its owner.\n")
    before = (model / "model.safetensors").stat().st_mtime_ns
    run_here(export, tmp_path, *arguments)
    assert f"uploaded to {hub.url}/me/mine" in capsys.readouterr().out
    assert (model / "model.safetensors").stat().st_mtime_ns == before
    held = hub.repositories["me/mine"]
    assert held == {path.name: path.read_bytes() for path in model.iterdir()}
    assert "by its owner" in held["README.md"].decode() and hub.commits == ["The policy of step 3 of the run run"]

    sent = len([request for request in hub.said if request.startswith("PUT")])
    run_here(export, tmp_path, *arguments)  # nothing has changed: nothing is sent
    assert len([request for request in hub.said if request.startswith("PUT")]) == sent and len(hub.commits) == 1

    said = refused(tmp_path, capsys, *arguments, "checkpoint=step_000002")
    assert said.startswith(f"error: output: {model} ") and "not empty" in said


@pytest.mark.parametrize(
    ("token", "name", "says"),
    [
        ("hf_unknown00", "me/mine", "the hub does not know the token (401)"),
        (READ_ONLY, "me/mine", "the token may not write to 'me/mine' (403)"),
        (TOKEN, "others/mine", "the token may not write to 'others/mine' (403)"),
        ("", "me/mine", "no token of the hub; set HF_TOKEN"),
        (TOKEN, "me/mine/more", "'me/mine/more' is not a name on the hub; give OWNER/NAME"),
        (TOKEN, "me/-x..y", "'me/-x..y' is not a name on the hub; give OWNER/NAME"),
    ],
)
def test_what_the_hub_would_refuse_is_told_before_anything_is_written(
    trained, hub, tmp_path, capsys, monkeypatch, token, name, says
):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("starling_train.run.saved.verify", lambda *run: pytest.fail("something expensive was begun"))
    error = refused(tmp_path, capsys, f"run_dir={trained / 'run'}", "output=model", f"push={name}")
    assert error.startswith("error: push: ") and says in error and (not token or token not in error)
    assert hub.repositories == {}


def test_a_hub_that_is_away_or_kept_away(trained, hub, tmp_path, capsys, monkeypatch):
    from huggingface_hub import constants

    arguments = [f"run_dir={trained / 'run'}", "output=model", "push=mine"]
    run_here(export, tmp_path, *arguments, "dry_run=true")
    assert "would upload it to mine on the hub" in capsys.readouterr().out and hub.said == []
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert "push: the hub does not answer" in refused(tmp_path, capsys, *arguments)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "push: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE keeps" in refused(tmp_path, capsys, *arguments)


def test_a_public_repository_by_its_own_name_and_one_that_exists(ranked, hub, tmp_path, capsys):
    """The reward model's card, too, is one that the hub takes."""
    arguments = [f"run_dir={ranked / 'run'}", "output=model", "push=mine", "push_private=false"]
    run_here(export, tmp_path, *arguments)
    assert hub.private == {"me/mine": False}
    held = hub.repositories["me/mine"]
    assert held == {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert f"uploaded to {hub.url}/me/mine" in capsys.readouterr().out
