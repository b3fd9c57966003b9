"""TODO docstring."""

from dataclasses import dataclass

from starling_train.config.fields import UserError, check_values, number
from starling_train.config.ppo import PpoConfig
from starling_train.config.sections import check_reward


@dataclass
class ScoreConfig(PpoConfig):
    """A run's configuration, so that recipes fit, and the two files."""

    name: str = "score"
    input: str | None = None
    output: str | None = None
    chunk: int = number(1024, 1)


def check(config: ScoreConfig) -> None:
    """Check the configuration. Raises UserError."""
    check_values(config)
    check_reward(config.reward)
    for key, value, what in (("input", config.input, "conversations"), ("output", config.output, "their scores")):
        if not value:
            raise UserError(f"{key}: not set; give {key}=FILE.jsonl, the file of {what}")
