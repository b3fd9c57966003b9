"""Everything that a user can get wrong, command by command: exit code 2, one line that names the key or file and what
to do, found before anything is scanned, loaded or trained, and nothing written.

A new command adds its right arguments to `RIGHT`, its schema to `SCHEMAS`, and rows to `CASES`.
"""

import dataclasses
import json
import math
import re
import signal
import socket

import pytest
import torch
from reward_server import Scripted
from wrong_inputs import (
    Case,
    World,
    code_in,
    cut,
    folder,
    index,
    link,
    no_end_of_turn,
    reward_tensors,
    rows,
    settings,
    spoiled,
    table,
    tensors,
    text,
    together,
    without,
)

from starling_train import compare, dpo, evaluate, export, laser, plan, ppo, rm, score, serve_reward, snr
from starling_train.config import compare as config_compare
from starling_train.config import laser as config_laser
from starling_train.config import plan as config_plan
from starling_train.config import score as config_score
from starling_train.config import serve_reward as config_serve_reward
from starling_train.config.dpo import DpoConfig, check_dpo
from starling_train.config.evaluate import EvaluateConfig, check_evaluate
from starling_train.config.fields import UserError
from starling_train.config.ppo import PpoConfig, check
from starling_train.config.rm import RmConfig, check_rm
from starling_train.config.snr import SnrConfig, check_snr

# command -> arguments that are right; a case's own come behind them and win
RIGHT = {
    "ppo": "model.path={policy} reward.path={reward} data.path={here}/prompts.jsonl model.dtype=float32 "
    "reward.dtype=float32 cluster.device=cpu freeze.top_percent=50 algorithm.steps=3 algorithm.prompts_per_step=8 "
    "algorithm.minibatches=2 rollout.max_new_tokens=12 data.eval_prompts=6 data.max_prompt_tokens=256 run_dir=run",
    "rm": "model.path={policy} data.path={here}/ranked.jsonl model.dtype=float32 cluster.device=cpu "
    "data.eval_prompts=2 rm.max_length=256 run_dir=run",
    "dpo": "model.path={policy} data.path={here}/ranked.jsonl model.dtype=float32 cluster.device=cpu "
    "freeze.top_percent=50 data.eval_prompts=2 data.max_prompt_tokens=128 dpo.max_length=256 "
    "evaluation.responses=2 rollout.max_new_tokens=12 run_dir=run",
    "snr": "model.path={policy} cluster.device=cpu freeze.top_percent=50 run_dir=run",
    "score": "reward.path={reward} reward.dtype=float32 cluster.device=cpu input={here}/asked.jsonl "
    "output={here}/scores.jsonl",
    "serve_reward": "reward.path={reward} reward.dtype=float32 cluster.device=cpu port=0",
    "evaluate": "suites=[preference] preference.path={here}/pairs.jsonl reward.path={reward} model.path={policy} "
    "cluster.device=cpu run_dir=run",
    "plan": "model.path={policy} reward.path={reward} cluster.device=cpu freeze.top_percent=50",
    "laser": "model.path={policy} model.dtype=float32 cluster.device=cpu perplexity.path={here}/text.txt "
    "preference.path={here}/pairs.jsonl run_dir=run",
    "export": "run_dir={run} output={here}/model",
    "compare": "model.path={policy} reward.path={reward} data.path={here}/prompts.jsonl model.dtype=float32 "
    "reward.dtype=float32 cluster.device=cpu freeze.top_percent=50 rollout.max_new_tokens=12 data.eval_prompts=6 "
    "data.max_prompt_tokens=256 compare.skills=[eval/length_mean] run_dir=run",
}
MAIN = {
    "ppo": ppo.main, "rm": rm.main, "dpo": dpo.main, "snr": snr.main, "score": score.main,
    "serve_reward": serve_reward.main, "evaluate": evaluate.main, "plan": plan.main, "laser": laser.main,
    "export": export.main, "compare": compare.main,
}  # fmt: skip
SCHEMAS = {
    "ppo": (PpoConfig, check), "rm": (RmConfig, check_rm), "dpo": (DpoConfig, check_dpo), "snr": (SnrConfig, check_snr),
    "score": (config_score.ScoreConfig, config_score.check),
    "serve_reward": (config_serve_reward.ServeConfig, config_serve_reward.check),
    "evaluate": (EvaluateConfig, check_evaluate), "plan": (config_plan.PlanConfig, config_plan.check),
    "laser": (config_laser.LaserConfig, config_laser.check),
    "compare": (config_compare.CompareConfig, config_compare.check),
}  # fmt: skip
EXPENSIVE = (
    "starling_train.models.causal_lm.load_causal_lm",
    "starling_train.models.reward.model.load",
    "starling_train.models.reward.start.start",
    "starling_train.selection.scan.scan",
)

HERE_POLICY, HERE_REWARD = "model.path={here}/policy", "reward.path={here}/reward"
CALLS = "suites=[function_calling] function_calling.path={here} "
PROMPTS = "suites=[reward] reward_suite.path={here}/prompts.jsonl rollout.max_new_tokens=8 "
TEXT = "suites=[perplexity] perplexity.path="
JUDGED = "mt_bench.judge.model=m mt_bench.judge.key_env=null "
BENCH = "suites=[mt_bench] mt_bench.path={here} mt_bench.max_new_tokens=4 " + JUDGED
JUDGE_AT = "mt_bench.judge.patience_s=0 mt_bench.judge.url=http://127.0.0.1:"
SERVED = "reward=server reward.patience_s=0 reward.url=http://127.0.0.1:"
GOOD = {"prompt": "What is 1 and 1?"}
RANKED = {"prompt": "Hi", "answers": [{"answer": "a", "model": "m", "rank": 1.0}]}
DEEP = "[" * 100_000


def a(command: str, arguments: str, *says: str, **more) -> Case:
    return Case(command, arguments, says, **more)


def every(arguments: str, *says: str, but: tuple[str, ...] = (), **more) -> list[Case]:
    return [a(command, arguments, *says, **more) for command in RIGHT if command not in but]


COMMAND_LINE = [
    *every("modl.path=x", "modl.path: no such key", "use one of"),
    *every("+recipe=nope", "recipe: there is no 'nope'", "use one of"),
    *every("--dry-run", "--dry-run", "section.key=value"),
    *every("seed=many", "seed: ", "--help|--cfg", but=("export",)),
    *every("cluster.device=tpu", "cluster.device: 'tpu'", "use one of: auto, cpu, cuda", but=("export",)),
    *every("cluster.device=cuda", "cluster.device: no CUDA", "use cluster.device=cpu", but=("plan", "export")),
    *every("model.dtype=int3", "model.dtype: 'int3'", "use one of", but=("export",)),
    *every("name=[1", "name=[1", "quote"),
    *every("prepare=nothing", "prepare: 'nothing'", "use one of: toy", but=("export",)),
    a("ppo", "-cd {here} +recipe=bad", "bad.yaml:", "repair", make=text("recipe/bad.yaml", "name: x\na:\n  - [1\n")),
    a("ppo", "-cd {here}/nowhere", "nowhere", "--help"),
    a("ppo", "name='${{nope}}'", "name: ", "nope"),
    a("ppo", "model=null", "command line", "--help"),
    a("ppo", "name=' '", "name: empty", "give"),
    a("rm", "+recipe=small", "optim.critic_learning_rate: no such key", "use one of"),
    a("ppo", "", "WORLD_SIZE", "start with torchrun", environment=(("WORLD_SIZE", "2"),)),
]

