"""Rows of a .parquet file, some thousand at a time, only the columns that are wanted."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from starling_train.config.fields import UserError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

BATCH = 4096


def columns(file: Path) -> list[str]:
    """Return the names of the columns. Raises UserError for a file that is not parquet."""
    return list(_opened(file).schema_arrow.names)


def read(file: Path, wanted: Collection[str]) -> Iterator[tuple[str, dict]]:
    """Yield (`file, row 1` and on, row with the wanted columns, as far as they are there). Raises UserError."""
    parquet = _opened(file)
    names = [name for name in parquet.schema_arrow.names if name in wanted]
    batches = parquet.iter_batches(batch_size=BATCH, columns=names)
    before = 0
    while (rows := _next_rows(batches, file)) is not None:
        for number, row in enumerate(rows, start=before + 1):
            yield f"{file}, row {number}", row
        before += len(rows)


def _opened(file: Path) -> "ParquetFile":
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(file)
    except (ArrowException, OSError) as error:
        raise UserError(f"{file}: not a readable parquet file; download it again") from error


def _next_rows(batches: Iterator, file: Path) -> list[dict] | None:
    """Return the rows of the next batch, None after the last. A damaged page only shows when it is read."""
    from pyarrow import ArrowException

    try:
        batch = next(batches, None)
        return None if batch is None else batch.to_pylist()
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: damaged ({str(error).splitlines()[0]}); download it again") from error
