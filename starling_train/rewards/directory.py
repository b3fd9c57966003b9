"""A reward model in a directory of weights, or a hub id: checked by its headers, loaded into this process."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from starling_train.config.sections import ScorerConfig
from starling_train.models import quantisation
from starling_train.models.reward import header_checks, model
from starling_train.models.reward.reading import Reader
from starling_train.models.reward.source import CLASSIFIER, RewardSource
from starling_train.models.source import ModelSource
from starling_train.rewards.admission import Admission, by_reader
from starling_train.run.runtime import Runtime

LOCATION = "path"
SCORED_BY = ("dtype", "load_in", "position", "trailing_newline", "max_length")


def check(config: ScorerConfig, weights: bool = True) -> None:
    """Check the directory and its tokenizer; weights: their names and shapes too. Raises UserError."""
    quantisation.check_acceleration(load_in=config.load_in, device_map=config.device_map)
    header_checks.check_reward(config, RewardSource.of(config, weights=weights), weights=weights)


def load(config: ScorerConfig, runtime: Runtime) -> model.RewardModel:
    """Load the model, with its own tokenizer, on the run's device. Raises UserError."""
    device = config.device_map or str(runtime.device)
    return model.load(RewardSource.of(config), config, dtype=config.dtype, device=device)


def identity(
    config: ScorerConfig,
    identify: Callable[[ModelSource], dict[str, Any]],
    weights: bool = True,
) -> dict[str, Any]:
    """Identify the model by its files. Raises UserError."""
    return identify(RewardSource.of(config, weights=weights).model)


def about(config: ScorerConfig) -> dict[str, Any]:
    """Tell which model it is, for who is served by it: its name, and marks of its weights and its template."""
    source = RewardSource.of(config)
    template = source.tokenizer.chat_template if config.kind == CLASSIFIER else config.kind
    return {
        "kind": config.kind,
        "model": source.directory.name if Path(config.path).expanduser().is_dir() else config.path,
        "weights": source.model.fingerprint[:16],
        "template": hashlib.sha256(str(template).encode()).hexdigest()[:16],
        "dtype": config.dtype,
        "position": config.position,
        "max_length": config.max_length,
    }


def columns(config: ScorerConfig) -> tuple[str, ...]:
    """Return no names: a model reads conversations only."""
    return ()


def admit(config: ScorerConfig, prompts: Sequence[list[dict]], rows: Sequence[dict[str, Any]]) -> Admission:
    """Render every prompt with a made-up answer of a word; refuse what the template refuses, count what is cut.

    Raises UserError if the template refuses all.
    """
    source = RewardSource.of(config, weights=False)
    reader = Reader(source.kind, source.tokenizer, config.max_length, config.trailing_newline, source.frame)
    return by_reader(reader, prompts, f"reward.path: {source.directory}")
