"""TODO docstring."""

from dataclasses import dataclass, field

from starling_train.config.fields import (
    UserError,
    check_name,
    check_one_process,
    check_values,
    choice,
    number,
    optional_number,
)
from starling_train.config.ppo import PpoConfig

LONGEST_WINDOW = 2048  # tokens, where laser.window leaves it to the model


@dataclass
class ReductionConfig:
    measure: str = choice("perplexity", "perplexity", "preference_margin", "preference_share")
    percent: float = number(100.0, 0.0, 100.0)
    modules: list[str] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    samples: int | None = field(default=256, metadata={"range": (1, None)})
    held_out_percent: float = number(25.0, 0.0, 90.0)
    window: int | None = optional_number(2)
    tokens_per_batch: int = number(16384, 1)
    factored: bool = False


@dataclass
class TextConfig:
    path: str | None = "berkeley-nest/Nectar"


@dataclass
class PairsConfig:
    path: str | None = "berkeley-nest/Nectar"
    rows: int | None = optional_number(1)


@dataclass
class LaserConfig(PpoConfig):
    """A run's configuration, so that recipes fit, and how matrices are reduced."""

    name: str = "laser"
    laser: ReductionConfig = field(default_factory=ReductionConfig)
    perplexity: TextConfig = field(default_factory=TextConfig)
    preference: PairsConfig = field(default_factory=PairsConfig)


def check(config: LaserConfig) -> None:
    """Check the configuration. Raises UserError."""
    check_values(config)
    check_name(config.name)
    if not config.model.path:
        raise UserError("model.path: not set; give the model to reduce: a Hugging Face directory or hub id")
    if config.model.load_in:
        raise UserError(f"model.load_in: a {config.model.load_in} model has no matrices to exchange; use null")
    if config.laser.percent == 0:
        raise UserError("laser.percent: 0 selects nothing to try; give a percentage above 0, e.g. 25")
    if config.laser.measure == "perplexity":
        if not config.perplexity.path:
            raise UserError("perplexity.path: not set; give plain text, JSONL with `text` or `messages`, or Nectar's")
    elif not config.preference.path:
        raise UserError("preference.path: not set; give JSONL of chosen and rejected answers, or Nectar's parquet")
    check_one_process("laser")
