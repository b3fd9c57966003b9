"""PPO that trains adapters: plain PEFT and plain transformers read what it leaves behind, and it resumes exactly."""

import json

import pytest
import torch
from cut_run import cut_after_the_first_step
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from starling_train import ppo

LORA = ["+recipe=debug", "freeze.adapter=lora", "freeze.lora.rank=4", "freeze.head=true", "algorithm.critic=twin"]
IDS = torch.arange(1, 40)[None]


@pytest.fixture(scope="module")
def finished(toy, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("adapters")
        patch.chdir(folder)
        patch.setattr("sys.argv", ["ppo", *LORA, "run_dir=run", "optim.learning_rate=1e-2"])
        ppo.main()
    return folder / "run"


def test_a_checkpoint_is_read_by_peft_and_the_policy_by_transformers(finished, toy):
    base = AutoModelForCausalLM.from_pretrained(toy / "policy", dtype=torch.float32)
    before = {name: p.clone() for name, p in base.named_parameters()}
    whole = AutoModelForCausalLM.from_pretrained(finished / "policy", dtype=torch.float32)
    moved = {name for name, p in whole.named_parameters() if not torch.equal(p, before[name])}
    assert len(moved) == 8 and "lm_head.weight" in moved  # one of two matrices, of each of seven types, and the head
    peft = PeftModel.from_pretrained(base, finished / "checkpoints" / "step_000002")
    torch.testing.assert_close(peft(IDS).logits, whole(IDS).logits, rtol=1e-5, atol=1e-5)


def test_only_adapters_and_a_critic_of_its_own_are_saved(finished):
    names = load_file(finished / "checkpoints" / "step_000002" / "trainable.safetensors").keys()
    policy, critic = ([n for n in names if n.startswith(part)] for part in ("policy.", "critic."))
    assert len(policy) == 16 and len(critic) == 14 and all(".lora_" in name for name in policy + critic)
    assert all(name.startswith(("policy.", "critic.", "value_head.")) for name in names)
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["eval/kl_reference"] == 0 and all(row["policy/ratio_first"] < 1e-4 for row in rows[1:])


def test_resume_is_exact(finished, tmp_path, monkeypatch):
    """A run as a kill after its first checkpoint leaves it."""
    again = tmp_path / "run"
    cut_after_the_first_step(finished, again)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["ppo", *LORA, "run_dir=run", "optim.learning_rate=1e-2"])
    ppo.main()
    for name in ("trainable", "optimizer", "adapter_model"):
        file = f"checkpoints/step_000002/{name}.safetensors"
        assert (again / file).read_bytes() == (finished / file).read_bytes()
    for name in ("samples.jsonl", "cases.jsonl"):
        assert (again / name).read_text() == (finished / name).read_text()
