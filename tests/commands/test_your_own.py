"""The recipes of docs/your_own.md, run as they stand there, on a small model in place of the one that they name."""

import re
import shlex
from pathlib import Path

import chat_tokenizers
import pytest
import torch
from fault_process import Started
from transformers import LlamaConfig, LlamaForCausalLM

PAGE = Path(__file__).parents[2] / "docs" / "your_own.md"
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NAMED = "HuggingFaceTB/SmolLM2-135M-Instruct"
# smaller than by default, and nothing else than that
SMALLER = {
    "ppo": [
        "algorithm.steps=2", "algorithm.prompts_per_step=2", "algorithm.minibatches=1", "rollout.max_new_tokens=8",
        "data.max_prompt_tokens=200",
    ],
    "dpo": ["dpo.prompts_per_step=2", "dpo.max_length=200", "data.max_prompt_tokens=100", "evaluation.responses=0"],
    "rm": ["rm.prompts_per_step=2", "rm.max_length=200"],
}  # fmt: skip
EVERYWHERE = ["cluster.device=cpu", "data.eval_prompts=1", "model.dtype=float32"]


def blocks() -> list[tuple[str, str, str]]:
    return BLOCK.findall(PAGE.read_text())


COMMANDS = [line for kind, _, text in blocks() if kind == "sh" for line in text.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The page's files, and a small model with SmolLM2's kind of template."""
    folder = tmp_path_factory.mktemp("your_own")
    for _, name, text in blocks():
        if name:
            (folder / name).write_text(text)
    tokenizer = chat_tokenizers.FAMILIES["smollm2"].tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(folder / "small")
    tokenizer.save_pretrained(folder / "small")
    return folder


def test_the_page_has_five_recipes():
    assert len(re.findall(r"^## ", PAGE.read_text(), re.MULTILINE)) == 5
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: re.search(r"name=(\w+)", line)[1])
def test_a_recipe_runs(line, folder):
    python, _, module, *arguments = shlex.split(line)
    assert python == "python"
    command = module.removeprefix("starling_train.")
    arguments = [argument.replace(NAMED, str(folder / "small")) for argument in arguments]
    name = next(argument for argument in arguments if argument.startswith("name=")).removeprefix("name=")
    started = Started(command, [*arguments, *SMALLER[command], *EVERYWHERE], folder, output=folder / f"out_{name}")
    assert started.wait() == 0, started.error()
    assert (folder / "runs" / name / "report.html").is_file()