POLICY = [
    a("ppo", "model.path=''", "model.path: not set", "give"),
    *[
        a(command, "model.path={here}/nowhere", "model.path: no such directory", "give")
        for command in ("ppo", "rm", "dpo", "snr")
    ],
    *[a(command, "model.path={long}", "model.path: ", "check it") for command in ("ppo", "rm", "dpo", "snr")],
    *[
        a(command, "model.path=nobody/no-such-model", "model.path: 'nobody/no-such-model'", "download")
        for command in ("ppo", "rm", "dpo", "snr")
    ],
    a("ppo", "model.path={here}/prompts.jsonl", "model.path: ", "give"),
    a("ppo", "model.path={here}/gone", "model.path: no such directory", make=link("gone")),
    a("ppo", "model.path={here}/empty", "model.path: ", "config.json", "give", make=folder("empty")),
    *[
        a(command, HERE_POLICY, "model.path: ", "config.json", "download", make=make)
        for command in ("ppo", "rm", "dpo")
        for make in (
            cut("policy", "config.json"),
            spoiled("policy", "config.json", ""),
            spoiled("policy", "config.json", "[]"),
            spoiled("policy", "config.json", DEEP),
            settings("policy", hidden_size="wide"),
            settings("policy", model_type="nonsense"),
        )
    ],
    a("ppo", HERE_POLICY, "config.json: no model can be made", "download", make=settings("policy", hidden_act="nope")),
    a(
        "ppo",
        HERE_POLICY,
        "model.path: model type 'gpt2'",
        "use a Mistral or Llama",
        make=settings("policy", model_type="gpt2"),
    ),
    a(
        "ppo",
        HERE_POLICY,
        "model.path: ",
        "config.json",
        "download",
        make=settings("policy", model_type="custom", auto_map={"AutoConfig": "code.Config"}),
    ),
    a(
        "ppo",
        HERE_POLICY,
        "model.path: the tokenizer has ids up to",
        "use the tokenizer",
        make=settings("policy", vocab_size=1000),
    ),
    a("rm", HERE_POLICY, "rm.tokenizer: ", "give the tokenizer", make=settings("policy", vocab_size=1000)),
    *[
        a(
            command,
            HERE_POLICY,
            "model.path: ",
            "embed_tokens.weight has shape",
            "config.json",
            make=settings("policy", vocab_size=33000),
        )
        for command in ("ppo", "rm", "dpo")
    ],
    a("ppo", HERE_POLICY, "model.path: ", "has shape", "config.json", make=settings("policy", intermediate_size=128)),
    a(
        "ppo",
        HERE_POLICY,
        "model.path: ",
        "lacks 9 tensors, model.layers.4",
        "download",
        make=settings("policy", num_hidden_layers=5),
    ),
    a("ppo", HERE_POLICY, "model.path: no usable tokenizer", "download", make=cut("policy", "tokenizer.json")),
    a(
        "ppo",
        HERE_POLICY,
        "model.path: no usable tokenizer",
        "download",
        make=spoiled("policy", "tokenizer.json", "{}"),
    ),
    a("ppo", HERE_POLICY, "model.path: ", "<|end_of_turn|>", "use an Openchat", make=no_end_of_turn),
    a(
        "ppo",
        HERE_POLICY,
        "generation_config.json: not JSON",
        "download",
        make=spoiled("policy", "generation_config.json", "{"),
    ),
    *[
        a(command, HERE_POLICY, "model.safetensors: truncated or damaged", "download", make=make)
        for command in ("ppo", "rm", "dpo", "snr")
        for make in (
            cut("policy", "model.safetensors"),
            spoiled("policy", "model.safetensors", b"\xff" * 99),
            spoiled("policy", "model.safetensors", ""),
        )
    ],
    *[
        a(
            command,
            HERE_POLICY,
            "model.path: ",
            "no weights",
            "download",
            make=spoiled("policy", "model.safetensors", None),
        )
        for command in ("ppo", "rm", "dpo")
    ],
    a("snr", HERE_POLICY, "model.path: ", "no", make=spoiled("policy", "model.safetensors", None)),
    a(
        "ppo",
        HERE_POLICY,
        "model.path: ",
        "no weights",
        "download",
        make=together(spoiled("policy", "model.safetensors", None), folder("policy/model.safetensors")),
    ),
    *[
        a(
            command,
            HERE_POLICY,
            "model.path: ",
            "lacks 1 tensors, model.norm.weight",
            "download",
            make=without("model.norm.weight"),
        )
        for command in ("ppo", "rm", "dpo")
    ],
    a(
        "ppo",
        HERE_POLICY,
        "model.safetensors: tensor model.norm.weight is I8, a quantised type",
        "give the unquant",
        make=tensors(lambda held: held.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)})),
    ),
    a(
        "snr",
        HERE_POLICY,
        "model.safetensors: tensor model.layers.0",
        "nan",
        "repair",
        after_loading=True,
        make=tensors(lambda held: held["model.layers.0.mlp.up_proj.weight"].fill_(math.nan)),
    ),
    *[
        a(command, HERE_POLICY, "model.safetensors.index.json: ", says, "download", make=make)
        for command in ("ppo", "snr")
        for says, make in (
            ("names gone.safetensors", index({"model.norm.weight": "gone.safetensors"})),
            ("names tensor nothing", index({"nothing": "model-00001-of-00002.safetensors"})),
            ("no weight_map", index([])),
            ("no weight_map", index({})),
            ("names no file", index({"model.norm.weight": 3})),
        )
    ],
    a(
        "ppo",
        HERE_POLICY,
        "model.safetensors.index.json: not JSON",
        "download",
        make=spoiled("policy", "model.safetensors.index.json", "{"),
    ),
    *[
        a(
            command,
            HERE_POLICY,
            "pytorch_model.bin: truncated, damaged or not only weights",
            "download",
            make=code_in("policy"),
        )
        for command in ("ppo", "rm", "dpo", "snr")
    ],
    a("ppo", "data.max_prompt_tokens=200000", "rollout.max_new_tokens: ", "positions", "lower"),
    a("rm", "rm.max_length=200000", "rm.max_length: ", "positions", "lower"),
    a("ppo", "model.attention=flash_attention_2", "model.attention: needs", "use sdpa"),
    a("rm", "model.attention=flash_attention_2", "model.attention: needs", "use sdpa"),
    a("ppo", "optim.eight_bit=true", "optim.eight_bit: needs", "use false"),
    a("rm", "rm.tokenizer={here}/nowhere", "rm.tokenizer: no such directory", "give"),
    a("rm", "rm.kind=starling_34b", "rm.tokenizer: ", "<|im_start|>", "use Yi"),
    a("rm", "rm.fresh=true freeze.method=snr", "rm.fresh: ", "use freeze=none"),
    a("rm", "rm.kind=chess", "rm.kind: 'chess'", "use one of"),
]

PLAN = [
    a("plan", "plan.processes=65", "plan.processes: 65 exceeds algorithm.prompts_per_step=64", "lower"),
    a("plan", "plan.processes=0", "plan.processes: 0 is out of range", "give"),
    a("plan", "plan.gpu_gb=nan", "plan.gpu_gb: ", "give"),
    a("plan", "plan.procs=2", "plan.procs: no such key", "use one of"),
    a("plan", "optim.eight_bit=true cluster.zero_stage=1 plan.processes=2", "optim.eight_bit: ", "use"),
    a("plan", "model.path={here}/nowhere", "model.path: no such directory", "give"),
    a("plan", "model.path={long}", "model.path: ", "check it"),
    a("plan", "model.path=nobody/no-such-model", "model.path: 'nobody/no-such-model'", "download"),
    a("plan", "model.path={here}/empty", "model.path: ", "config.json", "give", make=folder("empty")),
    *[
        a("plan", HERE_POLICY, "config.json", "download", make=make)
        for make in (
            cut("policy", "config.json"),
            spoiled("policy", "config.json", "[]"),
            settings("policy", hidden_size="wide"),
            settings("policy", num_hidden_layers=0),
        )
    ],
    a("plan", HERE_POLICY, "model type 'gpt2'", "use a Mistral or Llama", make=settings("policy", model_type="gpt2")),
    a("plan", "reward.path={here}/nowhere", "reward.path: no such directory", "give"),
    a("plan", "freeze=layers freeze.layers=[99]", "freeze.layers: the model has no layer 99", "only"),
]

