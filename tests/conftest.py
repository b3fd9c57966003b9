"""Shared fixtures. Models here are real transformers models, small and random; nothing needs a network."""

import gc
import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)  # tiny tensors: more threads only wait for one another


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real data (nectar/, snr/, mt_bench/, bfcl/); the test is skipped without it."""
    if not os.environ.get("STARLING_DATA"):
        pytest.skip("STARLING_DATA is not set: no real data to test with")
    return Path(os.environ["STARLING_DATA"])


@pytest.fixture(scope="session")
def toy() -> Path:
    """The toy's assets, made once and cached where the `toy` recipe looks for them."""
    from starling_train import assets

    return assets.ensure("toy")


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}


def write_models(root: Path, tokenizer) -> Path:
    """Write policy/, a 4-layer Mistral, and reward/, a reward model, both for the tokenizer."""
    from transformers import LlamaConfig, MistralConfig, MistralForCausalLM

    from starling_train.data import openchat
    from starling_train.models.reward import RewardNet
    from starling_train.models.reward.checkpoint import write_starling_7b

    torch.manual_seed(0)
    policy = MistralForCausalLM(MistralConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **SMALL))
    policy.save_pretrained(root / "policy")
    openchat.save_tokenizer(tokenizer, root / "policy")
    net = RewardNet.from_config(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=4, **SMALL))
    torch.nn.init.normal_(net.v_head.weight)
    write_starling_7b(net, root / "reward", tokenizer)
    return root


@pytest.fixture(scope="session")
def small_models(tmp_path_factory) -> Path:
    """policy/ and reward/ with a tokenizer of a few hundred pieces."""
    import openchat_tokenizer

    return write_models(tmp_path_factory.mktemp("models"), openchat_tokenizer.small())


@pytest.fixture(scope="session")
def openchat_models(tmp_path_factory) -> Path:
    """policy/ and reward/ with the real Openchat tokenizer of 32,002 pieces."""
    import openchat_tokenizer

    return write_models(tmp_path_factory.mktemp("openchat"), openchat_tokenizer.build())


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


@pytest.fixture
def tiny_mistral():
    """A function that builds a random Mistral of a few thousand parameters, the same for the same seed."""
    from transformers import MistralConfig, MistralForCausalLM

    def build(layers: int = 3, seed: int = 0, **settings):
        torch.manual_seed(seed)
        return MistralForCausalLM(
            MistralConfig(
                vocab_size=97,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=128,
                attention_dropout=0.0,
                pad_token_id=None,
                **settings,
            )
        )

    return build


def pytest_configure():
    import yaml_once

    yaml_once.install()


def pytest_collection_finish():
    gc.collect()
    gc.freeze()  # half a million objects of torch and transformers stay: each full collection would look at them all


def pytest_sessionfinish():
    if fault_process := sys.modules.get("fault_process"):
        fault_process.stop()


def pytest_terminal_summary(terminalreporter):
    """Tell the CPU time of all processes that the suite has waited for: the budget of `make test` is 420 s."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    terminalreporter.write_line(f"CPU: {sum(one.ru_utime + one.ru_stime for one in used):.0f} s")


@dataclass(frozen=True)
class Done:
    """What a command has left: its exit code, and all that it said."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run_command(tmp_path, tmp_path_factory):
    """Runs `python -m starling_train.<command> ...` in an empty directory; gives the `Done` command.

    A process of its own, but forked from one that has the imports behind it. prepare: called there first.
    """
    from fault_process import Started

    def run(command: str, *arguments: str, cwd: Path = tmp_path, timeout: float = 280, prepare=None) -> Done:
        process = Started(command, list(arguments), cwd, tmp_path_factory.mktemp("output"), prepare)
        code = process.wait(timeout)
        return Done(code, process.out(), process.error())

    return run
