"""Wrong inputs, command by command: one line that names the key or file and what to do, before anything expensive.

Here: that a command asks, a row for each command and reader. What a reader says of every kind of damage is tested where
it lives (`tests/data`, `tests/files`, `tests/evals`, `tests/selection`, `tests/models`), what the keys' own checks say
in `tests/config/test_keys.py`. A new command adds its right arguments to `RIGHT` in `conftest.py`, and rows.
"""

import math
import re
from importlib.util import find_spec

import pytest
import torch
from conftest import RIGHT
from spoiled import (
    Make,
    adapter,
    bert,
    calls,
    classifier_without_head,
    code_in,
    cut,
    folder,
    index,
    judging,
    leftover,
    no_end_of_turn,
    reward_tensors,
    rows,
    settings,
    spoiled,
    tensors,
    text,
    together,
    unranked,
    without,
)

HERE_POLICY, HERE_REWARD, HERE_RUN = "model.path={here}/policy", "reward.path={here}/reward", "run_dir={here}/run"
CALLS = "suites=[function_calling] function_calling.path={here} "
PROMPTS = "suites=[reward] reward_suite.path={here}/prompts.jsonl rollout.max_new_tokens=8 "
BENCH = (
    "suites=[mt_bench] mt_bench.path={here} mt_bench.max_new_tokens=4 mt_bench.judge.model=m "
    "mt_bench.judge.key_env=null "
)
JUDGE_AT = "mt_bench.judge.patience_s=0 mt_bench.judge.url=http://127.0.0.1:"
MINE = "reward=function reward.function=mine.py:score"
TERMS = "reward=terms reward.terms.m.kind=starling_7b reward.terms.m.path={reward} reward.terms.m.dtype=float32 "
OTHER = f"{TERMS} reward.terms.f.kind="
SERVED = "reward=server reward.patience_s=0 reward.url=http://127.0.0.1:"
MARGIN = "laser.measure=preference_margin preference.path={here}/data.jsonl "
DATA_FILE, PARQUET = "data.path={here}/data.jsonl", "data.path={here}/data.parquet"
LORA = "freeze.adapter=lora freeze.norms=false freeze.embeddings=false"
OTHER_RUN = "run_dir={here}/other"
UP = "model.layers.0.mlp.up_proj"
CHECKPOINT = "checkpoints/step_000002"
REFERENCE = '{"step": 0, "identity": {"base": "x", "data": "x", "dtype": "float32", "max_length": 256}}\n'
GOOD = {"prompt": "What is 1 and 1?"}
UNRELATED = [{"role": "user", "content": "What is 2 and 2?"}, {"role": "assistant", "content": "4"}]
RANKED = {"prompt": "Hi", "answers": [{"answer": "a", "model": "m", "rank": 1.0}]}
DEEP = "[" * 100_000
EVERY = " ".join(command for command in RIGHT if command != "export")  # which has no device
NOT_A_NUMBER = tensors(lambda held: held[f"{UP}.weight"].fill_(math.nan))
NO_WEIGHTS = spoiled("policy", "model.safetensors", None)
NO_HEAD = reward_tensors(lambda held: held.pop("v_head.weight"))
INDEX_TO_NOTHING = index({"model.norm.weight": "gone.safetensors"})
TWO = {"WORLD_SIZE": "2"}
SPACES = {"STARLING_REWARD_TOKEN": "two words"}


def row(
    commands: str,
    arguments: str,
    *says: str,
    make: Make | None = None,
    environment: dict[str, str] | None = None,
    after_loading: bool = False,
) -> list:
    """A wrong input of each of the commands. says: what the line must hold, alternatives between bars."""
    return [
        pytest.param(command, arguments, says, make, environment or {}, after_loading,
                     id=f"{command} {arguments[:60]} -> {says[0][:60]}")
        for command in commands.split()
    ]  # fmt: skip


