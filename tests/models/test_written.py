"""What is written of a model says what the model is, to the transformers of today and of yesterday."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from chat_tokenizers import FAMILIES
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    Phi3Config,
    StableLmConfig,
)

from starling_train.config.fields import UserError
from starling_train.data.chat import Chat
from starling_train.models import written

CHAT = Chat.checked(FAMILIES["smollm2"].tokenizer(), "model.path: here")
SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": len(CHAT.tokenizer), "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
GROUPED = SMALL | {"num_key_value_heads": 2}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}

CONFIGS = {
    "llama": LlamaConfig(**GROUPED, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    "llama3": LlamaConfig(**GROUPED, tie_word_embeddings=True, rope_parameters=LLAMA3),
    "linear": MistralConfig(**GROUPED, rope_parameters={"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0}),
    "yarn": LlamaConfig(**GROUPED, rope_parameters=YARN),
    "phi3": Phi3Config(**GROUPED, original_max_position_embeddings=64, rope_parameters=LONG),
    "gemma3": Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=16),
    "stablelm": StableLmConfig(**GROUPED),
    "gpt_neox": GPTNeoXConfig(**SMALL),
}
# what transformers 4 reads, by its own names
OLDER = {
    "llama": {"rope_theta": 1e6},
    "llama3": {"rope_theta": 5e5, "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"}},
    "linear": {"rope_theta": 1e6, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "yarn": {"rope_theta": 1e6, "rope_scaling": {k: v for k, v in YARN.items() if k != "rope_theta"}},
    "phi3": {
        "rope_theta": 1e4,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
        "original_max_position_embeddings": 64,
    },
    "gemma3": {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
    "stablelm": {"rope_theta": 1e4, "partial_rotary_factor": 0.25},
    "gpt_neox": {"rotary_emb_base": 1e4, "rotary_pct": 0.25},
}


def build(name: str):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name]).eval()


def write(model, directory: Path) -> dict:
    written.write(model, directory, CHAT)
    return json.loads((directory / "config.json").read_text())


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(40)[None] % 64).logits


@pytest.mark.parametrize("name", CONFIGS)
def test_both_names_are_written_and_read_as_one(name, tmp_path):
    model = build(name)
    held = write(model, tmp_path)
    assert {key: held[key] for key in OLDER[name]} == OLDER[name]
    assert held["torch_dtype"] == held["dtype"] == "float32"
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_config_says_what_the_head_is(tmp_path):
    """A base whose config says tied beside another lm_head: both tensors train, and both are read again."""
    model = build("llama3")
    assert write(model, tmp_path / "tied")["tie_word_embeddings"] is True
    head = torch.nn.Linear(32, len(CHAT.tokenizer), bias=False)
    model.lm_head = head
    held = write(model, tmp_path / "untied")
    assert held["tie_word_embeddings"] is False
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "untied")
    assert torch.equal(again.lm_head.weight, head.weight)
    assert torch.equal(again.model.embed_tokens.weight, model.model.embed_tokens.weight)


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_files_have_the_mode_that_the_umask_asks_for(mask, tmp_path):
    before = os.umask(mask)
    try:
        write(build("llama"), tmp_path / "model")
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "model").iterdir()}
    assert set(modes.values()) == {0o666 & ~mask}, modes


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_and_ends_of_a_written_directory_are_those_of_training(family, tmp_path):
    kind = FAMILIES[family]
    tokenizer = kind.tokenizer()
    ends = tokenizer.convert_tokens_to_ids(list(kind.ends))
    chat = Chat.checked(tokenizer, "model.path: here", "own", kind.values, ends)
    written.check_writable(chat, "model.path: here")
    model = LlamaForCausalLM(LlamaConfig(**SMALL | {"vocab_size": len(tokenizer)}))
    written.write(model, tmp_path, chat)
    held = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert held["tokenizer_class"] not in written.NEW_CLASSES
    assert not isinstance(held.get("extra_special_tokens"), list)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert len(chat.probes()) == 2 + kind.takes_system
    for messages, ids in chat.probes():
        assert again.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] == ids
    generation = json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"]
    assert set(ends) <= set(generation if isinstance(generation, list) else [generation])


def test_a_template_or_an_end_that_reads_back_otherwise_is_an_error(tmp_path):
    write(build("llama"), tmp_path)
    template = tmp_path / "chat_template.jinja"
    right = template.read_text()
    template.write_text(right.replace("assistant", "Assistant"))
    with pytest.raises(UserError, match="conversation of user, from token"):
        written.check_chat(tmp_path, CHAT)
    template.write_text("{{ raise_exception('no') }}")
    with pytest.raises(UserError, match=r"written chat template fails \(no\)"):
        written.check_chat(tmp_path, CHAT)
    template.write_text(right)
    written.check_chat(tmp_path, CHAT)
    generation = tmp_path / "generation_config.json"
    generation.write_text(generation.read_text().replace(f'"eos_token_id": {CHAT.end_of_turn}', '"eos_token_id": 2'))
    with pytest.raises(UserError, match=f"eos_token_id lacks \\[{CHAT.end_of_turn}\\]"):
        written.check_chat(tmp_path, CHAT)


@pytest.mark.parametrize("key", ["rope_parameters", "vocab_size"])
def test_what_reads_back_otherwise_is_an_error(key, tmp_path):
    model = build("llama")
    write(model, tmp_path)
    held = json.loads((tmp_path / "config.json").read_text())
    held["rope_theta"], held["vocab_size"] = held["rope_theta"], held["vocab_size"]
    held |= {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}} if key == "rope_parameters" else {key: 65}
    (tmp_path / "config.json").write_text(json.dumps(held))
    with pytest.raises(UserError, match=key):
        written.check(tmp_path, model)


READ_BY_4 = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, __version__
assert __version__.startswith("4."), __version__
for name in sys.argv[2].split():
    model = AutoModelForCausalLM.from_pretrained(f"{sys.argv[1]}/{name}", attn_implementation="eager").eval()
    with torch.no_grad():
        gap = (model(torch.arange(40)[None] % 64).logits - torch.load(f"{sys.argv[1]}/{name}.pt")).abs().max()
    assert gap < 1e-5, (name, gap)
    print(name)
for name in sys.argv[3].split():
    tokenizer = AutoTokenizer.from_pretrained(f"{sys.argv[1]}/{name}")
    for messages, ids in json.load(open(f"{sys.argv[1]}/{name}.json")):
        got = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        assert got == ids, (name, messages, got, ids)
    print(name)
"""