REWARDED = ("ppo", "score", "serve_reward", "evaluate")
REWARD = [
    *[a(command, "reward.path=''", "reward.path: not set", "give") for command in REWARDED],
    *[a(command, "reward.path={here}/nowhere", "reward.path: no such directory", "give") for command in REWARDED],
    *[a(command, "reward.path={policy}", "config.json is a mistral's", "check reward.path") for command in REWARDED],
    *[a(command, HERE_REWARD, "config.json: ", "download", make=cut("reward", "config.json")) for command in REWARDED],
    *[
        a(
            command,
            HERE_REWARD,
            "v_head.weight",
            "check reward.path",
            make=reward_tensors(lambda held: held.pop("v_head.weight")),
        )
        for command in REWARDED
    ],
    *[a(command, "reward.load_in=4bit", "reward.load_in: needs", "use null") for command in REWARDED],
    *[a(command, "reward.device_map=auto", "reward.device_map: auto needs GPUs", "use null") for command in REWARDED],
    a("ppo", HERE_REWARD, "has shape", "config.json", make=settings("reward", intermediate_size=128)),
    a("ppo", HERE_REWARD, "missing", "config.json", make=settings("reward", num_hidden_layers=5)),
    a("ppo", HERE_REWARD, "unknown", "config.json", make=settings("reward", num_hidden_layers=3)),
    a(
        "ppo",
        HERE_REWARD,
        "config.json is a mistral's",
        "check reward.path",
        make=settings("reward", model_type="mistral"),
    ),
    a(
        "ppo",
        HERE_REWARD,
        "pytorch_model.bin: not a readable file",
        "download",
        make=spoiled("reward", "pytorch_model.bin", b"\0" * 99),
    ),
    a(
        "ppo",
        HERE_REWARD,
        "pytorch_model.bin: not a readable file",
        "download",
        make=cut("reward", "pytorch_model.bin"),
    ),
    a("ppo", HERE_REWARD, "pytorch_model.bin: not a readable file", "download", make=code_in("reward")),
    a("ppo", HERE_REWARD, "no usable tokenizer", "set reward.tokenizer", make=cut("reward", "tokenizer.json")),
    a("ppo", HERE_REWARD, "reward.tokenizer: ", "give the tokenizer", make=settings("reward", vocab_size=1000)),
    a("ppo", "reward.tokenizer={here}/nowhere", "reward.tokenizer: no such directory", "give"),
    a("ppo", "reward=starling_34b reward.path={reward}", "lacks <|im_start|>", "use Yi"),
    a("ppo", "reward=starling_34b reward.position=card", "reward.position: card", "use last_token"),
    a("ppo", "reward=sequence_classification reward.path={reward}", "labels", "num_labels 1"),
    a(
        "ppo",
        "reward=sequence_classification reward.path={here}/classifier",
        "score.weight missing",
        "check reward.path",
        make=lambda world: without_head(world),
    ),
    a(
        "ppo",
        "reward=sequence_classification reward.path={here}/classifier",
        "no chat template",
        "add",
        make=spoiled("classifier", "chat_template.jinja", None),
    ),
    a("ppo", "reward.trailing_newline=true", "reward.trailing_newline: ", "use false"),
    a("ppo", "reward.max_length=12", "reward.max_length: 12 has no place", "raise it"),
    a(
        "ppo",
        "reward=sequence_classification reward.path={here}/bert",
        "reward.max_length: 2048 is more than the 64 positions",
        "lower it",
        make=lambda world: bert(world),
    ),
    a("ppo", "reward.kind=oracle", "reward.kind: 'oracle'", "use one of"),
    # a server
    a("ppo", "reward=server", "reward.url: not set", "give"),
    a("ppo", "reward=server reward.url=localhost:8000", "reward.url: 'localhost:8000' is no address", "give http://"),
    a("ppo", "reward=server reward.url=ftp://host", "reward.url: 'ftp://host' is no address", "give http://"),
    a("ppo", "reward=server reward.url=http://", "reward.url: ", "give http://"),
    a("ppo", "reward=server reward.url=http://host:99999", "reward.url: ", "give http://"),
    a(
        "ppo",
        "reward=server 'reward.url=\"http://host/?token=x\"'",
        "reward.url: has something behind",
        "reward.token_env",
    ),
    a("ppo", "reward=server reward.url=http://me:hunter2@host", "reward.url: it holds a user name", "reward.token_env"),
    a("ppo", "reward.token_env=hunter2", "reward.token_env: what is given is no name", "give its name"),
    a("serve_reward", "token_env=hunter2", "token_env: what is given is no name", "give its name"),
    a("ppo", "reward=server reward.url=http://h reward.protocol=openrlhf", "reward.tokenizer: not set", "template"),
    a("ppo", SERVED + "{away}", "reward.url: http://127.0.0.1", "gave no scores for 0 s", "start the server"),
    a("score", SERVED + "{away}", "reward.url: http://127.0.0.1", "start the server"),
    a("ppo", SERVED + "{locked}", "reward.url: ", "401", "reward.token_env"),
    a("ppo", SERVED + "{other}", "reward.url: ", "404", "check reward.url"),
    a("ppo", SERVED + "{version}", "reward.url: ", "gave no scores", "reward.protocol"),
    a("ppo", SERVED + "{list}", "reward.url: ", "gave no scores", "reward.protocol"),
    a("evaluate", SERVED + "{many}", "reward.url: ", "gave 3 scores for 0 conversations"),
    a(
        "ppo",
        SERVED + "{away}",
        "STARLING_REWARD_TOKEN: ",
        "spaces",
        environment=(("STARLING_REWARD_TOKEN", "two words"),),
    ),
]


def judging(world: World) -> None:
    """MT-Bench's three files with a question each."""
    from starling_train.evals.mt_bench import bench

    templates = [
        {"name": name, "system_prompt": "Judge.", "prompt_template": " ".join(f"{{{f}}}" for f in bench.FIELDS[key])}
        for key, name in bench.JUDGE_PROMPTS.items()
    ]
    rows("judge_prompts.jsonl", *templates)(world)
    rows("question.jsonl", {"question_id": 1, "category": "stem", "turns": ["Why?", "Why not?"]})(world)
    rows("reference_answer_gpt-4.jsonl", {"question_id": 1, "choices": [{"turns": ["So.", "Thus."]}]})(world)


def without_head(world: World) -> None:
    from safetensors.torch import load_file, save_file

    file = world.copy("classifier") / "model.safetensors"
    held = load_file(file)
    del held["score.weight"]
    save_file(held, file, metadata={"format": "pt"})


def bert(world: World) -> None:
    """A classifier of learned positions."""
    from reward_checkpoints import PIECES, small_tokenizer
    from transformers import BertConfig, BertForSequenceClassification

    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = BertConfig(vocab_size=len(PIECES), max_position_embeddings=64, num_labels=1, **size)
    BertForSequenceClassification(config).save_pretrained(world.here / "bert")
    small_tokenizer().save_pretrained(world.here / "bert")


DATA_FILE = "data.path={here}/data.jsonl"
PARQUET = "data.path={here}/data.parquet"
DATA = [
    a("ppo", "data.path=''", "data.path: not set", "give"),
    *[
        a(command, f"data.path={{here}}/{name}", name, "check data.path")
        for command in ("ppo", "rm", "dpo")
        for name in ("nowhere.parquet", "nowhere.jsonl")
    ],
    a("ppo", "data.path={long}", "x", "check data.path"),
    a("ppo", "data.path={here}/gone.jsonl", "gone.jsonl: no such file", "check data.path", make=link("gone.jsonl")),
    a(
        "ppo",
        "data.path={here}/data.csv",
        "data.csv: neither .parquet nor .jsonl",
        "convert",
        make=text("data.csv", "prompt\nhi\n"),
    ),
    a("ppo", "data.path={here}/empty", "empty: no .parquet file", "give", make=folder("empty")),
    *[
        a(command, DATA_FILE, "data.jsonl: no usable row is left", "check", make=text("data.jsonl", content))
        for command in ("ppo", "rm", "dpo")
        for content in ("", "\n\n", '{"prompt": " "}\n')
    ],
    *[
        a(command, DATA_FILE, "data.jsonl:2: ", says, make=text("data.jsonl", b'{"prompt": "hi"}\n' + line + b"\n"))
        for command in ("ppo", "rm", "dpo")
        for line, says in (
            (b'{"prompt": ', "every line must be one JSON object"),
            (b"[1]", "every line must be one JSON object"),
            (DEEP.encode(), "every line must be one JSON object"),
            (b'{"prompt": "\xff"}', "save the file as UTF-8"),
            (b'{"prompt": "\\ud800"}', "repair or remove"),
            (b'{"text": "hi"}', "every row needs"),
            (b'{"prompt": 3}', "must be text"),
            (b'{"messages": "hi"}', "must be a list"),
            (b'{"messages": [{"role": "robot", "content": "hi"}]}', "use system, user or assistant"),
            (b'{"messages": [{"role": "user", "content": 3}]}', "must be text"),
        )
    ],
    a(
        "rm",
        DATA_FILE,
        "data.jsonl:1: a `rank` is 'best'",
        "must be a number",
        make=rows("data.jsonl", {"prompt": "Hi", "answers": [{"answer": "a", "rank": "best"}]}),
    ),
    a(
        "rm",
        DATA_FILE,
        "data.jsonl:1: `answers` must be a list",
        make=rows("data.jsonl", {"prompt": "Hi", "answers": 3}),
    ),
    a(
        "rm",
        DATA_FILE,
        "data.path: ",
        "all 1 rows are without two answers",
        "every row needs",
        make=rows("data.jsonl", RANKED),
    ),
    *[
        a(command, PARQUET, "data.parquet: not a readable parquet file", "download", make=text("data.parquet", content))
        for command in ("ppo", "rm", "dpo")
        for content in ("", "PAR1 garbage")
    ],
    a("ppo", PARQUET, "data.parquet: ", "download", make=lambda world: broken_parquet(world)),
    a("ppo", PARQUET, "data.parquet: no usable row", "check", make=table("data.parquet", prompt=[""])),
    a("ppo", PARQUET, "data.parquet: column prompt is missing", "give a file", make=table("data.parquet", promt=["a"])),
    a("ppo", PARQUET, "data.parquet: column prompt is int64", "must be string", make=table("data.parquet", prompt=[1])),
    a(
        "rm",
        PARQUET,
        "data.parquet: column answers is missing",
        "give a file",
        make=table("data.parquet", prompt=["a"]),
    ),
    a(
        "rm",
        PARQUET,
        "data.parquet: column answers is ",
        "must be a list",
        make=table("data.parquet", prompt=["a"], answers=["b"]),
    ),
    a("ppo", "data.path=nobody/no-such-data", "nobody/no-such-data: no such directory here", "hub"),
    *[
        a(command, "data.exclude=[{here}/nowhere.jsonl]", "nowhere.jsonl: no such file", "check data.exclude")
        for command in ("ppo", "rm", "dpo")
    ],
    a("ppo", "data.exclude=[{here}/prompts.jsonl]", "prompts.jsonl: no usable row is left", "data.exclude"),
    a("ppo", "data.exclude=[{here}/no.txt]", "no.txt: not UTF-8", "save", make=text("no.txt", b"\xff")),
    a("ppo", "data.exclude=[{here}/no.jsonl]", "no.jsonl:1: ", "see data.exclude", make=rows("no.jsonl", {"a": 1})),
    a("ppo", "data.max_prompt_tokens=5", "data.max_prompt_tokens: 5 is less", "raise it"),
    *[a(command, "data.eval_prompts=500", "data.eval_prompts: 500", "lower it") for command in ("ppo", "rm", "dpo")],
]


