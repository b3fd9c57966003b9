"""vLLM as rollout engine, the real one: weights that follow the policy's, the same responses, servers that come back.

Slow: vLLM has its own environment, whose Python STARLING_VLLM names, and takes 10 s to start.
"""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import families
import pytest
import torch
from safetensors.torch import load_file

from starling_train.config.fields import UserError
from starling_train.config.sections import ModelConfig, RolloutConfig
from starling_train.models import causal_lm
from starling_train.models.source import ModelSource
from starling_train.rollout import start_check
from starling_train.rollout.generate import generate
from starling_train.rollout.vllm import probe
from starling_train.rollout.vllm import server as served
from starling_train.rollout.vllm.folder import Folder, Held, folder_of
from starling_train.run import machine
from starling_train.training import policy

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1",
}  # fmt: skip
# the other families' models vLLM has no code for (olmo2, smollm3, gpt_neox), or gives other logits itself (gemma2)
SUPPORTED = (
    "llama3", "llama3_tied", "mistral", "qwen2.5", "qwen3", "gemma3", "phi3", "granite", "mixtral", "qwen3_moe",
    "olmoe", "stablelm", "cohere", "gpt2",
)  # fmt: skip
HEADS = {"hidden_size": 128, "head_dim": 32}  # sizes of a head that vLLM's CPU kernels have
# matrices with other names, and no Linear
MISSING = {"phi3": ("one matrix",), "gpt2": ("one matrix", "two", "adapters")}
CHANGED = ["as it is", "one matrix", "two", "all matrices", "everything", "adapters"]


def sizes(name: str) -> dict[str, int]:
    """Sizes of a tiny model that vLLM's CPU kernels take."""
    if name == "gpt2":
        return {"n_embd": 128}
    return {"hidden_size": 128} if name in ("stablelm", "cohere", "granite", "phi3") else HEADS


def python_with_vllm() -> str:
    python = os.environ.get("STARLING_VLLM")
    if not python:
        pytest.skip("STARLING_VLLM is not set: the Python of an environment with vllm-cpu")
    return python


def environment() -> dict[str, str]:
    return os.environ | SETTINGS | {"PYTHONPATH": str(ROOT)}


def beside_slots(directory: Path, dtype: str) -> list[dict]:
    """What `vllm_process.py` finds: a row for each change of the weights."""
    command = [python_with_vllm(), str(ROOT / "tests" / "vllm_process.py"), str(directory), dtype]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("found:"))[len("found:") :])


@pytest.mark.slow
@pytest.mark.parametrize("name", SUPPORTED)
def test_vllm_draws_what_slots_does_whatever_trains(name, tmp_path):
    rows = beside_slots(families.write(name, tmp_path / name, **sizes(name)), "float32")
    assert [row["what"] for row in rows] == [what for what in CHANGED if what not in MISSING.get(name, ())]
    for row in rows:
        assert row["same"] == row["of"] and row["gap"] < 1e-5 and row["mean"] < 2e-5, row
        assert row["repeats"] and row["least"] >= 3


class Server:
    """vLLM that serves a directory on loopback; can be killed and started again at the same port."""

    def __init__(self, directory: Path, log: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self._directory, self._log = f"http://127.0.0.1:{self.port}", directory, log
        self._process: subprocess.Popen | None = None

    def start(self, wait: bool = True) -> None:
        command = [python_with_vllm(), "-m", "vllm.entrypoints.openai.api_server", "--model", str(self._directory)]
        command += ["--port", str(self.port), "--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager"]
        command += ["--logprobs-mode", "processed_logprobs", "--max-model-len", "256"]
        asked = environment() | {"VLLM_SERVER_DEV_MODE": "1"}
        self._log.write_bytes(b"")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=asked, start_new_session=True)
        while wait and "Application startup complete" not in self._log.read_text():
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            time.sleep(0.5)

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@pytest.fixture
def server(tmp_path):
    made = Server(families.write("llama3", tmp_path / "model", **HEADS), tmp_path / "log")
    made.start()
    yield made
    made.kill()


