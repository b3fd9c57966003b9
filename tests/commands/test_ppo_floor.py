"""Runs whose responses have a floor, of a model with more ids than its tokenizer has tokens, which it likes best."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from starling_train import ppo
from starling_train.report import page

FLOOR = 5
ANY = {"time", "throughput", "memory"}


@pytest.fixture(scope="module")
def policy(small_models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("padded") / "policy"
    model = AutoModelForCausalLM.from_pretrained(small_models / "policy")
    tokenizer = AutoTokenizer.from_pretrained(small_models / "policy")
    model.resize_token_embeddings(len(tokenizer) + 56, mean_resizing=False)
    with torch.no_grad():
        likely = 20 * model.lm_head.weight[300:310].sum(0)
        model.lm_head.weight[len(tokenizer) :] = torch.cat([likely.expand(28, -1), -likely.expand(28, -1)])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def run(small_run, policy, tmp_path, monkeypatch, capsys):
    """Runs `ppo` in this process; gives its metrics and what it said."""
    rows = [json.dumps({"prompt": f"What is {i} and {i}?"}) for i in range(14)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(page, "write", lambda run: None)  # the plots take longer than the steps

    def start(folder: str, *more: str) -> tuple[list[dict], str]:
        own = ["data.path=prompts.jsonl", f"model.path={policy}", f"run_dir={folder}", "algorithm.critic=twin"]
        own += ["optim.learning_rate=1e-3", "optim.schedule=constant", "algorithm.tokens_per_microbatch=120"]
        monkeypatch.setattr("sys.argv", ["ppo", *small_run, *own, f"rollout.min_new_tokens={FLOOR}", *more])
        ppo.main()
        lines = (tmp_path / folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines], capsys.readouterr().out

    return start


def kept(metrics: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key.split("/")[0] not in ANY} for row in metrics]


def test_a_floor_and_ids_without_a_token_from_start_to_resume(run, tmp_path):
    straight, said = run("straight", "algorithm.steps=2", "evaluation.every=2")
    assert "56 of the model's 558 ids have no token in the tokenizer; no response has them" in said
    assert "warning: 100 % of the first answers ran into rollout.max_new_tokens=12: raise it, or lower" in said
    assert "reward: an empty answer scores " in said and " % of the first answers; an answer cut to a third" in said
    first, second = straight[1:]
    assert max(row["policy/ratio_first"] for row in (first, second)) < 1e-5
    assert abs(first["kl/reference"]) < 1e-5 < abs(second["kl/reference"])
    assert first["response/empty_fraction"] == 0 and first["response/limit_fraction"] > 0.2
    assert [row["eval/empty_fraction"] for row in (straight[0], second)] == [0, 0]
    assert "reward/probe_empty" in first and "reward/probe_empty" not in second
    samples = (tmp_path / "straight" / "samples.jsonl").read_text().splitlines()
    assert all(json.loads(line)["response"].strip() for line in samples)
    # stopped after a step, and started again
    run("resumed", "algorithm.steps=1", "evaluation.every=0")
    resumed, said = run("resumed", "algorithm.steps=2", "evaluation.every=0")
    assert "resumed after step 1" in said and "first answers" not in said
    plain = [{key: value for key, value in row.items() if "eval/" not in key} for row in kept(straight[1:])]
    assert kept(resumed) == plain
    saved = "checkpoints/step_000002/trainable.safetensors"
    states = [load_file(tmp_path / name / saved) for name in ("straight", "resumed")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_what_is_stated_for_an_empty_answer_is_what_it_gets(run, tmp_path):
    # a stop string within the first tokens leaves an answer without text
    empties = ["rollout.stop_strings=[e,a,o,i,u,n,r,s,t]", "rollout.min_new_tokens=0", "reward.empty_response=-7.5"]
    metrics, _ = run("stated", "algorithm.steps=1", "evaluation.every=1", *empties)
    rows = [json.loads(line) for line in (tmp_path / "stated" / "samples.jsonl").read_text().splitlines()]
    for row in metrics:
        own = [one for one in rows if one["step"] == row["step"]]
        assert len(own) == 6 and row["eval/empty_fraction"] == sum(not one["response"].strip() for one in own) / 6 > 0
    assert all((one["score"] == -7.5) == (not one["response"].strip()) for one in rows)
    assert metrics[1]["reward/probe_empty"] == -7.5