COMMAND_LINE = [
    row("ppo export", "modl.path=x", "modl.path: no such key", "use one of"),
    row(EVERY, "cluster.device=tpu", "cluster.device: 'tpu'", "use one of: auto, cpu, cuda"),
    row("ppo rm dpo snr score serve_reward evaluate laser", "cluster.device=cuda",
        "cluster.device: no CUDA", "use cluster.device=cpu"),
    row("ppo evaluate laser", "prepare=nothing", "prepare: 'nothing'", "use one of: toy"),
    row("ppo", "+recipe=nope", "recipe: there is no 'nope'", "use one of"),
    row("ppo", "algorithm=dpo", "algorithm: there is no 'dpo'", "use one of"),
    row("rm dpo", "+recipe=small", "recipe: +recipe=small", "use python -m starling_train.ppo"),
    row("ppo", "--dry-run", "--dry-run", "section.key=value"),
    row("ppo", "name=[1", "name=[1", "quote"),
    row("ppo", "name='${{nope}}'", "name: ", "nope"),
    row("ppo", "model=null", "command line", "--help"),
    row("laser", "laser.layers=[one]", "laser.layers", "--help|--cfg"),
    row("export", "model.dtype=float16", "model: no such key|model.dtype: no such key", "use one of: run_dir"),
    row("compare", "-m", "-m: ", "compare.seeds", after_loading=True),  # Hydra has made its directory by then
    row("ppo", "-cd {here}/nowhere", "-cd: there is no directory ", "nowhere; give"),
    row("ppo", "-cd {here} +recipe=bad", "bad.yaml:", "repair", make=text("recipe/bad.yaml", "name: x\na:\n  - [1\n")),
    row("ppo", "", "WORLD_SIZE", "start with torchrun", environment=TWO),
    row("evaluate laser compare", "", "WORLD_SIZE: ", "without a launcher", environment=TWO),
]  # fmt: skip

POLICY = [
    row("ppo plan", "model.path=nobody/no-such-model", "model.path: 'nobody/no-such-model'", "download"),
    row("snr rm dpo", "model.path=nobody/no-such-model", "hub cache, and HF_HUB_OFFLINE keeps it from", "unset HF_HUB"),
    row("ppo plan", "model.path={here}/empty", "model.path: ", "config.json", "give", make=folder("empty")),
    row("ppo rm dpo plan", HERE_POLICY, "config.json", "download", make=cut("policy", "config.json")),
    *(
        row("ppo", HERE_POLICY, "model.path: ", "config.json", "download", make=make)
        for make in (
            spoiled("policy", "config.json", ""),
            spoiled("policy", "config.json", "[]"),
            spoiled("policy", "config.json", DEEP),
            settings("policy", hidden_size="wide"),
            settings("policy", model_type="nonsense"),
            settings("policy", model_type="custom", auto_map={"AutoConfig": "code.Config"}),
        )
    ),
    row("plan", HERE_POLICY, "config.json", "download", make=settings("policy", num_hidden_layers=0)),
    row("ppo", HERE_POLICY, "config.json: no model can be made", "download", make=settings("policy", hidden_act="no")),
    row("ppo plan", HERE_POLICY, "no causal language model of type 't5'", make=settings("policy", model_type="t5")),
    row("rm", HERE_POLICY, "gpt2", "use a Mistral or Llama", make=settings("policy", model_type="gpt2")),
    row("ppo", HERE_POLICY, "generation_config.json: not JSON", "download",
        make=spoiled("policy", "generation_config.json", "{")),
    # tokenizers
    row("ppo dpo", HERE_POLICY, "model.path: no usable tokenizer", "download", make=cut("policy", "tokenizer.json")),
    row("ppo", HERE_POLICY, "no usable tokenizer", "download", make=spoiled("policy", "tokenizer.json", "{}")),
    row("ppo dpo laser", HERE_POLICY, "model.path: ", "no <|end_of_turn|>", "model.template=FILE.jinja",
        make=no_end_of_turn),
    row("ppo", HERE_POLICY, "model.path: the tokenizer has ids up to", "use the tokenizer",
        make=settings("policy", vocab_size=100)),
    row("rm", HERE_POLICY, "rm.tokenizer: ", "give the tokenizer", make=settings("policy", vocab_size=100)),
    row("rm", "rm.kind=starling_34b", "rm.tokenizer: ", "<|im_start|>", "use Yi"),
    # weights
    row("ppo rm dpo snr laser compare", HERE_POLICY, "model.safetensors: truncated", "download",
        make=cut("policy", "model.safetensors")),
    row("ppo snr laser", HERE_POLICY, "model.path: ", "no weights", "download|a scan needs", make=NO_WEIGHTS),
    row("ppo", HERE_POLICY, "model.path: ", "no weights", "download",
        make=together(NO_WEIGHTS, folder("policy/model.safetensors"))),
    row("ppo rm dpo laser", HERE_POLICY, "model.path: ", "lacks 1 tensors, model.norm.weight", "download",
        make=without("model.norm.weight")),
    row("ppo", HERE_POLICY, "model.path: ", ".weight has shape", "config.json",
        make=settings("policy", vocab_size=33000)),
    row("ppo", HERE_POLICY, "model.path: ", "lacks 9 tensors, model.layers.4", "download",
        make=settings("policy", num_hidden_layers=5)),
    row("ppo", HERE_POLICY, "model.safetensors: tensor model.norm.weight is I8, a quantised type", "give the unquant",
        make=tensors(lambda held: held.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}))),
    row("snr laser", HERE_POLICY, "tensor model.layers.0", "nan", "repair", make=NOT_A_NUMBER, after_loading=True),
    row("ppo snr", HERE_POLICY, "model.safetensors.index.json: names gone.safetensors", "download",
        make=INDEX_TO_NOTHING),
    row("ppo snr", HERE_POLICY, "pytorch_model.bin: truncated, damaged or not only weights", "download",
        make=code_in("policy")),
    # what it is asked for
    row("ppo", "data.max_prompt_tokens=200000", "rollout.max_new_tokens: ", "positions", "lower"),
    row("dpo", "rollout.min_new_tokens=13", "rollout.min_new_tokens: 13 exceeds rollout.max_new_tokens=12", "lower it"),
    row("evaluate", PROMPTS + "rollout.min_new_tokens=9", "rollout.min_new_tokens: 9 exceeds", "lower it"),
    row("rm", "rm.max_length=200000", "rm.max_length: ", "positions", "lower"),
    row("dpo", "dpo.max_length=200000", "dpo.max_length: ", "positions", "lower"),
    row("ppo rm dpo", "model.attention=flash_attention_2", "model.attention: flash_attention_2", "use sdpa"),
    row("ppo dpo", "optim.eight_bit=true", "optim.eight_bit: needs", "use false"),
    row("plan", "optim.eight_bit=true cluster.zero_stage=1 plan.processes=2", "optim.eight_bit: ", "use"),
    row("ppo dpo", f"{LORA} model.load_in=4bit", "model.load_in: needs an NVIDIA GPU", "use null"),
]  # fmt: skip