def broken_parquet(world: World) -> None:
    """A file whose end is right, and whose pages are not."""
    table("data.parquet", prompt=[f"question {i} " * 9 for i in range(2000)])(world)
    file = world.here / "data.parquet"
    content = bytearray(file.read_bytes())
    content[4:400] = b"\xff" * 396
    file.write_bytes(content)


PAIR = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
REFERENCE = '{"step": 0, "identity": {"base": "x", "data": "x", "dtype": "float32", "max_length": 256}}\n'
PAIRS = [
    *[
        a("dpo", DATA_FILE, "data.jsonl:1: ", says, "a pair needs", make=rows("data.jsonl", row))
        for row, says in (
            ({"prompt": "Hi", "chosen": "a"}, "`chosen` alone"),
            ({"prompt": "Hi", "rejected": "a"}, "`rejected` alone"),
        )
    ],
    *[
        a("dpo", DATA_FILE, "data.jsonl:1: ", says, "give text", make=rows("data.jsonl", PAIR | changed))
        for changed, says in (
            ({"chosen": 3}, "`chosen` is no answer"),
            ({"rejected": None}, "`rejected` is no answer"),
            ({"rejected": []}, "`rejected` is no answer"),
            ({"chosen": [{"role": "user", "content": "a"}]}, "`chosen` is no answer"),
        )
    ],
    *[
        a("dpo", DATA_FILE, "data.path: ", "all 1 rows are without", "`chosen`", make=rows("data.jsonl", row))
        for row in (PAIR | {"rejected": " a"}, PAIR | {"chosen": ""}, GOOD, RANKED)
    ],
    a("dpo", "data.max_prompt_tokens=5", "data.max_prompt_tokens: 5 is less", "raise it"),
    a("dpo", "dpo.max_length=128", "dpo.max_length: 128 has no place", "raise it"),
    a("dpo", "dpo.max_length=200000", "dpo.max_length: ", "positions", "lower"),
    a("dpo", "dpo.beta=0", "dpo.beta: 0 is out of range", "give"),
    a("dpo", "dpo.loss=hinge", "dpo.loss: 'hinge'", "use one of"),
    a("dpo", "dpo.pairs=worst", "dpo.pairs: 'worst'", "use one of"),
    a("dpo", "dpo.label_smoothing=0.5", "dpo.label_smoothing: ", "give less"),
    a("dpo", "dpo.loss=ipo dpo.label_smoothing=0.1", "dpo.label_smoothing: ", "use 0"),
    a("dpo", "evaluation.responses=3", "evaluation.responses: 3 exceeds", "lower it"),
    a("dpo", "evaluation.suites=[chess]", "evaluation.suites: 'chess'", "use some of"),
    a("dpo", "evaluation.suites=[function_calling] evaluation.function_calling.path={here}", "BFCL_v4", "give"),
    a("dpo", "+recipe=small", "optim.critic_learning_rate: no such key", "use one of"),
    a("dpo", "model.attention=flash_attention_2", "model.attention: needs", "use sdpa"),
    a("dpo", "optim.eight_bit=true", "optim.eight_bit: needs", "use false"),
    a("dpo", "optim.betas=[0.9]", "optim.betas: ", "give two numbers"),
    a("dpo", HERE_POLICY, "model.path: ", "<|end_of_turn|>", "use an Openchat", make=no_end_of_turn),
    a("dpo", HERE_POLICY, "model.path: no usable tokenizer", "download", make=cut("policy", "tokenizer.json")),
    a("dpo", "run_dir={here}/other", "run_dir: ", "of another model", "another run_dir",
      make=text("other/reference.jsonl", REFERENCE)),
    *[
        a("dpo", "run_dir={here}/other", "run_dir: line 1 of ", "is damaged", "another run_dir",
          make=text("other/reference.jsonl", content))
        for content in ("{}\n", "nothing\n", DEEP + "\n")
    ],
]  # fmt: skip

