"""A reward model in a directory of weights, or a hub id: checked by its headers, loaded into this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from starling_train.config.sections import RewardConfig
from starling_train.models import causal_lm, quantisation
from starling_train.models.reward import header_checks, model
from starling_train.run.runtime import Runtime

PLACE, HOLDS_MEMORY = "path", True
SCORED_BY = ("dtype", "load_in", "position", "trailing_newline", "max_length")


def check(config: RewardConfig, weights: bool = True) -> None:
    """Check the directory and its tokenizer; weights: their names and shapes too. Raises UserError."""
    quantisation.check_acceleration(load_in=config.load_in, device_map=config.device_map)
    directory, tokenizer = _resolved(config, weights)
    header_checks.check_reward(config, directory, tokenizer or directory, weights=weights)


def load(config: RewardConfig, runtime: Runtime) -> model.RewardModel:
    """Load the model, with its own tokenizer, on the run's device. Raises UserError."""
    directory, tokenizer = _resolved(config, True)
    return model.load_reward_model(
        config.kind,
        directory,
        tokenizer=tokenizer,
        dtype=config.dtype,
        device=config.device_map or str(runtime.device),
        position=config.position,
        max_length=config.max_length,
        tokens_per_batch=config.tokens_per_batch,
        load_in=config.load_in,
        trailing_newline=config.trailing_newline,
    )


def identity(
    config: RewardConfig, identify: Callable[[str, Path], dict[str, Any]], weights: bool = True
) -> dict[str, Any]:
    """Say which model it is, by its files. Raises UserError."""
    directory, _ = _resolved(config, weights)
    return identify(config.path, directory)


def _resolved(config: RewardConfig, weights: bool) -> tuple[Path, Path | None]:
    """The model's directory, and the tokenizer's where it is another."""
    # Starling-RM-7B-alpha comes without config.json: the tokenizer's directory, its base model's, then has it
    directory = causal_lm.resolve(config.path, "reward.path", weights=weights, needs_config=not config.tokenizer)
    tokenizer = causal_lm.resolve(config.tokenizer, "reward.tokenizer", weights=False) if config.tokenizer else None
    return directory, tokenizer