@pytest.mark.slow
def test_a_server_follows_what_trains_and_comes_back_from_its_end(server, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(served, "_server", None)
    source = ModelSource.open(tmp_path / "model")
    chat = policy.load_chat(source, ModelConfig(path=str(tmp_path / "model")))
    model = causal_lm.load_causal_lm(source, dtype="float32").requires_grad_(False)
    prompts = [chat.prompt([{"role": "user", "content": text}]) for text in ("Hello.", "Who are you?", "Why is it?")]
    here = RolloutConfig(slots=3, max_new_tokens=24, stop_strings=[])
    there = RolloutConfig(
        engine="vllm_server", url=server.url + "/", weights_dir=str(tmp_path), slots=3, max_new_tokens=24,
        stop_strings=[],
    )  # fmt: skip
    assert "within" in start_check.opened(model, chat, there)[0]

    def both() -> bool:
        drawn, expected = (generate(model, chat, prompts, one, greedy=True) for one in (there, here))
        assert all(len(a) == len(b) for a, b in zip(drawn.responses, drawn.drawn_logprobs, strict=True))
        return drawn.responses == expected.responses

    assert both()
    matrix = model.get_parameter("model.layers.2.self_attn.v_proj.weight").requires_grad_(True)
    with torch.no_grad():
        matrix.add_(torch.randn_like(matrix))
    assert both() and not list(tmp_path.glob("starling-vllm-*/"))
    # the server has its first weights again: the responses are those of the trained ones all the same
    server.kill()
    server.start(wait=False)
    assert both() and "answers again" in capfd.readouterr().err
    server.kill()
    impatient = RolloutConfig(engine="vllm_server", url=server.url, weights_dir=str(tmp_path), patience_s=0.5)
    monkeypatch.setattr(served, "_server", None)
    with pytest.raises(UserError, match=r"rollout\.url: http://127\.0\.0\.1:\d+/\S+ gave no answer for 0\.5 s"):
        generate(model, chat, prompts, impatient)


@pytest.mark.slow
def test_what_a_server_is_asked_leaves_nothing_to_its_defaults(tmp_path, monkeypatch):
    """Its generation_config would change every answer; and what it draws after it died and came back is right too."""
    directory = families.write("llama3", tmp_path / "model", **HEADS)
    (directory / "generation_config.json").write_text(
        json.dumps({"eos_token_id": 2, "repetition_penalty": 9.0, "top_k": 1, "temperature": 0.3})
    )
    monkeypatch.setattr(served, "_server", None)
    made = Server(directory, tmp_path / "log")
    made.start()
    try:
        source = ModelSource.open(directory)
        chat = policy.load_chat(source, ModelConfig(path=str(directory)))
        model = causal_lm.load_causal_lm(source, dtype="float32")
        prompts = [chat.prompt([{"role": "user", "content": f"Hello {number}."}]) for number in range(40)]
        here = RolloutConfig(slots=8, max_new_tokens=64)
        there = RolloutConfig(engine="vllm_server", url=made.url, slots=8, max_new_tokens=64)
        expected = generate(model, chat, prompts, here, greedy=True).responses
        assert generate(model, chat, prompts, there, greedy=True).responses == expected
        done: list[int] = []

        def on_done(number: int, response: list[int]) -> None:
            if not done:
                made.kill()
                made.start(wait=False)
            done.append(number)

        again = generate(model, chat, prompts, there, greedy=True, on_done=on_done)
        assert again.responses == expected and done == list(range(40))
        sampled = generate(model, chat, prompts[:8], there).responses
        assert len({tuple(one) for one in sampled}) == 8 and sampled != expected[:8]
    finally:
        made.kill()


def test_a_folder_for_weights(tmp_path):
    """What is written is read back as it was; nothing stays behind; what does not fit is said."""
    config = RolloutConfig(engine="vllm_server", url="http://127.0.0.1:1", weights_dir=str(tmp_path))
    folder = Folder(config, config.url)
    assert folder.held() is None
    folder.remember(Held("a", "b", "1.5"))
    assert folder.held() == Held("a", "b", "1.5") and Folder(config, "http://other").held() is None
    whole = torch.arange(24.0).view(2, 3, 4)
    with folder.written([("one", whole[0]), ("two", whole[1].T)], 96) as path:
        (file,) = path.iterdir()
        found = load_file(file)
        assert torch.equal(found["one"], whole[0]) and torch.equal(found["two"], whole[1].T)
        assert (path.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o755, 0o644)
    assert not path.exists()
    leftover = path.parent / f"{path.name.rpartition('-')[0]}-killed"
    leftover.mkdir()
    with pytest.raises(UserError, match=r"rollout\.weights_dir: .* GB free, and the weights take 1000000000\.00"):
        folder.written([], 10**18).__enter__()
    assert not leftover.exists()
    folder.forget()
    assert folder.held() is None
    (tmp_path / "file").touch()
    for wrong in ("absent", "file"):
        with pytest.raises(
            UserError, match=r"rollout\.weights_dir: .*is not a folder that this process can write into"
        ):
            folder_of(RolloutConfig(weights_dir=str(tmp_path / wrong)))


@pytest.mark.slow
def test_a_server_of_another_model_is_refused(server, tmp_path, monkeypatch):
    monkeypatch.setattr(served, "_server", None)
    rope = {"rope_type": "default", "rope_theta": 9}
    other = families.write("llama3", tmp_path / "other", **HEADS, rope_parameters=rope)
    source = ModelSource.open(other)
    chat = policy.load_chat(source, ModelConfig(path=str(other)))
    model = causal_lm.load_causal_lm(source, dtype="float32")
    config = RolloutConfig(engine="vllm_server", url=server.url, weights_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"are off by .* nats a token, given the policy's weights; serve model\.path"):
        start_check.opened(model, chat, config)


def test_a_probe_tells_other_weights_from_rounding(tiny_mistral):
    model = tiny_mistral(initializer_range=0.3)
    ids = probe.probe_ids(model)

    def logprobs(network):
        def of(asked):
            assert list(asked) == ids
            with torch.no_grad():
                logits = network(input_ids=torch.tensor([list(asked)])).logits[0].log_softmax(-1)
            return logits[:-1][torch.arange(len(ids) - 1), torch.tensor(ids[1:])].tolist()

        return of

    assert probe.is_close(model, probe.gap(model, logprobs(model)))
    other = tiny_mistral(initializer_range=0.3)
    with torch.no_grad():
        other.get_parameter("model.layers.1.self_attn.k_proj.weight").mul_(1.5)
    assert not probe.is_close(model, probe.gap(model, logprobs(other)))
    assert not probe.is_close(model, probe.gap(model, lambda ids: [float("nan")] * (len(ids) - 1)))


def test_what_is_given_grows_where_a_part_is_not_enough(tiny_mistral, capsys):
    model = tiny_mistral()
    matrix = "model.layers.1.mlp.gate_proj.weight"
    model.requires_grad_(False).get_parameter(matrix).requires_grad_(True)
    given, gaps = [], iter([1e-6, 2.0, 1e-6, 1e-6, 5.0])

    def send(names):
        given.append(names)
        return next(gaps)

    copies = probe.Copies("vllm", "use slots")
    part = {matrix, "model.layers.1.mlp.up_proj.weight"}
    assert [copies.give(model, True, send) for _ in range(3)] == [1e-6, 1e-6, 1e-6]
    assert given == [part, part, None, None] and "off by 2 nats a token; it is given all" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"vllm's log-probs of this mistral are off by 5 nats a token.*; use slots"):
        copies.give(model, False, send)


def test_without_vllm_one_line_says_so(monkeypatch):
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    start_check.check(RolloutConfig(), None)
    with pytest.raises(UserError, match=r"rollout\.engine: vllm not installed; pip install 'starling-train\[vllm\]'"):
        start_check.check(RolloutConfig(engine="vllm"), None)
    server = RolloutConfig(engine="vllm_server", url="http://127.0.0.1:1")
    start_check.check(server, None, zero_stage=2)  # needs no vLLM here
    with pytest.raises(UserError, match=r"has no 4bit copy of the policy; use slots"):
        start_check.check(server, "4bit")
    with pytest.raises(UserError, match=r"cluster\.zero_stage=3 has shards; use slots, or stage 2"):
        start_check.check(server, None, zero_stage=3)
