"""Every path of every command, from the schema: what is not there, and what no file system takes, is one line.

What a reader says of a file where a directory belongs, of a dead link or of damage is tested where the reader lives.
"""

import pytest
from schemas import SCHEMAS, keys

# key -> what must be set for it to be read at all; a key that is not here is read whatever is set
READ_WITH = {
    "freeze.scan": "freeze.method=snr",
    "data.path": "",
    "evaluation.function_calling.path": "evaluation.suites=[function_calling]",
    "evaluation.perplexity.path": "evaluation.suites=[perplexity]",
    "function_calling.path": "suites=[function_calling]",
    "perplexity.path": "suites=[perplexity]",
    "mt_bench.path": "suites=[mt_bench] mt_bench.judge.model=m mt_bench.judge.key_env=null",
    "reward_suite.path": "suites=[reward]",
    "reward_suite.base": "suites=[reward] reward_suite.path={here}/prompts.jsonl rollout.max_new_tokens=8",
}
# command -> keys that it has and does not read
UNREAD = {
    "plan": ("run_dir", "data.path", "reward.tokenizer", "evaluation.function_calling.path"),
    "evaluate": ("data.path",),
}
WRITTEN = ("run_dir", "output")  # what is not there yet is right


@pytest.mark.parametrize("command", SCHEMAS)
def test_a_path_that_cannot_be_read_or_written_is_told_by_its_key(command, refused):
    for key in keys(command):
        if key.field.metadata.get("path") and key.name not in UNREAD.get(command, ()):
            for value in ["{long}"] if key.name in WRITTEN else ["{here}/nowhere", "{long}"]:
                line = refused(command, f"{READ_WITH.get(key.name, '')} {key.name}={value}")
                assert key.name in line, line
