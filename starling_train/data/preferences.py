"""Preference sets: conversations that differ in their last answer, and which answer is better."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starling_train.config.fields import UserError
from starling_train.data import nectar, ranked
from starling_train.data.rows.dropped import Dropped


@dataclass(frozen=True)
class Comparison:
    """Conversations that differ in their last answer, and the rank of each, smaller is better."""

    conversations: list[list[dict]]
    ranks: list[float]


def load(
    path: str | Path,
    *,
    subset: str | None = None,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    dropped: Dropped | None = None,
    key: str = "data",
) -> list[Comparison]:
    """Load the comparisons of a data set of pairs or of ranked answers. Raises UserError that names file and line.

    path: of the data, as in `nectar.load`.
    subset, split, columns: likewise.
    dropped: takes what was dropped, and notes on what was not.
    key: the section of the configuration that names the path, for messages.
    """
    table = nectar.load(path, subset=subset, split=split, columns=columns, key=key)
    rows, without = ranked.split_by_order(table.rows)
    if dropped is not None:
        dropped.update(table.drops())
        dropped.add_all(ranked.NO_ORDER, [row.where for row in without])
    if not rows:
        why = f"{len(without)} rows are {ranked.NO_ORDER}, {without[0].where} first"
        raise UserError(f"{path}: no comparison in it ({why}); give pairs or ranked answers")
    return [Comparison(ranked.conversations(row), [answer.rank for answer in row.answers]) for row in rows]