REWARD = [
    row("ppo", "reward.path={policy}", "config.json is a mistral's", "check reward.path"),
    row("ppo score serve_reward evaluate", HERE_REWARD, "v_head.weight", "check reward.path", make=NO_HEAD),
    row("ppo", "reward.load_in=4bit", "reward.load_in: needs", "use null"),
    row("ppo dpo", "rollout=vllm_server rollout.url=http://127.0.0.1:9 rollout.weights_dir={here}/none",
        "rollout.weights_dir: ", "give one that the server sees"),
    row("evaluate", f"{PROMPTS}rollout=vllm_server rollout.url=http://127.0.0.1:9 rollout.weights_dir={{here}}/none",
        "rollout.weights_dir: ", "give one that the server sees", make=rows("prompts.jsonl", GOOD)),
    row("ppo dpo", "rollout=vllm", "rollout.engine: vllm not installed", "pip install 'starling-train[vllm]'")
    if find_spec("vllm") is None else [],
    row("ppo", "reward.device_map=auto", "reward.device_map: auto needs GPUs", "use null"),
    row("ppo", HERE_REWARD, "config.json: ", "download", make=cut("reward", "config.json")),
    row("ppo", HERE_REWARD, "has shape", "config.json", make=settings("reward", intermediate_size=128)),
    row("ppo", HERE_REWARD, "missing", "config.json", make=settings("reward", num_hidden_layers=5)),
    row("ppo", HERE_REWARD, "unknown", "config.json", make=settings("reward", num_hidden_layers=3)),
    row("ppo", HERE_REWARD, "pytorch_model.bin: not a readable file", "download",
        make=spoiled("reward", "pytorch_model.bin", b"\0" * 99)),
    row("ppo", HERE_REWARD, "pytorch_model.bin: not a readable file", "download", make=code_in("reward")),
    row("ppo", HERE_REWARD, "no usable tokenizer", "set reward.tokenizer", make=cut("reward", "tokenizer.json")),
    row("ppo", HERE_REWARD, "reward.tokenizer: ", "give the tokenizer", make=settings("reward", vocab_size=100)),
    row("ppo", "reward=starling_34b reward.path={reward}", "lacks <|im_start|>", "use Yi"),
    row("ppo", "reward=sequence_classification reward.path={reward}", "labels", "num_labels 1"),
    row("ppo", "reward=sequence_classification reward.path={here}/classifier", "score.weight missing",
        "check reward.path", make=classifier_without_head),
    row("ppo", "reward=sequence_classification reward.path={here}/classifier", "no chat template", "add",
        make=spoiled("classifier", "chat_template.jinja", None)),
    row("ppo", "reward=sequence_classification reward.path={here}/bert",
        "reward.max_length: 2048 is more than the 64 positions", "lower it", make=bert),
    # a server
    row("ppo score", SERVED + "{away}", "reward.url: http://127.0.0.1", "gave no scores for 0 s", "start the server"),
    row("ppo", SERVED + "{locked}", "reward.url: ", "401", "reward.token_env"),
    row("ppo", SERVED + "{other}", "reward.url: ", "404", "check reward.url"),
    row("ppo", SERVED + "{version}", "reward.url: ", "gave no scores", "reward.protocol"),
    row("evaluate", SERVED + "{many}", "reward.url: ", "gave 3 scores for 0 conversations"),
    row("ppo", SERVED + "{away}", "STARLING_REWARD_TOKEN: ", "spaces", environment=SPACES),
    # a function
    row("ppo score evaluate", MINE, "reward.function: ", "mine.py cannot be read", "check the path"),
    row("ppo score evaluate compare", MINE + " +reward.arguments.x=1", "reward.arguments.x: ", "it takes",
        make=text("mine.py", "def score(asked, y=1): return [y] * len(asked)\n")),
    row("ppo score evaluate compare", MINE, "mine.py:score gave 3 scores for ", "for each",
        make=text("mine.py", "def score(asked): return [1, 2, 3]\n")),
    row("ppo evaluate compare", MINE, "mine.py:score needs `truth`", "give the parameter a default",
        make=text("mine.py", "def score(asked, truth): return truth\n")),
    row("ppo", MINE, "mine.py:score raised KeyError: 'x' for conversation 0, 'What is 0 and 0?'", "debug=true",
        make=text("mine.py", "def score(asked): return {}['x']\n")),
    row("ppo score evaluate compare", OTHER + "function reward.terms.f.function=mine.py:score",
        "reward.terms.f.function: ", "mine.py cannot be read", "check the path"),
    row("ppo score evaluate", OTHER + "starling_7b reward.terms.f.path={policy}", "config.json is a mistral's",
        "check reward.terms.f.path"),
    row("ppo score evaluate", OTHER + "server reward.terms.f.patience_s=0 reward.terms.f.url=http://127.0.0.1:{away}",
        "reward.terms.f.url: http://127.0.0.1", "gave no scores for 0 s", "start the server"),
    row("ppo score", OTHER + "starling_7b reward.terms.f.pth=x", "reward.terms.f.pth: no such key",
        "did you mean reward.terms.f.path? use one of"),
    row("serve_reward", MINE, "reward.kind: a function is not served", "give the kind"),
    row("serve_reward", "reward.empty_response=0", "reward.empty_response: the server gives", "leave it out"),
]  # fmt: skip