SETTINGS = [
    *[a("ppo", f"freeze.top_percent={value}", "freeze.top_percent: ", "give") for value in ("-1", "101", "0", "nan")],
    *[
        a(command, "freeze.method=snr freeze.top_percent=10", "freeze.top_percent: 10 selects no matrix", "raise it")
        for command in ("ppo", "rm", "dpo", "snr")
    ],
    *[
        a(command, "freeze.method=layers", "freeze.layers: empty", "give layer numbers")
        for command in ("ppo", "rm", "dpo", "snr")
    ],
    *[
        a(command, "freeze.method=layers freeze.layers=[99]", "freeze.layers: the model has no layer 99", "0 to 3")
        for command in ("ppo", "rm", "dpo", "snr")
    ],
    *[
        a(command, f"freeze.method=snr freeze.adapter=lora {setting}", says, remedy)
        for command in ("ppo", "rm", "dpo")
        for setting, says, remedy in (
            ("freeze.norms=true freeze.embeddings=false", "freeze.norms: adapters are for matrices", "leave it out"),
            ("freeze.norms=false freeze.embeddings=true", "freeze.embeddings: adapters are for", "leave it out"),
            ("freeze.norms=false freeze.embeddings=false freeze.lora.rank=0", "freeze.lora.rank: 0", "give"),
            (
                "freeze.norms=false freeze.embeddings=false freeze.max_trainable=9",
                "freeze.max_trainable: ",
                "top_percent",
            ),
        )
    ],
    a("ppo", "freeze.adapter=qlora", "freeze.adapter: 'qlora'", "use one of"),
    a("ppo", "freeze.adapter=lora freeze.lora.dropout=0.1", "freeze.lora.dropout: ", "use 0"),
    a("ppo", "freeze.adapter=lora algorithm.critic=separate", "algorithm.critic: separate", "use head"),
    a("ppo", "model.load_in=4bit", "model.load_in: weights in 4bit cannot train", "use freeze.adapter=lora"),
    a("ppo", "freeze.adapter=lora model.load_in=4bit", "model.load_in: needs an NVIDIA GPU", "use null"),
    a("dpo", "freeze.adapter=lora model.load_in=4bit", "model.load_in: needs an NVIDIA GPU", "use null"),
    a("ppo", "freeze.adapter=lora model.load_in=8bit", "model.load_in: the 8-bit products", "use 4bit"),
    a("ppo", "freeze.adapter=lora model.load_in=4bit cluster.zero_stage=3", "model.load_in: quantised", "zero_stage=2"),
    a("rm", "model.load_in=4bit", "model.load_in: ", "leave it out"),
    a(
        "rm",
        "rm.fresh=true freeze.adapter=lora freeze.norms=false freeze.embeddings=false",
        "rm.fresh: freeze.adapter would freeze random weights",
        "without an adapter",
    ),
    a("ppo", "freeze.max_trainable=3", "freeze.max_trainable: 3", "raise it"),
    a("ppo", "freeze.lowest_layer=99", "freeze.top_percent: ", "lower freeze.lowest_layer"),
    *[
        a(command, "freeze.method=snr freeze.scan={here}/scan.json", says, "make it with", make=make)
        for command in ("ppo", "rm", "dpo", "snr")
        for says, make in (
            ("freeze.scan: ", None),
            ("freeze.scan: ", folder("scan.json")),
            ("freeze.scan: ", text("scan.json", "{}")),
            ("freeze.scan: ", rows("scan.json", {"a": {"snr": "high", "type": "b"}})),
            ("freeze.scan: ", rows("scan.json", {"a": {"snr": 1.0, "type": "b", "shape": 5}})),
        )
    ],
    a("ppo", "freeze.scan={here}/scan.json", "scan.json: not JSON", "download", make=text("scan.json", DEEP)),
    a(
        "ppo",
        "freeze.scan={here}/scan.json",
        "freeze.scan: ",
        "give the scan of this model",
        make=rows("scan.json", {"model.layers.0.mlp.up_proj": {"snr": 1.0, "type": "mlp.up_proj"}}),
    ),
    a("ppo", "algorithm.minibatches=9", "algorithm.minibatches: 9 exceeds", "lower it"),
    a("ppo", "algorithm.critic_warmup_steps=3", "algorithm.critic_warmup_steps: 3", "lower it"),
    a("ppo", "algorithm.kl.target=6 algorithm.kl.coefficient=0", "algorithm.kl.coefficient: 0", "start above 0"),
    a("ppo", "algorithm=dpo", "algorithm: there is no 'dpo'", "use one of"),
    a("ppo", "optim.betas=[0.9]", "optim.betas: ", "give two numbers"),
    a("rm", "optim.betas=[0.9,1.0]", "optim.betas: ", "give two numbers"),
    a("ppo", "rollout.stop_strings=['']", "rollout.stop_strings: ", "leave it out"),
    a("ppo", "evaluation.suites=[chess]", "evaluation.suites: 'chess'", "use some of"),
    a("ppo", "evaluation.suites=[function_calling]", "evaluation.function_calling.path: not set", "give"),
    a("ppo", "evaluation.suites=[function_calling] evaluation.function_calling.path={here}", "BFCL_v4", "give"),
    a("ppo", "+evaluation.functions.gold=nocolon", "evaluation.functions.gold: ", "package.module:function"),
    a(
        "ppo",
        "+evaluation.functions.gold=no.such.module:f",
        "evaluation.functions.gold: cannot import",
        "check the name",
    ),
    *[
        a(command, "logging.wandb=online", "logging.wandb: online, but there is no login", "wandb login")
        for command in ("ppo", "rm", "dpo")
    ],
    *[
        a(command, "run_dir={here}/file", "run_dir: ", "is a file", "give", make=text("file", "mine"))
        for command in ("ppo", "rm", "dpo", "snr", "evaluate")
    ],
    *[
        a(command, "run_dir={here}/file/below", "run_dir: ", "is a file", "give", make=text("file", "mine"))
        for command in ("ppo", "rm", "dpo", "snr", "evaluate")
    ],
    *[
        a(command, "run_dir=/proc/run", "run_dir: ", "/proc", "give another")
        for command in ("ppo", "rm", "dpo", "snr", "evaluate")
    ],
    *[
        a(
            command,
            "run_dir={here}/other",
            "run_dir: ",
            "other settings",
            "give another",
            make=text("other/config.yaml", "seed: 5\n"),
        )
        for command in ("ppo", "rm", "dpo")
    ],
    *[
        a(
            command,
            "run_dir={here}/other",
            "run_dir: ",
            "config.yaml",
            "give another",
            make=text("other/config.yaml", content),
        )
        for command in ("ppo", "rm", "dpo")
        for content in ("", "[1, 2", "- 1\n")
    ],
    *[
        a(
            command,
            "run_dir={here}/other",
            "run_dir: ",
            "summary.json",
            "give another",
            make=together(text("other/summary.json", "{"), text("other/report.html", "")),
        )
        for command in ("ppo", "rm", "dpo")
    ],
]

