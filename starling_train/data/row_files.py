"""Files that hold Nectar-like rows, read one raw dict at a time: parquet, JSONL, a hub data set."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from starling_train.config.fields import UserError, no_path

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def read(path: str | Path, columns: list[str], keep: Sequence[str] = ()) -> Iterator[tuple[str, dict]]:
    """Yield (where, raw row); `where` is what a message about the row should name.

    path: a directory with data/*.parquet (or *.parquet), a .parquet file, a .jsonl file, or a hub id.
    columns: the parquet columns that must exist; Nectar's others, and those to `keep`, are read where they do.
    """
    files = _local_files(path)
    if files is None:
        yield from _hub_rows(str(path), columns)
    for file in files or []:
        yield from (jsonl_rows(file) if file.suffix == ".jsonl" else _parquet_rows(file, columns, keep))


def jsonl_rows(file: Path) -> Iterator[tuple[str, dict]]:
    """Yield (file:line, object) of a JSONL file, blank lines skipped. Raises UserError naming the line."""
    with _opened(file) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{file}:{number}", _json_object(line, f"{file}:{number}")


def _opened(file: Path) -> BinaryIO:
    try:
        return open(file, "rb")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); check the path and its permissions") from error


def _json_object(line: bytes, where: str) -> dict:
    try:
        row = json.loads(line.decode("utf-8-sig"))
        if b"\\u" in line:  # JSON can write half a surrogate pair, which no tokenizer takes
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: half a surrogate pair, which is not Unicode text; repair or remove it") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg}); every line must be one JSON object") from error
    except (RecursionError, ValueError) as error:  # nested too deep, or a number of thousands of digits
        raise UserError(f"{where}: JSON that cannot be read; every line must be one JSON object") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: a JSON {type(row).__name__}; every line must be one JSON object")
    return row


def _local_files(path: str | Path) -> list[Path] | None:
    """Return the files behind a path, or None for a hub id."""
    local = Path(path).expanduser()
    if reason := no_path(local):
        raise UserError(f"{str(path)[:80]!r} cannot be a path ({reason}); check data.path")
    if local.is_dir():
        files = sorted(local.glob("data/*.parquet")) or sorted(local.glob("*.parquet"))
        if not files:
            raise UserError(f"{path}: no .parquet file in it or in its data/; give a directory like Nectar's")
        return files
    if local.is_file():
        if local.suffix not in (".parquet", ".jsonl"):
            raise UserError(f"{path}: neither .parquet nor .jsonl; convert it to one of the two")
        return [local]
    if HUB_ID.fullmatch(str(path)) and local.suffix not in (".parquet", ".jsonl"):
        return None
    raise UserError(f"{path}: no such file or directory; check data.path")


def _parquet_rows(file: Path, columns: list[str], keep: Sequence[str]) -> Iterator[tuple[str, dict]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        parquet = ParquetFile(file)
    except (ArrowException, OSError) as error:
        raise UserError(f"{file}: not a readable parquet file; download it again") from error
    schema = parquet.schema_arrow
    _check_columns(str(file), schema.names, columns)
    _check_types(str(file), schema, columns)
    known = [*columns, *({"source", "good_natured", *keep} & set(schema.names) - set(columns))]
    batches = parquet.iter_batches(batch_size=4096, columns=known)
    while (rows := _next_rows(batches, file)) is not None:
        for row in rows:
            yield str(file), row


def _next_rows(batches: Iterator, file: Path) -> list[dict] | None:
    """Return the rows of the next batch, None after the last. A damaged page only shows when it is read."""
    from pyarrow import ArrowException

    try:
        batch = next(batches, None)
        return None if batch is None else batch.to_pylist()
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: damaged ({str(error).splitlines()[0]}); download it again") from error


def _check_columns(source: str, present: list[str], columns: list[str]) -> None:
    missing = [name for name in columns if name not in present]
    if missing:
        raise UserError(
            f"{source}: column {', '.join(missing)} is missing (it has {', '.join(present)}); "
            "give a file in Nectar's schema"
        )


def _check_types(source: str, schema, columns: list[str]) -> None:
    prompt = schema.field("prompt").type
    if not _is_text(prompt):
        raise UserError(f"{source}: column prompt is {prompt}; it must be string")
    if "answers" in columns and not _is_answers(schema.field("answers").type):
        raise UserError(
            f"{source}: column answers is {schema.field('answers').type}; it must be a list of "
            "{answer: string, model: string, rank: double}"
        )


def _is_text(kind) -> bool:
    return str(kind) in ("string", "large_string", "string_view")


def _is_answers(kind) -> bool:
    from pyarrow import types

    if not (types.is_list(kind) or types.is_large_list(kind)) or not types.is_struct(kind.value_type):
        return False
    fields = {inner.name: inner.type for inner in kind.value_type}
    return _is_text(fields.get("answer")) and (types.is_floating(fields["rank"]) if "rank" in fields else False)


def _hub_rows(name: str, columns: list[str]) -> Iterator[tuple[str, dict]]:
    # datasets 4 and newer run no script of a repository, so a hub id cannot bring code along.
    from datasets import load_dataset

    try:
        dataset = load_dataset(name, split="train")
    except (FileNotFoundError, ConnectionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{name}: no such directory here, and not readable from the hub ({reason})") from error
    _check_columns(name, dataset.column_names, columns)
    for row in dataset:
        yield name, row