TRAINING = "ppo rm dpo"
DATA = [
    row(TRAINING, DATA_FILE, "data.jsonl:2: ", "every line must be one JSON object",
        make=text("data.jsonl", '{"prompt": "hi"}\n{"prompt": \n')),
    row("ppo", DATA_FILE, "data.jsonl: no usable row is left", "check", make=text("data.jsonl", "")),
    row("ppo", PARQUET, "not a readable parquet file", "download", make=text("data.parquet", "PAR1 garbage")),
    row("ppo", "data.path=nobody/no-such-data", "data.path: 'nobody/no-such-data' is neither", "HF_HUB_OFFLINE",
        "download"),
    row(TRAINING, "data.exclude=[{here}/nowhere.jsonl]", "nowhere.jsonl: no such file", "check data.exclude"),
    row("ppo", "data.exclude=[{here}/prompts.jsonl]", "prompts.jsonl: no usable row is left", "data.exclude"),
    row("ppo dpo", "data.max_prompt_tokens=5", "data.max_prompt_tokens: 5 is less", "raise it"),
    row(TRAINING, "data.eval_prompts=500", "data.eval_prompts: 500", "lower it"),
    row("rm", DATA_FILE, "data.jsonl:1: a `rank` is 'best'", "must be a number",
        make=rows("data.jsonl", {"prompt": "Hi", "answers": [{"answer": "a", "rank": "best"}]})),
    row("rm", DATA_FILE, "data.path: ", "all 1 rows are without two answers", "every row needs",
        make=rows("data.jsonl", RANKED)),
    row("laser", "perplexity.path={here}/pairs.jsonl data.split=nonesuch", "perplexity.split: ", "use one of: train"),
    row(TRAINING, "data.split=nonesuch", "data.split: ", "has no split 'nonesuch'", "use one of: train"),
    row(TRAINING, "data.columns={{prompt:nonesuch}}", "data.columns: ", "has no column 'nonesuch' for prompt"),
    row(TRAINING, "data.columns={{promt:prompt}}", "data.columns: 'promt' is not a column", "use some of: prompt"),
    row("evaluate", "preference.split=nonesuch", "preference.split: ", "has no split 'nonesuch'", "use one of: train"),
    row("evaluate", "preference.columns={{chosen:nonesuch}}", "preference.columns: ", "has no column 'nonesuch'"),
    row("ppo", DATA_FILE, "no usable row is left", "prompt and chosen contradict each other (first ", "check",
        make=rows("data.jsonl", GOOD | {"chosen": UNRELATED, "rejected": UNRELATED})),
    row("rm", "data.path={here}/data.csv", "data.csv:2: 1 cells, but the first line names 2", "quote",
        make=text("data.csv", "prompt,chosen\nx\n")),
    row("dpo", DATA_FILE, "data.jsonl:1: `chosen` alone", "a pair needs",
        make=rows("data.jsonl", GOOD | {"chosen": "a"})),
    *(
        row("dpo", DATA_FILE, "data.path: ", "all 1 rows are without", "`chosen`", make=rows("data.jsonl", GOOD | more))
        for more in ({"chosen": "a", "rejected": " a"}, {"chosen": "", "rejected": "b"}, {}, RANKED)
    ),
]  # fmt: skip

