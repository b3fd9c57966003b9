"""How long a sequence may be, so that what a model computes of it does not depend on its neighbours."""

import sys
from typing import Any, NamedTuple


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
    ropes = getattr(config, "rope_parameters", None) or {}
    by_layer = [rope for rope in ropes.values() if isinstance(rope, dict)]
    original = [
        rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
        for rope in [ropes, *by_layer]
        if rope.get("rope_type") == "longrope"
    ]
    if lengths := [length for length in original if length]:
        return Positions(min(lengths), f"{min(lengths)} positions before its longrope changes for all of a pass")
    count = getattr(config, "max_position_embeddings", None) or sys.maxsize
    return Positions(count, f"{count} positions")
