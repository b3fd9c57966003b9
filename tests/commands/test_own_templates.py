"""ppo, dpo, evaluate and export of chat models that are not Openchat's: small random weights, real templates.

Each command is one process of a few seconds: that a template reaches what is trained, drawn and written is only seen
there.
"""

import json

import pytest
import torch
import yaml
from chat_tokenizers import FAMILIES
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from starling_train.data.chat import Chat

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
QUESTION = {"role": "user", "content": "What is <|im_end|> France?"}
TURNS = [QUESTION, {"role": "assistant", "content": "Paris <eos>"}, {"role": "user", "content": "Again"}]
SMALL = [
    "cluster.device=cpu", "model.dtype=float32", "freeze.top_percent=50", "data.eval_prompts=2",
    "data.max_prompt_tokens=250", "rollout.max_new_tokens=8", "run_dir=run", "evaluation.every=1",
]  # fmt: skip
PPO = [
    "reward=function", "reward.function=score.py:score", "algorithm.steps=2", "algorithm.prompts_per_step=4",
    "algorithm.minibatches=2", "algorithm.epochs=1",
]  # fmt: skip


def write(directory, name, ends=None):
    """A model directory of a family; its configurations name another eos token than the one that ends a turn."""
    family = FAMILIES[name]
    tokenizer = family.tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **SIZE))
    model.generation_config = GenerationConfig(eos_token_id=ends and tokenizer.convert_tokens_to_ids(ends))
    model.config.eos_token_id = 0
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return tokenizer


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def here(tmp_path):
    (tmp_path / "score.py").write_text(
        "def score(conversations):\n    return [float(len(talk[-1]['content'])) for talk in conversations]\n"
    )
    return tmp_path


def check_policy(run, base, ends):
    """The written policy ends where training did, and renders what was trained. ends: by text, the turn's first."""
    tokenizer = AutoTokenizer.from_pretrained(run)
    ids = tokenizer.convert_tokens_to_ids(list(ends))
    settings = yaml.safe_load((run.parent / "config.yaml").read_text())["model"]
    named = GenerationConfig.from_pretrained(run)
    written = named.eos_token_id if isinstance(named.eos_token_id, list) else [named.eos_token_id]
    assert written == ids and named.pad_token_id not in ids
    assert json.loads((run / "config.json").read_text())["eos_token_id"] == named.eos_token_id
    assert tokenizer.eos_token == ends[0]
    chat = Chat.checked(base, "base", values=settings["template_kwargs"], ends=ids)
    assert len(chat.probes()) >= 2
    for messages, expected in chat.probes():
        assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == expected
    return chat


