"""What a command says in one line before anything expensive: the harness of `test_refusals.py` and `test_paths.py`."""

import re
import signal
import socket
from importlib import import_module

import pytest
import torch
from reward_server import Scripted
from spoiled import World, rows, text

# command -> arguments that are right; a row's own come behind them and win
RIGHT = {
    "ppo": "model.path={policy} reward.path={reward} data.path={here}/prompts.jsonl model.dtype=float32 "
    "reward.dtype=float32 cluster.device=cpu freeze.top_percent=50 algorithm.steps=3 algorithm.prompts_per_step=8 "
    "algorithm.minibatches=2 rollout.max_new_tokens=12 data.eval_prompts=6 data.max_prompt_tokens=256 run_dir=run",
    "rm": "model.path={policy} data.path={here}/ranked.jsonl model.dtype=float32 cluster.device=cpu "
    "data.eval_prompts=2 rm.max_length=256 run_dir=run",
    "dpo": "model.path={policy} data.path={here}/ranked.jsonl model.dtype=float32 cluster.device=cpu "
    "freeze.top_percent=50 data.eval_prompts=2 data.max_prompt_tokens=128 dpo.max_length=256 "
    "evaluation.responses=2 rollout.max_new_tokens=12 run_dir=run",
    "snr": "model.path={policy} cluster.device=cpu freeze.top_percent=50 run_dir=run",
    "score": "reward.path={reward} reward.dtype=float32 cluster.device=cpu input={here}/asked.jsonl "
    "output={here}/scores.jsonl",
    "serve_reward": "reward.path={reward} reward.dtype=float32 cluster.device=cpu port=0",
    "evaluate": "suites=[preference] preference.path={here}/pairs.jsonl reward.path={reward} model.path={policy} "
    "cluster.device=cpu run_dir=run",
    "plan": "model.path={policy} reward.path={reward} cluster.device=cpu freeze.top_percent=50",
    "laser": "model.path={policy} model.dtype=float32 cluster.device=cpu perplexity.path={here}/text.txt "
    "preference.path={here}/pairs.jsonl run_dir=run",
    "export": "run_dir={run} output={here}/model",
    "compare": "model.path={policy} reward.path={reward} data.path={here}/prompts.jsonl model.dtype=float32 "
    "reward.dtype=float32 cluster.device=cpu freeze.top_percent=50 rollout.max_new_tokens=12 data.eval_prompts=6 "
    "data.max_prompt_tokens=256 compare.skills=[eval/length_mean] compare.only=[snr,none] run_dir=run",
}
EXPENSIVE = (
    "starling_train.models.causal_lm.load_causal_lm",
    "starling_train.models.reward.model.load",
    "starling_train.training.reward_model.inputs.make_net",
    "starling_train.training.trained.make_net",
    "starling_train.selection.scans.scan_model",
    "starling_train.comparison.children.run",
)
VARIABLES = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WORLD_SIZE", "STARLING_REWARD_TOKEN", "NETRC")


@pytest.fixture(scope="session")
def models(small_models):
    """The small models, a classifier, and a run directory."""
    from reward_checkpoints import SIZE, small_tokenizer
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig(**SIZE, num_labels=1, pad_token_id=0)
    LlamaForSequenceClassification(config).save_pretrained(small_models / "classifier")
    small_tokenizer().save_pretrained(small_models / "classifier")
    saved_run(small_models / "run", small_models / "policy")
    return small_models


def saved_run(run, base) -> None:
    """A run directory with the checkpoint of a step in which one matrix of the base model has changed."""
    from safetensors.torch import load_file

    from starling_train.files.identity import identify
    from starling_train.run.checkpoints import Checkpoints
    from starling_train.run.state import TrainState

    name = "model.layers.0.mlp.up_proj.weight"
    trained = {f"policy.{name}": load_file(base / "model.safetensors")[name] + 1}
    optimizer = {f"policy.{name}/exp_avg": torch.zeros(64, 32)}
    Checkpoints(run / "checkpoints", 1, identify(base)).save(trained, optimizer, TrainState(step=2))
    (run / "config.yaml").write_text(f"name: run\nmodel:\n  path: {base}\n  dtype: float32\n")


