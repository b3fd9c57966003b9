"""Which files a path means: one file, a directory (by splits, as on the hub), or a data set on the hub."""

import re
from pathlib import Path
from typing import NoReturn

from starling_train.config.fields import UserError, no_path

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
SUFFIXES = (".parquet", ".jsonl", ".json", ".csv", ".jsonl.gz", ".json.gz")
# names of files that say which split they hold: `train_prefs-00000-of-00001.parquet`, `test.parquet`
SPLIT_IN_NAME = re.compile(
    r"\A(?P<shards>.*)-\d{5}-of-\d{5}|(?<![a-z])(?P<word>train|test|testing|valid|validation|val|dev|eval)(?![a-z])"
)
ONLY_SPLIT = "train"
SLICE = re.compile(r"(?P<name>[^\[+]*)\[(?P<first>\d{0,18}):(?P<end>\d{0,18})\]")  # as `datasets` writes it


def suffix(path: Path) -> str:
    """Return the ending that says a file's format, `.jsonl.gz` for instance; "" for none of ours."""
    return next((ending for ending in SUFFIXES if path.name.endswith(ending)), "")


def is_on_hub(path: str | Path) -> bool:
    """Return whether a path that does not exist here can be an id on the hub."""
    return not Path(path).expanduser().exists() and bool(HUB_ID.fullmatch(str(path))) and not suffix(Path(path))


def sliced(split: str, key: str) -> tuple[str, slice]:
    """Return the name of a split of files and which of its rows are meant: `train[:300]`; without brackets all.

    Raises UserError for what only `datasets` understands: percentages, numbers from the end, sums.
    """
    if (parts := SLICE.fullmatch(split)) is None:
        if "[" in split:
            raise UserError(f"{key}.split: {split!r}: rows of files are counted from the start, e.g. train[100:400]")
        return split, slice(None)
    return parts["name"], slice(*(int(part) if part else None for part in (parts["first"], parts["end"])))


def local_files(
    path: str | Path, subset: str | None = None, split: str = ONLY_SPLIT, key: str = "data"
) -> list[Path] | None:
    """Return the files behind a path, or None for an id on the hub. Raises UserError.

    path: a file, or a directory: with `*.parquet` or `data/*.parquet`, or laid out as a data set on the hub.
    subset: of a directory whose README.md names several; None: there is one.
    split: of a directory; a file is all of the split `train`.
    key: the section of the configuration that names the path, for messages.
    """
    local = Path(path).expanduser()
    if reason := no_path(local):
        raise UserError(f"{str(path)[:80]!r} cannot be a path ({reason}); check {key}.path")
    if local.is_dir():
        return _in_directory(local, subset, split, key)
    if local.is_file():
        if not suffix(local):
            raise UserError(f"{path}: not one of {', '.join(SUFFIXES[:4])}; convert it to one of them")
        if split != ONLY_SPLIT:
            no_split(str(path), split, [ONLY_SPLIT], key)
        return [local]
    if is_on_hub(path):
        return None
    raise UserError(f"{path}: no such file or directory; check {key}.path")


def no_split(source: str, split: str, existing: list[str], key: str) -> NoReturn:
    raise UserError(f"{key}.split: {source} has no split {split!r}; use one of: {', '.join(existing)}")


def _in_directory(local: Path, subset: str | None, split: str, key: str) -> list[Path]:
    files = sorted(local.glob("data/*.parquet")) or sorted(local.glob("*.parquet"))
    marks = [mark for file in files if (mark := SPLIT_IN_NAME.search(file.name.lower()))]
    only = {mark["shards"] or mark["word"] for mark in marks} <= {ONLY_SPLIT} and not (local / "README.md").exists()
    if files and only and subset is None and split == ONLY_SPLIT:
        return files  # `datasets`, which takes seconds to import, is not needed
    if not files and not any(suffix(file) for file in local.rglob("*")):
        raise UserError(f"{local}: no .parquet file in it or in its data/; give a directory like Nectar's")
    by_split = _splits(local, subset, key)
    if split not in by_split:
        no_split(str(local), split, sorted(by_split), key)
    found = [Path(file) for file in by_split[split]]
    if wrong := [file for file in found if not suffix(file)]:
        raise UserError(f"{wrong[0]}: not one of {', '.join(SUFFIXES[:4])}; convert it to one of them")
    return found


def _splits(local: Path, subset: str | None, key: str) -> dict[str, list[str]]:
    """Return the files of each split: as the README.md says, or by their names, in the way of `datasets`."""
    from datasets import load_dataset_builder

    try:
        files = load_dataset_builder(str(local), subset).config.data_files or {}
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(refusal(str(local), error, key)) from error
    return {str(split): list(map(str, found)) for split, found in files.items()}


def refusal(source: str, error: Exception, key: str) -> str:
    """Return one line for what `datasets` says of a data set that it does not read."""
    text = " ".join(str(error).split("Example of usage")[0].split()) or type(error).__name__
    if isinstance(error, ValueError) and ("BuilderConfig" in text or "Config name" in text):
        return f"{key}.subset: {source}: {text[:300]}; name one that it has"
    if isinstance(error, RuntimeError) and "script" in text:
        return f"{source}: a script, which is not run here ({text[:200]}); give its files as parquet or JSON"
    return f"{source}: not readable ({text[:300]}); repair or download its files again, and give their directory"