def test_ppo_export_and_evaluate_of_chatml(here, run_command):
    base = write(here / "policy", "qwen3", ends=["<|endoftext|>"])
    talks = [{"messages": [*TURNS[:2], {"role": "user", "content": f"Again {i}"}]} for i in range(6)]
    talks += [{"prompt": f"What is {i}?"} for i in range(6)]
    jsonl(here / "data.jsonl", [*talks, {"messages": [{"role": "system", "content": "Be brief."}, QUESTION]}])
    arguments = ["model.path=policy", "model.template_kwargs={enable_thinking: false}", "data.path=data.jsonl"]
    done = run_command("ppo", *SMALL, *PPO, *arguments, "optim.learning_rate=0", cwd=here)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "chat template: an answer ends with <|im_end|> or <|endoftext|>; it changes earlier turns" in said
    rows = [json.loads(line) for line in (here / "run/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and all(row["policy/ratio_first"] < 1e-4 for row in rows[1:])
    chat = check_policy(here / "run/policy", base, ["<|im_end|>", "<|endoftext|>"])
    model = AutoModelForCausalLM.from_pretrained(here / "run/policy")
    assert model.get_input_embeddings().weight.shape[0] == len(base)
    assert chat.tokenizer.decode(chat.prompt([QUESTION])).endswith("assistant\n<think>\n\n</think>\n\n")

    (here / "policy/chat_template.jinja").unlink()  # the run has kept it
    done = run_command("export", "run_dir=run", "output=model", cwd=here)
    assert done.returncode == 0, done.stderr
    for file in ("chat_template.jinja", "tokenizer.json", "generation_config.json", "config.json"):
        assert (here / "model" / file).read_text() == (here / "run/policy" / file).read_text()

    (here / "policy/chat_template.jinja").write_text((here / "model/chat_template.jinja").read_text() + " ")
    done = run_command("ppo", *SMALL, *PPO, *arguments, "optim.learning_rate=0", "algorithm.steps=3", cwd=here)
    assert done.returncode == 2 and "model.template: the chat template is not the one that " in done.stderr
    base.save_pretrained(here / "policy")

    jsonl(here / "text.jsonl", [{"messages": [*TURNS, {"role": "assistant", "content": "Paris"}]}])
    measured = ["suites=[perplexity]", "perplexity.path=text.jsonl", "cluster.device=cpu", "model.dtype=float32"]
    done = run_command("evaluate", *arguments[:2], *measured, "run_dir=evaluated", cwd=here)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads((here / "evaluated/evaluation.json").read_text())["results"]
    answers = [chat.answered(talk)[1] for talk in (TURNS[:2], [*TURNS, {"role": "assistant", "content": "Paris"}])]
    assert result["result"]["tokens"] == sum(map(len, answers))
    assert len(result["identity"]["settings"]["template"]) == 64


def test_dpo_drops_and_counts_what_the_template_refuses(here, run_command):
    base = write(here / "policy", "gemma", ends=["<eos>", "<end_of_turn>"])
    rows = [
        {"prompt": [{"role": "user", "content": f"What is {i}?"}], "chosen": f"It is {i}", "rejected": "No <eos>"}
        for i in range(8)
    ]
    odd = {"prompt": [{"role": "system", "content": "Be brief."}, QUESTION], "chosen": "Yes", "rejected": "No"}
    jsonl(here / "data.jsonl", [*rows, odd, odd | {"chosen": "Certainly"}])
    pairs = ["dpo.prompts_per_step=3", "dpo.max_length=256", "evaluation.responses=2", "dpo.epochs=1"]
    done = run_command("dpo", *SMALL, *pairs, "model.path=policy", "data.path=data.jsonl", cwd=here)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "2 refused by the chat template" in said
    assert "2 rows refused by the chat template, data.jsonl:9 first: " in said
    assert "(System role not supported)" in said and "it refuses system messages" in said
    check_policy(here / "run/policy", base, ["<end_of_turn>", "<eos>"])


def test_wrong_templates_are_one_line(here, run_command):
    write(here / "policy", "qwen2")
    jsonl(here / "data.jsonl", [{"prompt": f"What is {i}?"} for i in range(4)])
    jsonl(here / "odd.jsonl", [{"messages": [{"role": "system", "content": "x"}, QUESTION]}])
    (here / "half.jinja").write_text("{% for m in messages %}")
    write(here / "gemma", "gemma")
    write(here / "odd", "qwen2")
    (here / "odd/generation_config.json").write_text('{"eos_token_id": "x"}')
    right = ["model.path=policy", "data.path=data.jsonl"]
    for arguments, says in (
        (["model.template=gone.jinja"], "model.template: gone.jinja cannot be read (No such file"),
        (["model.template=half.jinja"], "model.template: half.jinja: the chat template is not Jinja (line 1"),
        (["model.template=openchat"], "model.path: "),
        (["model.template=chatml"], "model.template: 'chatml' is not a template; use auto, openchat, own"),
        (["model.template_kwargs=[1]"], "model.template_kwargs: [1] is of another kind"),
        (["model.template_kwargs={thinking: false}"], "model.template_kwargs: the chat template has no variable"),
        (["model.path=odd"], "model.path: odd: eos_token_id is ['x'], not ids; download it again"),
        (["model.path=gemma", "data.path=odd.jsonl"], "data.path: all 1 rows are refused by the chat template"),
    ):
        done = run_command("ppo", *SMALL, *PPO, *right, *arguments, cwd=here)
        assert done.returncode == 2, (arguments, done.stderr)
        assert done.stderr.strip().splitlines()[-1].startswith(f"error: {says}"), (arguments, done.stderr)
        assert not (here / "run").exists()


def test_pairs_that_differ_only_in_what_the_template_leaves_out_are_no_pairs(here, run_command):
    write(here / "policy", "qwen2")
    talk = [{"role": "user", "content": "Hi"}]
    chosen, rejected = ([*talk, {"role": "assistant", "content": f"<think>{x}</think>Yes"}] for x in ("Because", "No"))
    jsonl(here / "pairs.jsonl", [{"chosen": chosen, "rejected": rejected}] * 3)
    text = "message['content']"
    template = FAMILIES["qwen2"].template.replace(text, f"{text}.split('</think>')[-1]")
    (here / "strips.jinja").write_text(template)
    given = [
        "model.path=policy",
        "data.path=pairs.jsonl",
        "model.template=strips.jinja",
        "dpo.max_length=300",
        "evaluation.responses=2",
    ]
    done = run_command("dpo", *SMALL, *given, cwd=here)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: model.template: both answers of every pair are the same 300")
