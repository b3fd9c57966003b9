"""The configuration of the `score` command."""

from dataclasses import dataclass

from starling_train.config.fields import check_values, number, path_to, require, run_name
from starling_train.config.ppo import PpoConfig
from starling_train.config.sections import check_reward


@dataclass
class ScoreConfig(PpoConfig):
    """`python -m starling_train.score`: a run's (config.yaml), and the two files.

    Exit code 0: every line was scored. 2: some lines were wrong (named on stderr and in the output; all others are
    scored), or the configuration was. The model is given by reward=KIND reward.path=DIR.
    """

    name: str = run_name("score", "of the job; nothing is written but the output")
    input: str | None = path_to(None, 'JSONL: {"messages": [...]}, list of messages, or {"prompt", "response"} a line')
    output: str | None = path_to(None, 'JSONL: {"line", "score"} or {"line", "error"} a line; a stopped job goes on')
    chunk: int = number(1024, 1, doc="lines read, sorted by length and scored together")


def check(config: ScoreConfig) -> None:
    """Check the configuration. Raises UserError."""
    check_values(config)
    check_reward(config.reward)
    require("input", config.input, "input=FILE.jsonl, the file of conversations")
    require("output", config.output, "output=FILE.jsonl, the file of their scores")