SELECTION = [
    row("snr ppo dpo", f"{HERE_POLICY} freeze.head=true", "freeze.head: ", "head and embeddings are one tensor",
        "both or neither", make=settings("policy", tie_word_embeddings=True)),
    row("ppo rm dpo snr", "freeze.method=snr freeze.top_percent=10", "freeze.top_percent: 10 selects no matrix",
        "raise it"),
    row("ppo rm dpo snr plan", "freeze.method=layers freeze.layers=[99]", "freeze.layers: the model has no layer 99",
        "0 to 3"),
    row("ppo", "freeze.max_trainable=3", "freeze.max_trainable: 3", "raise it"),
    row("ppo", "freeze.lowest_layer=99", "freeze.top_percent: ", "lower freeze.lowest_layer"),
    row("ppo dpo snr laser", "freeze.scan={here}/scan.json", "freeze.scan: ", "make it with",
        make=rows("scan.json", {"a": {"snr": "high", "type": "b"}})),
    row("rm", "freeze.method=snr freeze.scan={here}/scan.json", "freeze.scan: ", "make it with",
        make=rows("scan.json", {"a": {"snr": "high", "type": "b"}})),
    row("ppo", "freeze.scan={here}/scan.json", "scan.json: not JSON", "download", make=text("scan.json", DEEP)),
    row("ppo", "freeze.scan={here}/scan.json", "freeze.scan: ", "give the scan of this model",
        make=rows("scan.json", {UP: {"snr": 1.0, "type": "mlp.up_proj"}})),
    row("snr", "spectra=[nothing]", "spectra: the model has no matrix nothing", "its first is"),
    row("snr", "compare={here}/scan.json", "compare: ", "not an SNR scan", "make it", make=text("scan.json", "{}")),
]  # fmt: skip

