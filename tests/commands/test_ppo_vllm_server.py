"""`ppo` whose responses a served vLLM draws: the run ends well when it is lost, and goes on as it would have.

The server is imitated: it draws the likeliest tokens, so that two runs can be compared to the bit.
"""

import json
from pathlib import Path

import pytest
from imitated_vllm import ImitatedVllm
from transformers import AutoModelForCausalLM

from starling_train import ppo
from starling_train.rollout.vllm import server


@pytest.fixture
def served(small_models):
    made = ImitatedVllm(AutoModelForCausalLM.from_pretrained(small_models / "policy", dtype="float32"))
    yield made
    made.close()


@pytest.fixture
def train(small_run, tmp_path, monkeypatch, capsys, served):
    """Runs ppo in this process against the server; gives exit code and output."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"What is {i} and {i}?"}) + "\n" for i in range(40)))
    (tmp_path / "weights").mkdir()

    def run(*changes: str) -> tuple[int, str]:
        settings = ["rollout=vllm_server", f"rollout.url={served.url}", f"rollout.weights_dir={tmp_path / 'weights'}"]
        settings += ["rollout.patience_s=0.3", "rollout.max_new_tokens=6", f"data.path={prompts}", "evaluation.every=2"]
        settings += ["optim.learning_rate=1e-2"]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(server, "_server", None)
        monkeypatch.setattr("sys.argv", ["ppo", *small_run, *settings, *changes])
        code = 0
        try:
            ppo.main()
        except SystemExit as stopped:
            code = stopped.code
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def of_training(run: Path) -> list[dict]:
    """Metrics that do not depend on the clock."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    left_out = ("time/", "throughput/", "memory/")
    return [{k: v for k, v in row.items() if not k.startswith(left_out)} for row in rows]


@pytest.mark.slow
def test_a_run_that_loses_its_server_saves_its_state_and_goes_on(train, served, tmp_path):
    code, said = train("run_dir=straight")
    assert code == 0 and "rollout.engine=vllm_server" in said
    straight = of_training(tmp_path / "straight")
    gaps = [row["policy/engine_gap_mean"] for row in straight if row["step"]]
    assert len(gaps) == 3 and max(gaps) < 1e-5  # the server had each step's weights
    assert len(served.sent) == 4 and all(len(names) < len(served.sent[0]) for names in served.sent[1:])

    served.restart()
    served.sent.clear()
    asked: list[int] = []

    def lose(number: int) -> None:
        asked.append(number)
        if len(asked) == 30:  # in the second step: probes, 6 held-out answers, 8 of the first step
            served.failing = {"/v1/completions": [503] * 999}

    served.before = lose
    code, said = train("checkpoint.every=0")
    assert code == 2 and said.splitlines()[-1].startswith("error: rollout.url: http://127.0.0.1:"), said
    assert "503: told to fail" in said.splitlines()[-1] and list((tmp_path / "run" / "checkpoints").iterdir())
    served.before, served.failing = lambda number: None, {}
    served.restart()  # it comes back with its first weights
    assert train()[0] == 0
    assert of_training(tmp_path / "run") == straight
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["finished"]


def test_no_server_at_the_start_writes_nothing(train, served, tmp_path):
    served.failing = {"/v1/completions": [503] * 999, "/collective_rpc": [503] * 999}
    code, said = train()
    assert code == 2 and "gave no answer for 0.3 s" in said.splitlines()[-1]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