@pytest.mark.slow
def test_transformers_4_computes_and_renders_the_same(tmp_path):
    """Buys: that the older names are the right ones. Needs transformers 4 in a folder of its own, see .ci/run."""
    older = Path(os.environ.get("STARLING_TRANSFORMERS_4") or Path(sys.prefix) / "transformers4")
    if not older.is_dir():
        pytest.skip("transformers 4 is not installed beside the environment; see .ci/run")
    for name in CONFIGS:
        model = build(name)
        write(model, tmp_path / name)
        torch.save(logits(model), tmp_path / f"{name}.pt")
    for name, kind in FAMILIES.items():
        ends = (tokenizer := kind.tokenizer()).convert_tokens_to_ids(list(kind.ends))
        chat = Chat.checked(tokenizer, "model.path: here", "own", kind.values, ends)
        model = LlamaForCausalLM(LlamaConfig(**SMALL | {"vocab_size": len(tokenizer)}))
        written.write(model, tmp_path / f"chat_{name}", chat)
        (tmp_path / f"chat_{name}.json").write_text(json.dumps(chat.probes()))
    chats = [f"chat_{name}" for name in FAMILIES]
    command = [sys.executable, "-c", READ_BY_4, str(tmp_path), " ".join(CONFIGS), " ".join(chats)]
    environment = {**os.environ, "PYTHONPATH": str(older)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    # deepspeed, where it is installed, writes before
    assert done.stdout.split()[-len(CONFIGS) - len(chats) :] == [
        *CONFIGS,
        *chats,
    ]