FILES = [
    # snr
    a("snr", "run_dir={here}/other", "run_dir: ", "holds a training run", "another run_dir",
      make=text("other/metrics.jsonl", "")),
    a("snr", "compare={here}/nowhere.json", "compare: ", "does not exist", "make it with"),
    a("snr", "compare={here}/scan.json", "compare: ", "is no SNR scan", "make it with", make=text("scan.json", "{}")),
    a("snr", "spectra=[nothing]", "spectra: the model has no matrix nothing", "its first is"),
    a("snr", "freeze.dialect=latin", "freeze.dialect: 'latin'", "use one of"),
    # score
    a("score", "input=null", "input: not set", "give"),
    a("score", "output=null", "output: not set", "give"),
    a("score", "input={here}/nowhere.jsonl", "input: no file", "give"),
    a("score", "input={here}", "input: no file", "give"),
    a("score", "input={long}", "input: ", "give|check"),
    a("score", "output={here}", "output: ", "is a directory", "give a file"),
    a("score", "output={here}/asked.jsonl", "output: ", "is the input", "give another"),
    a("score", "output={here}/prompts.jsonl", "output: ", "`score` did not write it", "give another"),
    a("score", "output={here}/prompts.jsonl/below", "output: ", "is a file", "give another"),
    a("score", "output=/proc/scores.jsonl", "output: nothing can be written into /proc", "give another"),
    *[
        a("score", "output={here}/s.jsonl", "output: ", "s.jsonl.progress.json is damaged", "give another",
          make=together(text("s.jsonl", ""), text("s.jsonl.progress.json", content)))
        for content in ("", "[]", "{}", '{"settings": 3}', DEEP)
    ],
    # serve_reward
    a("serve_reward", "port={taken}", "port: cannot listen on", "give another"),
    a("serve_reward", "port=70000", "port: 70000 is out of range", "from 0 to 65535"),
    a("serve_reward", "host=no.such.host.invalid token_env=null", "host: 'no.such.host.invalid'", "try 127.0.0.1"),
    a("serve_reward", "host=.. token_env=null", "host: '..'", "try 127.0.0.1"),
    a("serve_reward", "host=0.0.0.0", "host: others can reach 0.0.0.0", "STARLING_REWARD_TOKEN"),
    a("serve_reward", "host=''", "host: ", "STARLING_REWARD_TOKEN"),
    a("serve_reward", "reward=server reward.url=http://127.0.0.1:1", "reward.kind: a server", "give the kind"),
    a("serve_reward", "", "STARLING_REWARD_TOKEN: ", "spaces", environment=(("STARLING_REWARD_TOKEN", "two words"),)),
    # evaluate
    a("evaluate", "suites=[chess]", "suites: 'chess'", "use some of"),
    a("evaluate", "suites=[]", "suites: none", "give"),
    a("evaluate", "preference.path=null", "preference.path: not set", "give"),
    a("evaluate", "preference.path={here}/nowhere.jsonl", "preference.path: no such file", "give"),
    a("evaluate", "preference.path={here}/data.jsonl", "preference.path: ", "data.jsonl:1: no preference", "give",
      make=rows("data.jsonl", GOOD)),
    a("evaluate", "preference.path={here}/data.jsonl", "preference.path: ", "no comparison in it",
      make=text("data.jsonl", "")),
    a("evaluate", "preference.path={here}/data.parquet", "preference.path: ", "not a readable parquet",
      make=text("data.parquet", "PAR1")),
    a("evaluate", CALLS, "function_calling.path: ", "no BFCL_v4", "give"),
    *[
        a("evaluate", CALLS, "function_calling.path: ", "BFCL_v4_irrelevance.json:1: ", remedy,
          make=text("BFCL_v4_irrelevance.json", line + "\n"))
        for line, remedy in (
            ("{", "must be"), (DEEP, "must be"), ("[]", "must be"), ('{"id": "a"}', "give"),
            ('{"id": "a", "question": [[{"role": 1}]], "function": [{}]}', "give"),
        )
    ],
    a("evaluate", CALLS, "no such file", "give", make=rows("BFCL_v4_multiple.json", {"id": "a"})),
    a("evaluate", CALLS + HERE_POLICY, "model.path: ", "lacks 1 tensors", "download", make=together(
        without("model.norm.weight"), lambda world: calls(world))),
    a("evaluate", "suites=[function_calling,preference] function_calling.path={here} " + HERE_REWARD, "v_head.weight",
      "check reward.path", make=together(
        reward_tensors(lambda held: held.pop("v_head.weight")), lambda world: calls(world))),
    a("evaluate", CALLS + "model.path=''", "model.path: not set", "give"),
    a("evaluate", "suites=[reward] data.path=''", "reward_suite.path: not set", "give prompts"),
    a("evaluate", PROMPTS + "reward_suite.path={here}/nowhere.jsonl", "reward_suite.path: ", "no such file"),
    a("evaluate", PROMPTS + "reward_suite.path={here}/data.jsonl", "reward_suite.path: ", "data.jsonl:1: neither",
      make=rows("data.jsonl", {"text": "a"})),
    a("evaluate", PROMPTS + "reward_suite.path={here}/data.jsonl", "reward_suite.path: ", "no usable row",
      make=text("data.jsonl", "")),
    a("evaluate", PROMPTS + "reward_suite.rows=0", "reward_suite.rows: 0 is out of range", "1 or more"),
    a("evaluate", PROMPTS + "reward_suite.base={here}/nowhere", "reward_suite.base: no such directory", "give"),
    a("evaluate", PROMPTS + "reward_suite.base=''", "reward_suite.base: empty", "or null"),
    a("evaluate", PROMPTS + "reward_suite.base={here}/policy", "reward_suite.base: ", "lacks 1 tensors", "download",
      make=without("model.norm.weight")),
    a("evaluate", PROMPTS + "reward_suite.base={here}/policy", "reward_suite.base: the tokenizer has ids", "use the",
      make=settings("policy", vocab_size=1000)),
    a("evaluate", PROMPTS + "rollout.max_new_tokens=200000", "rollout.max_new_tokens: a prompt and its answer",
      "positions; lower"),
    a("evaluate", PROMPTS + "reward.path={here}/nowhere", "reward.path: no such directory", "give"),
    a("evaluate", "suites=[perplexity]", "perplexity.path: not set", "give a text file"),
    a("evaluate", TEXT + "{here}/nowhere.txt", "perplexity.path: ", "no such file", "give"),
    a("evaluate", TEXT + "{here}/empty.txt", "perplexity.path: ", "no text in it", "give",
      make=text("empty.txt", " \n")),
    a("evaluate", TEXT + "{here}/odd.txt", "perplexity.path: ", "not UTF-8", "save",
      make=text("odd.txt", b"\xff\xfe")),
    a("evaluate", TEXT + "{here}/a.jsonl", "perplexity.path: ", "a.jsonl:1: `text` is not a string", "give",
      make=rows("a.jsonl", {"text": 3})),
    a("evaluate", TEXT + "{here}/asked.jsonl perplexity.window=1", "perplexity.window: 1 is out of range", "2 or more"),
    a("evaluate", "suites=[mt_bench] mt_bench.judge.model=m", "mt_bench.path: not set", "question.jsonl"),
    a("evaluate", BENCH + "mt_bench.path={here}/nowhere", "mt_bench.path: ", "no such directory", "give"),
    a("evaluate", BENCH, "mt_bench.path: ", "judge_prompts.jsonl: no such file", "unchanged"),
    a("evaluate", BENCH, "mt_bench.path: ", "question.jsonl:1: `turns` are not two", "unchanged",
      make=together(judging, rows("question.jsonl", {"question_id": 1, "category": "stem", "turns": ["one"]}))),
    a("evaluate", BENCH + "mt_bench.judge.model=null", "mt_bench.judge.model: not set", "give"),
    a("evaluate", BENCH + "mt_bench.judge.url=gpt", "mt_bench.judge.url: 'gpt' is no address", "http://HOST:PORT"),
    a("evaluate", BENCH + "mt_bench.judge.url=http://me:hunter2@h/v1", "mt_bench.judge.url: it holds", "key_env"),
    a("evaluate", BENCH + "mt_bench.judge.key_env=hunter2", "mt_bench.judge.key_env: what is given is no name", "name"),
    a("evaluate", BENCH + "mt_bench.judge.prompt_price=3", "mt_bench.judge.completion_price: not set", "both"),
    a("evaluate", BENCH + "mt_bench.max_new_tokens=0", "mt_bench.max_new_tokens: 0 is out of range", "1 or more"),
    a("evaluate", BENCH + "mt_bench.max_new_tokens=100000", "mt_bench.max_new_tokens: two turns", "positions; lower it",
      make=judging),
    a("evaluate", BENCH + "mt_bench.judge.key_env=NOT_THERE_KEY", "mt_bench.judge.key_env: the environment variable N",
      "put the judge's key", make=judging),
    a("evaluate", BENCH + "mt_bench.judge.key_env=MY_KEY", "MY_KEY: ", "spaces", make=judging,
      environment=(("MY_KEY", "two words"),)),
    a("evaluate", BENCH + JUDGE_AT + "{away}/v1", "mt_bench.judge.url: http://127.0.0.1", "gave no judgment for 0 s",
      "run the same command again", make=judging, after_loading=True),
    a("evaluate", BENCH + JUDGE_AT + "{locked}/v1", "mt_bench.judge.url: ", "refuses (401: no token)", "key_env",
      make=judging, after_loading=True),
    a("evaluate", BENCH + JUDGE_AT + "{other}/v1", "mt_bench.judge.url: ", "refuses (404", "mt_bench.judge.model",
      make=judging, after_loading=True),
    a("evaluate", BENCH + JUDGE_AT + "{version}/v1", "mt_bench.judge: m at ", "no chat completion", "check",
      make=judging, after_loading=True),
    a("evaluate", "suites=[lm_eval]", "lm_eval.tasks: none", "give some"),
    a("evaluate", "", "WORLD_SIZE: 2 processes", "without a launcher", environment=(("WORLD_SIZE", "2"),)),
    *[
        a("evaluate", "run_dir={here}/other", "run_dir: ", "holds no results", "another",
          make=text("other/evaluation.json", content))
        for content in ("", "[1, 2]", '{"results": [3]}')
    ],
]  # fmt: skip

OF_TEXT, BY_MARGIN = (
    "perplexity.path={here}/data.txt",
    "laser.measure=preference_margin preference.path={here}/data.jsonl",
)
UP = "model.layers.0.mlp.up_proj"
LASER = [
    a("laser", "model.path=''", "model.path: not set", "give"),
    a("laser", "model.path={here}/nowhere", "model.path: no such directory", "give"),
    a("laser", HERE_POLICY, "model.path: ", "<|end_of_turn|>", "use an Openchat", make=no_end_of_turn),
    a("laser", HERE_POLICY, "model.path: ", "lacks 1 tensors", "download", make=without("model.norm.weight")),
    a("laser", HERE_POLICY, "model.safetensors: truncated", "download", make=cut("policy", "model.safetensors")),
    a("laser", HERE_POLICY, "model.path: ", "no weights", "download",
      make=spoiled("policy", "model.safetensors", None)),
    a("laser", HERE_POLICY, "tensor model.layers.0", "nan", "repair", after_loading=True,
      make=tensors(lambda held: held[f"{UP}.weight"].fill_(math.nan))),
    a("laser", "laser.measure=beauty", "laser.measure: 'beauty'", "use one of: perplexity, preference_margin"),
    a("laser", "model.load_in=4bit", "model.load_in: a 4bit model", "use null"),
    a("laser", "laser.percent=0", "laser.percent: 0 selects nothing", "give"),
    a("laser", f"laser.percent=50 laser.modules=[{UP}]", "laser.percent: 50 % of 1 matrices is none", "raise it"),
    a("laser", "laser.modules=[nothing]", "laser.modules: the model has no matrix with nothing", "there are: model."),
    a("laser", f"laser.modules=[{UP}.weight]", "laser.modules: the model has no matrix with", "there are: model."),
    a("laser", "laser.layers=[4]", "laser.layers: the model has no matrix with 4", "there are: 0, 1, 2, 3"),
    a("laser", "laser.types=[up_proj]", "laser.types: the model has no matrix with up_proj", "mlp.up_proj"),
    a("laser", f"laser.modules=[{UP}] laser.layers=[1]", "laser.modules: no matrix is in", "widen"),
    a("laser", "laser.window=1000000", "laser.window: 1000000 is more than", "lower it"),
    a("laser", "laser.layers=[one]", "laser.layers", "--help|--cfg"),
    a("laser", "perplexity.path=null", "perplexity.path: not set", "give"),
    a("laser", "perplexity.path={here}/nowhere.txt", "perplexity.path: ", "nowhere.txt: no such file", "give"),
    a("laser", "perplexity.path={here}/nowhere", "perplexity.path: ", "nowhere: no such file", "give"),
    a("laser", OF_TEXT, "perplexity.path: ", "data.txt: no text in it", "give", make=text("data.txt", " \n")),
    a("laser", OF_TEXT, "perplexity.path: ", "data.txt: not UTF-8", "save", make=text("data.txt", b"\xff\xfe")),
    a("laser", "perplexity.path={here}", "perplexity.path: ", "no .parquet file", "give"),
    a("laser", "perplexity.path={here}/data.jsonl", "perplexity.path: ", "data.jsonl:1: `text` is not a string", "give",
      make=rows("data.jsonl", {"text": 3})),
    a("laser", "perplexity.path={here}/data.jsonl", "perplexity.path: ", "data.jsonl:2: no conversation", "give",
      make=rows("data.jsonl", {"text": "a"}, {"txt": "b"})),
    a("laser", "perplexity.path={here}/data.jsonl", "perplexity.path: ", "data.jsonl:1: ", "half a surrogate",
      make=text("data.jsonl", '{"text": "\\ud800"}\n')),
    a("laser", "laser.measure=preference_share preference.path=null", "preference.path: not set", "give"),
    a("laser", "laser.measure=preference_share preference.path={here}/nowhere", "preference.path: ",
      "no such file or directory", "give"),
    a("laser", BY_MARGIN, "preference.path: ", "data.jsonl: comparison 1: ", "same text", "repair",
      make=rows("data.jsonl", {"prompt": "a", "chosen": "b", "rejected": "b"})),
    a("laser", BY_MARGIN, "preference.path: ", "data.jsonl:1: no preference", "give", make=rows("data.jsonl", GOOD)),
    a("laser", BY_MARGIN, "preference.path: ", "no comparison in it", make=text("data.jsonl", "")),
    a("laser", BY_MARGIN + " laser.window=8", "preference.path: ", "none of 1 pairs has 8 tokens at most", "give",
      make=rows("data.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c"})),
    a("laser", "freeze.scan={here}/scan.json", "freeze.scan: ", "does not exist", "make it with"),
    a("laser", "freeze.scan={here}/scan.json", "freeze.scan: ", "says no rank of model.layers.0", "give", "leave",
      make=lambda world: unranked(world)),
    a("laser", "", "WORLD_SIZE: 2 processes, but laser runs in one", "without a launcher",
      environment=(("WORLD_SIZE", "2"),)),
    a("laser", "run_dir={here}/file", "run_dir: ", "is a file", "give", make=text("file", "mine")),
    a("laser", "run_dir=/proc/run", "run_dir: ", "/proc", "give another"),
    a("laser", "run_dir={here}/other", "run_dir: ", "other settings", "give another",
      make=text("other/config.yaml", "seed: 5\n")),
    a("laser", "run_dir={here}/other", "run_dir: ", "start.json", "is damaged", "give another",
      make=text("other/start.json", "{")),
]  # fmt: skip


