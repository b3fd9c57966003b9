"""What reads a model directory, for tests that have a path: each call opens the directory anew."""

from functools import wraps
from pathlib import Path

from starling_train.config.sections import FreezeConfig, LoraConfig
from starling_train.models import causal_lm
from starling_train.models.source import ModelSource
from starling_train.selection import freeze, listing, scan, select
from starling_train.selection import scan as scanning


def source(path: Path) -> ModelSource:
    return ModelSource.open(path, needs_config=False)


def _opened(function):
    @wraps(function)
    def call(path, *arguments, **settings):
        return function(source(path), *arguments, **settings)

    return call


scan, check_scan, read_matrix = map(_opened, (scan.scan_model, scanning.check_scan, scanning.read_matrix))
check_weights, left_out, list_matrices, other_weights, unscanned = map(
    _opened,
    (listing.check_weights, listing.left_out, listing.list_matrices, listing.other_weights, listing.unscanned),
)
load_causal_lm = _opened(causal_lm.load_causal_lm)


def load_tokenizer(path: Path):
    return source(path).tokenizer


def select_by(records, seed: int = 0, **settings) -> list[str]:
    """`select` with the settings of a section `freeze`."""
    return select.select(FreezeConfig(**settings), records, seed)


def freeze_by(model, selected, *, rank: int | None = None, **groups) -> freeze.FreezeTable:
    """`freeze.apply` with the settings of a section `freeze`; rank: of adapters."""
    adapter = {} if rank is None else {"adapter": "lora", "lora": LoraConfig(rank=rank)}
    return freeze.apply(FreezeConfig(**groups, **adapter), model, selected)