RUN = [
    row("ppo rm dpo snr evaluate laser compare", "run_dir={here}/file", "run_dir: ", "is a file", "give",
        make=text("file", "mine")),
    row("ppo", "run_dir={here}/file/below", "run_dir: ", "is a file", "give", make=text("file", "mine")),
    row("ppo snr evaluate laser", "run_dir=/proc/run", "run_dir: ", "/proc", "give another"),
    row("ppo rm dpo laser", OTHER_RUN, "run_dir: ", "other settings", "give another",
        make=text("other/config.yaml", "seed: 5\n")),
    row("compare", OTHER_RUN, "run_dir: ", "seed_1 holds a run with other settings", "give another",
        make=text("other/runs/none/seed_1/config.yaml", "seed: 5\n")),
    *(
        row("ppo", OTHER_RUN, "run_dir: ", "config.yaml", "give another", make=text("other/config.yaml", content))
        for content in ("[1, 2", "- 1\n")
    ),
    row("ppo", OTHER_RUN, "run_dir: ", "summary.json", "give another",
        make=together(text("other/summary.json", "{"), text("other/report.html", ""))),
    row("snr", OTHER_RUN, "run_dir: ", "holds a training run", "another run_dir", make=text("other/metrics.jsonl", "")),
    row("dpo", OTHER_RUN, "run_dir: ", "of another model", "another run_dir",
        make=text("other/reference.jsonl", REFERENCE)),
    *(
        row("dpo", OTHER_RUN, "run_dir: line 1 of ", "is damaged", "another run_dir",
            make=text("other/reference.jsonl", content))
        for content in ("{}\n", DEEP + "\n")
    ),
    row("laser", OTHER_RUN, "run_dir: ", "start.json", "is damaged", "give another",
        make=text("other/start.json", "{")),
    *(
        row("evaluate", OTHER_RUN, "run_dir: ", "holds no results", "another",
            make=text("other/evaluation.json", content))
        for content in ("", '{"results": [3]}')
    ),
    row(TRAINING, "logging.wandb=online", "logging.wandb: online, but there is no login", "wandb login"),
    row("ppo", "+evaluation.functions.gold=no.such.module:f", "evaluation.functions.gold: cannot import",
        "check the name"),
    row("ppo dpo", "evaluation.suites=[function_calling] evaluation.function_calling.path={here}", "BFCL_v4", "give"),
]  # fmt: skip

SCORE = [
    row("score", "output={here}", "output: ", "is a directory", "give a file"),
    row("score", "output={here}/asked.jsonl", "output: ", "is the input", "give another"),
    row("score", "output={here}/prompts.jsonl", "output: ", "`score` did not write it", "give another"),
    row("score", "output={here}/prompts.jsonl/below", "output: ", "is a file", "give another"),
    row("score", "output=/proc/scores.jsonl", "output: nothing can be written into /proc", "give another"),
    *(
        row("score", "output={here}/s.jsonl", "output: ", "s.jsonl.progress.json is damaged", "give another",
            make=together(text("s.jsonl", ""), text("s.jsonl.progress.json", content)))
        for content in ("{}", DEEP)
    ),
]  # fmt: skip

SERVE = [
    row("serve_reward", "port={taken}", "port: cannot listen on", "give another"),
    row("serve_reward", "host=no.such.host.invalid token_env=null", "host: 'no.such.host.invalid'", "try 127.0.0.1"),
    row("serve_reward", "host=.. token_env=null", "host: '..'", "try 127.0.0.1"),
    row("serve_reward", "host=0.0.0.0", "host: others can reach 0.0.0.0", "STARLING_REWARD_TOKEN"),
    row("serve_reward", "host=''", "host: ", "STARLING_REWARD_TOKEN"),
    row("serve_reward", "", "STARLING_REWARD_TOKEN: ", "spaces", environment=SPACES),
]  # fmt: skip

EVALUATE = [
    row("evaluate", "preference.path={here}/data.jsonl", "preference.path: ", "data.jsonl: no comparison in it", "give",
        make=rows("data.jsonl", GOOD)),
    row("evaluate", "preference.path={here}/data.arrow", "preference.path: ", "data.arrow: not one of .parquet, .jsonl",
        make=text("data.arrow", "prompt,chosen,rejected\n")),
    row("evaluate", "preference.path={here}/data.parquet", "preference.path: ", "not a readable parquet",
        make=text("data.parquet", "PAR1")),
    row("evaluate", CALLS, "function_calling.path: ", "no BFCL_v4", "give"),
    row("evaluate", CALLS, "function_calling.path: ", "BFCL_v4_irrelevance.json:1: ", "must be",
        make=text("BFCL_v4_irrelevance.json", "{\n")),
    row("evaluate", CALLS + HERE_POLICY, "model.path: ", "lacks 1 tensors", "download",
        make=together(without("model.norm.weight"), calls)),
    row("evaluate", "suites=[function_calling,preference] function_calling.path={here} " + HERE_REWARD, "v_head.weight",
        "check reward.path", make=together(NO_HEAD, calls)),
    row("evaluate", PROMPTS + "reward_suite.path={here}/data.jsonl", "reward_suite.path: ", "data.jsonl:1: neither",
        make=rows("data.jsonl", {"text": "a"})),
    row("evaluate", PROMPTS + "reward_suite.base={here}/policy", "reward_suite.base: ", "lacks 1 tensors", "download",
        make=without("model.norm.weight")),
    row("evaluate", PROMPTS + "reward_suite.base={here}/policy", "reward_suite.base: the tokenizer has ids", "use the",
        make=settings("policy", vocab_size=100)),
    row("evaluate", PROMPTS + "rollout.max_new_tokens=200000", "rollout.max_new_tokens: a prompt and its answer",
        "positions; lower"),
    row("evaluate", "suites=[perplexity] perplexity.path={here}/odd.txt", "perplexity.path: ", "not UTF-8", "save",
        make=text("odd.txt", b"\xff\xfe")),
    row("evaluate", BENCH, "mt_bench.path: ", "judge_prompts.jsonl: no such file", "unchanged"),
    row("evaluate", BENCH + "mt_bench.max_new_tokens=100000", "mt_bench.max_new_tokens: two turns",
        "positions; lower it", make=judging),
    row("evaluate", BENCH + "mt_bench.judge.key_env=NOT_THERE_KEY",
        "mt_bench.judge.key_env: the environment variable N", "put the judge's key", make=judging),
    row("evaluate", BENCH + "mt_bench.judge.key_env=MY_KEY", "MY_KEY: ", "spaces", make=judging,
        environment={"MY_KEY": "two words"}),
    row("evaluate", BENCH + JUDGE_AT + "{away}/v1", "mt_bench.judge.url: http://127.0.0.1", "gave no judgment for 0 s",
        "run the same command again", make=judging, after_loading=True),
    row("evaluate", BENCH + JUDGE_AT + "{version}/v1", "mt_bench.judge: m at ", "not a chat completion", "check",
        make=judging, after_loading=True),
]  # fmt: skip

