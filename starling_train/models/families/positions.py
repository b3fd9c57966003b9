"""How long a sequence may be, so that what a model computes of it does not depend on its neighbours."""

import sys
from typing import Any, NamedTuple

from starling_train.config.fields import UserError


class Positions(NamedTuple):
    """most: tokens of the longest sequence. what: these positions in words, for messages."""

    most: int
    what: str


def positions_of(config: Any) -> Positions:
    """Return the positions of a transformers configuration; endless where it names none.

    longrope (arXiv 2402.13753) takes other factors for all sequences of a pass once one of them is longer than the
    model's original length: up to there each sequence has its own numbers, and no further.
    """
    config = config.get_text_config()
    original = [
        rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
        for rope in _ropes(config)
        if rope.get("rope_type") == "longrope"
    ]
    if lengths := [length for length in original if length]:
        return Positions(min(lengths), f"{min(lengths)} positions before its longrope changes for all of a pass")
    count = getattr(config, "max_position_embeddings", None) or sys.maxsize
    return Positions(count, f"{count} positions")


def alone_above(config: Any) -> int:
    """Return the length above which a sequence changes its neighbours in a pass, so that it has to go by itself."""
    config = config.get_text_config()
    is_long = any(rope.get("rope_type") == "longrope" for rope in _ropes(config))
    return positions_of(config).most if is_long else sys.maxsize


def check_dynamic(config: Any, length: int, key: str) -> None:
    """Raise UserError, naming `key`, where what a model computes may depend on the passes before.

    `dynamic` rope (NTK) keeps the frequencies of the longest sequence so far, once one has exceeded the positions.
    """
    config = config.get_text_config()
    count = getattr(config, "max_position_embeddings", None) or sys.maxsize
    if length > count and any(rope.get("rope_type") == "dynamic" for rope in _ropes(config)):
        raise UserError(
            f"{key}: {length} is more than the model's {count} positions, beyond which its dynamic rope depends on "
            f"what was read before; lower it to {count}"
        )


def _ropes(config: Any) -> list[dict[str, Any]]:
    """Return the rope settings of a text model: one, or one of each type of layers."""
    ropes = getattr(config, "rope_parameters", None) or {}
    return [ropes, *(rope for rope in ropes.values() if isinstance(rope, dict))]
