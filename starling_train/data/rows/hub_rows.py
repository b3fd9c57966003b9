"""Rows of a data set on the hub, through `datasets`, which downloads it. No code of a repository is run."""

import re
from collections.abc import Collection, Iterator

from starling_train.config.fields import UserError
from starling_train.data.rows import source
from starling_train.files import hub_files


def read(
    name: str, subset: str | None, split: str, wanted: Collection[str], key: str
) -> tuple[list[str], Iterator[tuple[str, dict]]]:
    """Return (names of all columns, (`name, row 1` and on, row with the wanted columns)). Raises UserError.

    name: the id on the hub.
    subset: its configuration; None: it has one.
    split: of the subset.
    wanted: columns to read, as far as they are there.
    key: the section of the configuration that names it, for messages.
    """
    # datasets 4 and newer run no script of a repository, so a hub id cannot bring code along
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError

    try:
        dataset = load_dataset(name, subset, split=split)
    except (OSError, ValueError, RuntimeError, DatasetsError, HTTPError) as error:
        if isinstance(error, ValueError) and "Unknown split" in str(error):
            source.no_split(name, split, re.findall(r"['\"]([^'\"]+)['\"]", str(error).partition("one of")[2]), key)
        raise UserError(_refusal(name, error, key)) from error
    names = dataset.column_names
    dataset = dataset.select_columns([column for column in names if column in wanted])
    return names, ((f"{name}, row {number}", row) for number, row in enumerate(dataset, start=1))


def _refusal(name: str, error: Exception, key: str) -> str:
    """Return one line for why a data set of the hub is not read, and what to do."""
    if said := hub_files.refused(error, name, page="datasets/"):
        return f"{key}.path: '{name}' {said}"
    if "any data files" in str(error):
        return f"{key}.path: '{name}' has no data files on the hub that are read ({', '.join(source.SUFFIXES[:4])})"
    return source.refusal(name, error, key)