LASER = [
    row("laser", f"laser.percent=50 laser.modules=[{UP}]", "laser.percent: 50 % of 1 matrices is none", "raise it"),
    row("laser", "laser.modules=[nothing]", "laser.modules: the model has no matrix with nothing", "there are: model."),
    row("laser", "laser.layers=[4]", "laser.layers: the model has no matrix with 4", "there are: 0, 1, 2, 3"),
    row("laser", "laser.types=[up_proj]", "laser.types: the model has no matrix with up_proj", "mlp.up_proj"),
    row("laser", f"laser.modules=[{UP}] laser.layers=[1]", "laser.modules: no matrix is in", "widen"),
    row("laser", "laser.window=1000000", "laser.window: 1000000 is more than", "lower it"),
    row("laser", "perplexity.path={here}/data.txt", "perplexity.path: ", "data.txt: no text in it", "give",
        make=text("data.txt", " \n")),
    row("laser", "perplexity.path={here}/empty", "perplexity.path: ", "no .parquet file", "give", make=folder("empty")),
    row("laser", MARGIN, "preference.path: ", "data.jsonl: no comparison in it", "give", make=rows("data.jsonl", GOOD)),
    row("laser", MARGIN, "preference.path: ", "data.jsonl: no comparison in it (1 rows", "data.jsonl:1 first", "give",
        make=rows("data.jsonl", {"prompt": "a", "chosen": "b", "rejected": "b"})),
    row("laser", MARGIN + "laser.window=8", "preference.path: ", "none of 1 pairs has 8 tokens at most", "give",
        make=rows("data.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c"})),
    row("laser", "freeze.scan={here}/scan.json", "freeze.scan: ", "has no rank of model.layers.0", "give", "leave",
        make=unranked),
]  # fmt: skip

EXPORT = [
    *(
        row("export", f"run_dir={{here}}/{name}", "run_dir: ", "no config.yaml", "give", make=folder("empty"))
        for name in ("prompts.jsonl", "empty")
    ),
    *(
        row("export", HERE_RUN, "run_dir: ", "config.yaml", "put the file back|give",
            make=spoiled("run", "config.yaml", content))
        for content in ("[1, 2", "- 1\n", "model: {path: [1]}\n", "model: {path: x}\nrm: 3\n")
    ),
    row("export", HERE_RUN, "run_dir: ", "no checkpoint", "give", make=text("run/config.yaml", "seed: 1\n")),
    row("export", "checkpoint=step_000007", "checkpoint: ", "step_000007", "one of: step_000002"),
    row("export", "checkpoint=../checkpoints/step_000002", "checkpoint: ", "one of: step_000002"),
    row("export", "checkpoint=best", "checkpoint: the run has no held-out score", "use newest"),
    *(
        row("export", HERE_RUN, "checkpoint: ", name, "use another one", make=cut("run", f"{CHECKPOINT}/{name}"))
        for name in ("trainable.safetensors", "manifest.json")
    ),
    row("export", HERE_RUN, "checkpoint: ", "state.json", "lacks",
        make=spoiled("run", f"{CHECKPOINT}/state.json", "{}")),
    row("export", "output={here}/prompts.jsonl", "output: ", "is a file", "give"),
    row("export", "output={here}/prompts.jsonl/below", "output: ", "is a file", "give"),
    row("export", "output={policy}", "output: ", "not empty", "give a new"),
    row("export", "output=/proc/model", "output: nothing can be written into /proc", "give another"),
    row("export", "base={reward}", "base: ", "is not the model that"),
    row("export", "base={here}/policy", "base: ", "is not the model that", "give base=DIR",
        make=tensors(lambda held: held["model.norm.weight"].add_(1))),
    row("export", "base={here}/policy", "base: ", "is not the model that", "give base=DIR",
        make=settings("policy", rms_norm_eps=1e-3)),
    row("export", "base={here}/policy", "no usable tokenizer", "download", make=cut("policy", "tokenizer.json")),
]  # fmt: skip

