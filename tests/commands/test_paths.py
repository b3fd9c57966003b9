"""A path that is not there is told in one line, by every command that reads it; no path of a schema is forgotten.

What a reader says of a file where a directory belongs, of a dead link or of damage is tested where the reader lives.
"""

import pytest
from schemas import SCHEMAS, keys

# key -> (command, what must be set for it to be read)
READ_BY = {
    "model.path": (*((command, "") for command in ("ppo", "rm", "dpo", "snr", "plan", "laser", "compare")),
                   ("evaluate", "suites=[reward] reward_suite.path={here}/prompts.jsonl rollout.max_new_tokens=8")),
    "reward.path": [(command, "") for command in ("ppo", "score", "serve_reward", "evaluate", "plan", "compare")],
    "reward.tokenizer": [(command, "") for command in ("ppo", "score", "serve_reward", "evaluate")],
    "rm.tokenizer": [("rm", "")],
    "data.path": [(command, "") for command in ("ppo", "rm", "dpo", "compare")],
    "freeze.scan": [(command, "freeze.method=snr") for command in ("ppo", "rm", "dpo", "snr", "plan", "laser")],
    "evaluation.function_calling.path": [
        (command, "evaluation.suites=[function_calling]") for command in ("ppo", "dpo")
    ],
    "evaluation.perplexity.path": [(command, "evaluation.suites=[perplexity]") for command in ("ppo", "dpo")],
    "rollout.weights_dir": [
        (command, "rollout=vllm_server rollout.url=http://127.0.0.1:9") for command in ("ppo", "dpo")
    ],
    "compare": [("snr", "")],
    "input": [("score", "")],
    "run_dir": [("export", "")],
    "base": [("export", "")],
    "preference.path": [("evaluate", ""), ("laser", "laser.measure=preference_share")],
    "perplexity.path": [("evaluate", "suites=[perplexity]"), ("laser", "")],
    "function_calling.path": [("evaluate", "suites=[function_calling]")],
    "mt_bench.path": [("evaluate", "suites=[mt_bench] mt_bench.judge.model=m mt_bench.judge.key_env=null")],
    "reward_suite.path": [("evaluate", "suites=[reward]")],
    "reward_suite.base": [
        ("evaluate", "suites=[reward] reward_suite.path={here}/prompts.jsonl rollout.max_new_tokens=8")
    ],
}  # fmt: skip
NOT_READ_HERE = {"output", "lm_eval.include"}  # a place to write to; read by the harness alone
ROWS = [(command, key, settings) for key, readers in READ_BY.items() for command, settings in readers]


@pytest.mark.parametrize("command,key,settings", ROWS, ids=[f"{command} {key}" for command, key, _ in ROWS])
def test_a_path_that_is_not_there_is_told_with_its_key(command, key, settings, refused):
    line = refused(command, f"{settings} {key}={{here}}/nowhere")
    assert line.startswith(f"error: {key}: ") or "/nowhere" in line, line


def test_every_path_of_a_schema_has_a_reader():
    paths = {key.name for command in SCHEMAS for key in keys(command) if key.field.metadata.get("path")}
    assert paths <= READ_BY.keys() | NOT_READ_HERE
