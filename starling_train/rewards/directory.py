"""A reward model in a directory of weights, or a hub id: checked by its headers, loaded into this process."""

from collections.abc import Callable, Sequence
from typing import Any

from starling_train.config.sections import RewardConfig
from starling_train.data.conversations import with_answer
from starling_train.models import quantisation
from starling_train.models.reward import header_checks, model
from starling_train.models.reward.reading import Reader
from starling_train.models.reward.source import RewardSource
from starling_train.models.source import ModelSource
from starling_train.rewards.admission import ANSWER, Admission, refusals
from starling_train.run.runtime import Runtime

LOCATION, HOLDS_MEMORY = "path", True
OF_A_TURN, OF_TEMPLATE = 16, 64  # tokens that a template may add
MEASURED = 4096  # conversations that are tokenised before a run: a second or two
SCORED_BY = ("dtype", "load_in", "position", "trailing_newline", "max_length")


def check(config: RewardConfig, weights: bool = True) -> None:
    """Check the directory and its tokenizer; weights: their names and shapes too. Raises UserError."""
    quantisation.check_acceleration(load_in=config.load_in, device_map=config.device_map)
    header_checks.check_reward(config, RewardSource.of(config, weights=weights), weights=weights)


def load(config: RewardConfig, runtime: Runtime) -> model.RewardModel:
    """Load the model, with its own tokenizer, on the run's device. Raises UserError."""
    device = config.device_map or str(runtime.device)
    return model.load(RewardSource.of(config), config, dtype=config.dtype, device=device)


def identity(
    config: RewardConfig,
    identify: Callable[[ModelSource], dict[str, Any]],
    weights: bool = True,
) -> dict[str, Any]:
    """Identify the model by its files. Raises UserError."""
    return identify(RewardSource.of(config, weights=weights).model)


def columns(config: RewardConfig) -> tuple[str, ...]:
    """Return no names: a model reads conversations only."""
    return ()


def admit(config: RewardConfig, prompts: Sequence[list[dict]], rows: Sequence[dict[str, Any]]) -> Admission:
    """Render every prompt with a made-up answer of a word; refuse what the template refuses, count what is cut.

    Only what could be too long is tokenised, and of that at most MEASURED, evenly spread. Raises UserError if the
    template refuses all.
    """
    source = RewardSource.of(config, weights=False)
    reader = Reader(source.kind, source.tokenizer, config.max_length, config.trailing_newline, source.frame)
    refused = refusals(prompts, reader.check, f"reward.path: {source.directory}")
    taken = (with_answer(messages, ANSWER) for index, messages in enumerate(prompts) if index not in refused)
    # a token is a byte of text or more; what the template adds is a few tokens a turn
    long = [
        conversation
        for conversation in taken
        if sum(len(m["content"].encode()) + OF_A_TURN for m in conversation) + OF_TEMPLATE > config.max_length
    ]
    measured = long[:: -(-len(long) // MEASURED)] if long else []
    for conversation in measured:
        reader.encode(conversation)
    cut = round(reader.shortened * len(long) / len(measured)) if measured else 0
    if not cut:
        return Admission(refused)
    about = "" if len(measured) == len(long) else "about "
    line = (
        f"{about}{cut} of {len(prompts)} prompts are longer than reward.max_length={config.max_length}, even with an "
        "answer of a word, and are scored without their beginning (reward/truncated_prompts); raise it"
    )
    return Admission(refused, [line])