COMPARE = [
    row("compare", "compare.strategies.wide=[]", "compare.strategies.wide: no such key", "+compare.strategies.wide="),
    row("compare", "+compare.strategies.wide=[freeze.top_percent=75]", "wide=", "quote odd values"),
    row("compare", "'+compare.strategies.wide=[\"freeze.top_percent=0\"]' compare.only=[wide]",
        "compare.strategies.wide: freeze.top_percent", "above 0"),
    row("compare", "seed=7", "seed: ", "use compare.first_seed=7"),
]  # fmt: skip

BESIDE = ("holds an adapter of org/base (adapter_config.json and adapter_model.safetensors) beside a model's weights",
          "remove adapter_config.json and adapter_model.safetensors")  # fmt: skip
ALONE = "/adapter holds an adapter of org/base", "not a model; merge it first: `AutoPeftModelFor"
ADAPTERS = [
    row("ppo rm dpo snr plan laser compare", HERE_POLICY, "model.path: ", *BESIDE, make=leftover("policy")),
    row("evaluate", CALLS + HERE_POLICY, "model.path: ", *BESIDE, make=together(leftover("policy"), calls)),
    row("ppo score serve_reward evaluate plan compare", HERE_REWARD, "reward.path: ", *BESIDE,
        make=leftover("reward")),
    row("ppo score serve_reward evaluate", "reward=sequence_classification reward.path={here}/classifier",
        "reward.path: ", *BESIDE, make=leftover("classifier")),
    row("export", "base={here}/policy", "base: ", *BESIDE, make=leftover("policy")),
    row("evaluate", PROMPTS + "reward_suite.base={here}/policy", "reward_suite.base: ", *BESIDE,
        make=leftover("policy")),
    row("ppo rm dpo snr plan laser compare", "model.path={here}/adapter", "model.path: ", *ALONE,
        make=adapter("adapter")),
    row("ppo score serve_reward evaluate plan", "reward.path={here}/adapter", "reward.path: ", *ALONE,
        make=adapter("adapter")),
    row("ppo score evaluate plan", OTHER + "starling_7b reward.terms.f.path={here}/adapter", "reward.terms.f.path: ",
        *ALONE, make=adapter("adapter")),
    row("ppo snr dpo", "model.path={here}/adapter dry_run=true", "model.path: ", *ALONE, make=adapter("adapter")),
    row("ppo snr", f"{HERE_POLICY} dry_run=true", "model.path: ", *BESIDE, make=leftover("policy")),
]  # fmt: skip

TABLES = (COMMAND_LINE, POLICY, REWARD, DATA, SELECTION, RUN, SCORE, SERVE, EVALUATE, LASER, EXPORT, COMPARE, ADAPTERS)
ROWS = [one for table in TABLES for rows_of_commands in table for one in rows_of_commands]


@pytest.mark.parametrize("command,arguments,says,make,environment,after_loading", ROWS)
def test_wrong_input_is_one_line_before_anything_expensive(
    command, arguments, says, make, environment, after_loading, world, refused, monkeypatch
):
    if make:
        make(world)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    line = refused(command, arguments, after_loading)
    for part in says:
        assert re.search("|".join(map(re.escape, part.split("|"))), line), (part, line)


@pytest.mark.parametrize("command", RIGHT)
def test_the_right_arguments_are_right(command, run):
    """Otherwise the rows above could all be refused for another reason."""
    code, lines, out = run(command, "dry_run=true")
    assert (code, lines) == (None, []) and out


def test_every_command_has_rows():
    counts = {command: sum(one.values[0] == command for one in ROWS) for command in RIGHT}
    assert min(counts.values()) >= 5, counts