@pytest.fixture(scope="session")
def servers():
    """Ports: of servers that are not what is wanted, of nobody, and one that is taken."""
    said = {
        "locked": (401, {"error": "no token"}),
        "other": (404, {"detail": "Not Found"}),
        "version": (200, {"results": {"scores": []}}),
        "many": (200, {"scores": [1.0, 2.0, 3.0]}),
    }
    running = {name: Scripted(answer=lambda request, answer=answer: answer) for name, answer in said.items()}
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket() as away:
        away.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers, and nobody else gets it
        ports = {name: server.server_port for name, server in running.items()}
        yield ports | {"taken": taken.getsockname()[1], "away": away.getsockname()[1]}
    for server in running.values():
        server.shutdown()
        server.server_close()


@pytest.fixture
def world(tmp_path, models, servers) -> World:
    """A directory with right data of every kind."""
    world = World(tmp_path, models, servers)
    rows("prompts.jsonl", *({"prompt": f"What is {i} and {i}?"} for i in range(20)))(world)
    answers = [{"answer": word, "model": "m", "rank": float(rank)} for rank, word in enumerate(("good", "bad"), 1)]
    rows("ranked.jsonl", *({"prompt": f"Which {i}?", "answers": answers} for i in range(9)))(world)
    rows("pairs.jsonl", {"prompt": "hi", "chosen": "yes", "rejected": "no"})(world)
    rows("asked.jsonl", {"prompt": "hi", "response": "yes"})(world)
    text("text.txt", "Some words to be predicted.")(world)
    return world


def split(arguments: str) -> list[str]:
    """At spaces outside quotes; quotes stay, for Hydra, but for those around a whole argument."""
    parts = [part.removeprefix("''") for part in re.findall(r"(?:[^\s']|'[^']*')+", arguments)]
    return [part[1:-1] if part[0] == part[-1] == "'" else part for part in parts if part]


@pytest.fixture
def run(world, monkeypatch, capsys):
    """Runs a command here with right arguments and others behind; gives exit code, lines of stderr, and stdout."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(world.here))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(world.here)

    def call(command: str, arguments: str = "") -> tuple[int | str | None, list[str], str]:
        first, last = RIGHT[command], arguments
        if arguments.startswith("-cd"):  # Hydra wants flags in front
            first, last = last, first
        filled = split(f"{first} {last}".format(**world.names()))
        monkeypatch.setattr("sys.argv", [command, *filled])
        kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
        code = None
        try:
            import_module(f"starling_train.{command}").main()
        except SystemExit as stopped:
            code = stopped.code
        for number, handler in kept.items():
            signal.signal(number, handler)
        out, error = capsys.readouterr()
        return code, error.splitlines(), out

    return call


def contents(world: World) -> dict[str, int]:
    return {str(p): -1 if p.is_dir() else p.lstat().st_size for p in world.here.rglob("*")}


@pytest.fixture
def refused(run, world, monkeypatch):
    """The one line in which a command refuses: exit code 2, nothing written, nothing expensive begun."""

    def call(command: str, arguments: str, after_loading: bool = False) -> str:
        with monkeypatch.context() as patch:
            for function in () if after_loading else EXPENSIVE:
                patch.setattr(function, lambda *a, **k: pytest.fail("something expensive was begun"))
            before = contents(world)
            code, lines, out = run(command, arguments)
        assert code == 2, (code, lines, out)
        assert len(lines) == 1 and lines[0].startswith("error: "), lines
        assert len(lines[0]) < 1500 and "hunter2" not in lines[0] + out
        assert after_loading or contents(world) == before
        return lines[0]

    return call
