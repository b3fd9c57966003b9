"""Small random models in the real formats, for runs of whole commands."""

from pathlib import Path

import openchat_tokenizer
import pytest
import torch
from transformers import LlamaConfig, MistralConfig, MistralForCausalLM

from starling_train.data import openchat
from starling_train.models.reward import RewardNet
from starling_train.models.reward_checkpoint import write_starling_7b

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}


@pytest.fixture(scope="session")
def small_models(tmp_path_factory) -> Path:
    """policy/ and reward/: a 4-layer Mistral with the real Openchat tokenizer, and a reward model."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    tokenizer = openchat_tokenizer.build()
    policy = MistralForCausalLM(MistralConfig(vocab_size=32002, num_key_value_heads=2, **SMALL))
    policy.save_pretrained(root / "policy")
    openchat.save_tokenizer(tokenizer, root / "policy")
    net = RewardNet.from_config(LlamaConfig(vocab_size=32002, num_key_value_heads=4, **SMALL))
    torch.nn.init.normal_(net.v_head.weight)
    write_starling_7b(net, root / "reward", tokenizer)
    return root


@pytest.fixture(scope="session")
def small_run(small_models) -> list[str]:
    """Arguments of a run of a few seconds on those models; `data.path` is still to be given."""
    return [
        f"model.path={small_models / 'policy'}",
        f"reward.path={small_models / 'reward'}",
        "model.dtype=float32", "reward.dtype=float32", "cluster.device=cpu", "freeze.top_percent=50",
        "algorithm.steps=3", "algorithm.prompts_per_step=8", "algorithm.minibatches=2", "rollout.max_new_tokens=12",
        "data.eval_prompts=6", "data.max_prompt_tokens=256", "evaluation.every=3", "run_dir=run",
    ]  # fmt: skip