def unranked(world: World) -> None:
    """A published scan of the policy: scores and types only."""
    listing = {
        f"model.layers.{layer}.{kind}": {"snr": 1.0, "type": kind}
        for layer in range(4)
        for kind in (*(f"self_attn.{x}_proj" for x in "qkvo"), *(f"mlp.{x}_proj" for x in ("gate", "up", "down")))
    }
    text("scan.json", json.dumps(listing))(world)


def calls(world: World) -> None:
    function = {"name": "f", "parameters": {"properties": {}}}
    question = [[{"role": "user", "content": "hi"}]]
    rows("BFCL_v4_irrelevance.json", {"id": "a", "question": question, "function": [function]})(world)


HERE_RUN = "run_dir={here}/run"
CHECKPOINT = "checkpoints/step_000002"
EXPORT = [
    a("export", "model.dtype=float16", "model: no such key|model.dtype: no such key", "use one of: run_dir"),
    a("export", "run_dir=null", "run_dir: not set", "give"),
    a("export", "output=null", "output: not set", "give"),
    *[
        a("export", f"run_dir={{here}}/{name}", "run_dir: ", "no config.yaml", "give", make=folder("empty"))
        for name in ("nowhere", "prompts.jsonl", "empty")
    ],
    *[a("export", f"{key}={{long}}", f"{key}: ", "cannot be a path|cannot be", "give|check")
      for key in ("run_dir", "output", "base")],
    *[
        a("export", HERE_RUN, "run_dir: ", "config.yaml", "put the file back|give",
          make=spoiled("run", "config.yaml", content))
        for content in ("[1, 2", "- 1\n", "seed: 1\n", "model: {path: [1]}\n", "model: {path: x}\nrm: 3\n", DEEP)
    ],
    a("export", HERE_RUN, "run_dir: ", "no checkpoint", "give", make=text("run/config.yaml", "seed: 1\n")),
    a("export", "checkpoint=step_000007", "checkpoint: ", "step_000007", "one of: step_000002"),
    a("export", "checkpoint=../checkpoints/step_000002", "checkpoint: ", "one of: step_000002"),
    a("export", "checkpoint=best", "checkpoint: the run has no held-out score", "use newest"),
    *[
        a("export", HERE_RUN, "checkpoint: ", name, "use another one",
          make=cut("run", f"{CHECKPOINT}/{name}"))
        for name in ("trainable.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
    ],
    a("export", HERE_RUN, "checkpoint: ", "state.json", "lacks", make=spoiled("run", f"{CHECKPOINT}/state.json", "{}")),
    a("export", "output={here}/prompts.jsonl", "output: ", "is a file", "give"),
    a("export", "output={here}/prompts.jsonl/below", "output: ", "is a file", "give"),
    a("export", "output={policy}", "output: ", "not empty", "give a new"),
    a("export", "output=/proc/model", "output: nothing can be written into /proc", "give another"),
    a("export", "base={here}/nowhere", "base: no such directory", "give"),
    a("export", "base={reward}", "base: ", "lacks|no such tensor|shape"),
    a("export", "base={here}/policy", "base: ", "is not the model that", "give base=DIR",
      make=tensors(lambda held: held["model.norm.weight"].add_(1))),
    a("export", "base={here}/policy", "base: ", "is not the model that", "give base=DIR",
      make=settings("policy", rms_norm_eps=1e-3)),
    a("export", "base={here}/policy", "no usable tokenizer", "download", make=cut("policy", "tokenizer.json")),
]  # fmt: skip


COMPARE = [
    a("compare", "compare.only=[luck]", "compare.only: there is no strategy 'luck'", "use snr, lowest", "or add one"),
    a("compare", "compare.reference=luck", "compare.reference: there is no strategy 'luck'", "use snr, lowest"),
    a("compare", "compare.strategies.wide=[]", "compare.strategies.wide: no such key", "+compare.strategies.wide="),
    a("compare", "+compare.strategies.wide=[freeze.top_percent=75]", "wide=", "quote odd values"),
    a("compare", "'+compare.strategies={{a/b: []}}'", "compare.strategies: 'a/b'", "use letters"),
    a("compare", "'+compare.strategies.wide=[\"freeze.top_percent=0\"]'", "compare.strategies.wide: freeze.top_percent",
      "above 0"),
    a("compare", "'+compare.strategies.wide=[\"freeze.top=75\"]'", "freeze.top: no such key", "use one of"),
    a("compare", "compare.seeds=0", "compare.seeds: 0", "give"),
    a("compare", "compare.level=0", "compare.level: 0", "give"),
    a("compare", "seed=7", "seed: ", "use compare.first_seed=7"),
    a("compare", "-m", "-m: ", "compare.seeds", after_loading=True),  # Hydra has made its directory by then
    a("compare", "evaluation.every=0", "evaluation.every: 0", "give"),
    a("compare", "compare.skills=[]", "compare.skills: empty", "give"),
    a("compare", "compare.skills=[eval/function_calling]", "compare.skills: eval/function_calling is not evaluated",
      "add to evaluation.suites"),
    a("compare", "compare.reward=eval/gold_mean", "compare.reward: eval/gold_mean is not evaluated",
      "evaluation.functions"),
    a("compare", "", "WORLD_SIZE: 2 processes, but compare runs in one", "without a launcher",
      environment=(("WORLD_SIZE", "2"),)),
    a("compare", "model.path={here}/nowhere", "model.path: no such directory", "give"),
    a("compare", "reward.path={here}/nowhere", "reward.path: no such directory", "give"),
    a("compare", "data.path={here}/nowhere", "/nowhere: no such file", "check data.path"),
    a("compare", "+evaluation.functions.f=no.such:thing", "evaluation.functions.f: cannot import", "check the name"),
    a("compare", HERE_POLICY, "model.safetensors: truncated", "download", make=cut("policy", "model.safetensors")),
    a("compare", "run_dir={here}/file", "run_dir: ", "is a file", "give", make=text("file", "mine")),
    a("compare", "run_dir=/proc/run", "run_dir: ", "/proc", "give another"),
    a("compare", "run_dir={here}/other", "run_dir: ", "seed_1 holds a run with other settings", "give another",
      make=text("other/runs/random/seed_1/config.yaml", "seed: 5\n")),
]  # fmt: skip


CASES = [*COMMAND_LINE, *POLICY, *PLAN, *REWARD, *DATA, *PAIRS, *SETTINGS, *FILES, *LASER, *EXPORT, *COMPARE]


@pytest.fixture(scope="module")
def models(small_models):
    """The small models, a classifier, and a run directory."""
    from reward_checkpoints import SIZE, small_tokenizer
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig(**SIZE, num_labels=1, pad_token_id=0)
    LlamaForSequenceClassification(config).save_pretrained(small_models / "classifier")
    small_tokenizer().save_pretrained(small_models / "classifier")
    saved_run(small_models / "run", small_models / "policy")
    return small_models


def saved_run(run, base) -> None:
    """A run directory with the checkpoint of a step in which one matrix of the base model has changed."""
    from safetensors.torch import load_file

    from starling_train.files.identity import identify
    from starling_train.run.checkpoints import Checkpoints
    from starling_train.run.state import TrainState

    name = "model.layers.0.mlp.up_proj.weight"
    trained = {f"policy.{name}": load_file(base / "model.safetensors")[name] + 1}
    optimizer = {f"policy.{name}/exp_avg": torch.zeros(64, 32)}
    Checkpoints(run / "checkpoints", 1, identify(base)).save(trained, optimizer, TrainState(step=2))
    (run / "config.yaml").write_text(f"name: run\nmodel:\n  path: {base}\n  dtype: float32\n")


@pytest.fixture(scope="module")
def servers():
    """Ports: of servers that are not what is wanted, of nobody, and one that is taken."""
    said = {
        "locked": (401, {"error": "no token"}),
        "other": (404, {"detail": "Not Found"}),
        "version": (200, {"results": {"scores": []}}),
        "list": (200, [1, 2]),
        "many": (200, {"scores": [1.0, 2.0, 3.0]}),
    }
    running = {name: Scripted(answer=lambda request, answer=answer: answer) for name, answer in said.items()}
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket() as away:
        away.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers, and nobody else gets it
        ports = {name: server.server_port for name, server in running.items()}
        yield ports | {"taken": taken.getsockname()[1], "away": away.getsockname()[1]}
    for server in running.values():
        server.shutdown()
        server.server_close()


@pytest.fixture
def world(tmp_path, models, servers) -> World:
    rows("prompts.jsonl", *({"prompt": f"What is {i} and {i}?"} for i in range(20)))(World(tmp_path, models))
    answers = [{"answer": word, "model": "m", "rank": float(rank)} for rank, word in enumerate(("good", "bad"), 1)]
    rows("ranked.jsonl", *({"prompt": f"Which {i}?", "answers": answers} for i in range(9)))(World(tmp_path, models))
    rows("pairs.jsonl", {"prompt": "hi", "chosen": "yes", "rejected": "no"})(World(tmp_path, models))
    rows("asked.jsonl", {"prompt": "hi", "response": "yes"})(World(tmp_path, models))
    text("text.txt", "Some words to be predicted.")(World(tmp_path, models))
    return World(tmp_path, models, servers)


def contents(world: World) -> dict[str, int]:
    return {str(path): path.lstat().st_size for path in world.here.rglob("*") if not path.is_dir()} | {
        str(path): -1 for path in world.here.rglob("*") if path.is_dir()
    }


def split(arguments: str) -> list[str]:
    """At spaces outside quotes; quotes stay, for Hydra."""
    return [part.removeprefix("''") for part in re.findall(r"(?:[^\s']|'[^']*')+", arguments)]


def unquoted(argument: str) -> str:
    """Without the quotes that a shell would take away: those around the whole."""
    return argument[1:-1] if argument.startswith("'") and argument.endswith("'") else argument


def run(command: str, arguments: list[str], monkeypatch, capsys) -> tuple[int | str | None, list[str], str]:
    """Exit code, lines of stderr, stdout of a command in this process."""
    monkeypatch.setattr("sys.argv", [command, *arguments])
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    code = None
    try:
        MAIN[command]()
    except SystemExit as stopped:
        code = stopped.code
    for number, handler in kept.items():
        signal.signal(number, handler)
    out, error = capsys.readouterr()
    return code, error.splitlines(), out


def parameters() -> list:
    return [pytest.param(case, id=f"{number}-{case}") for number, case in enumerate(CASES)]


@pytest.mark.parametrize("case", parameters())
def test_wrong_input_is_one_line_before_anything_expensive(case, world, monkeypatch, capsys):
    if case.make:
        case.make(world)
    for variable in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WORLD_SIZE", "STARLING_REWARD_TOKEN", "NETRC"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(world.here))
    for variable, value in case.environment:
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for function in () if case.after_loading else EXPENSIVE:
        monkeypatch.setattr(function, lambda *a, **k: pytest.fail("something expensive was begun"))
    monkeypatch.chdir(world.here)
    before = contents(world)

    flags = case.arguments.startswith("-cd")  # Hydra wants them in front
    whole = [case.arguments, RIGHT[case.command]] if flags else [RIGHT[case.command], case.arguments]
    filled = " ".join(whole).format(**world.names())
    code, lines, out = run(case.command, [unquoted(part) for part in split(filled)], monkeypatch, capsys)
    assert code == 2, (code, lines, out)
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    for says in case.says:
        assert re.search("|".join(map(re.escape, says.split("|"))), lines[0]), (says, lines[0])
    assert len(lines[0]) < 1500 and "hunter2" not in lines[0] + out
    if not case.after_loading:
        assert contents(world) == before


def numeric_keys(schema: type) -> list[tuple[str, object, type]]:
    """(key, its range, type) of every number of a configuration."""

    def walk(config, prefix):
        for item in dataclasses.fields(config):
            value = getattr(config, item.name)
            if dataclasses.is_dataclass(value):
                yield from walk(value, f"{prefix}{item.name}.")
            elif "range" in item.metadata:
                whole = "int" in str(item.type) if not isinstance(item.type, type) else item.type is int
                yield f"{prefix}{item.name}", item.metadata["range"], int if whole else float

    return list(walk(schema(), ""))


@pytest.mark.parametrize("command", SCHEMAS)
def test_every_number_is_refused_by_its_key_where_it_makes_no_sense(command):
    schema, checked = SCHEMAS[command]
    keys = numeric_keys(schema)
    assert len(keys) > 10
    for key, (low, high), kind in keys:
        values = [10**400, -(10**400)]
        values += [math.nan, math.inf, -math.inf] if kind is float else []
        values += [low - 1] if low is not None else []
        values += [high + 1] if high is not None else []
        for value in values:
            config = schema()
            section = config
            for name in key.split(".")[:-1]:
                section = getattr(section, name)
            setattr(section, key.rpartition(".")[2], value)
            with pytest.raises(UserError, match=rf"^{re.escape(key)}: .* is out of range; give ") as told:
                checked(config)
            assert len(str(told.value)) < 200


@pytest.mark.parametrize("command", RIGHT)
def test_the_right_arguments_are_right(command, world, monkeypatch, capsys):
    """Otherwise the cases above could all be refused for another reason."""
    monkeypatch.chdir(world.here)
    arguments = [unquoted(part) for part in split(RIGHT[command].format(**world.names()))]
    code, lines, out = run(command, [*arguments, "dry_run=true"], monkeypatch, capsys)
    assert (code, lines) == (None, []) and out


def test_a_login_is_found_where_wandb_looks(tmp_path, monkeypatch):
    from starling_train.training import preflight

    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC", "WANDB_BASE_URL", "WANDB_CONFIG_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    preflight.check_tracker("offline")
    with pytest.raises(UserError, match="no login"):
        preflight.check_tracker("online")
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password " + "a" * 40 + "\n")
    preflight.check_tracker("online")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    with pytest.raises(UserError, match="no login"):
        preflight.check_tracker("online")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    preflight.check_tracker("online")
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^logging.wandb: wandb is not installed; pip install wandb"):
        preflight.check_tracker("offline")


def test_a_plan_larger_than_the_gpu_is_refused_and_a_tight_one_is_told(capsys):
    from starling_train.planning.memory import Plan
    from starling_train.training import preflight

    plan = Plan({"policy weights": 14e9, "hidden states below": 8e9}, {"KV cache": 5e9}, {"activations": 30e9})
    preflight.check_memory(plan, 80e9)
    assert capsys.readouterr().err == ""
    preflight.check_memory(plan, 24e9)
    assert capsys.readouterr().err.startswith("warning: the plan's peak is 52.0 GB, the GPU has 24.0 GB")
    with pytest.raises(UserError, match=r"^cluster.device: the run holds 14.0 GB .*the GPU has 12.0 GB; lower"):
        preflight.check_memory(plan, 12e9)


def test_the_table_covers_every_command():
    counts = {command: sum(case.command == command for case in CASES) for command in RIGHT}
    assert len(CASES) >= 60 and min(counts.values()) >= 15, counts
    assert json.dumps(counts)
