"""Rows of a .csv file, whose first line names the columns: every cell is text, as it stands."""

import csv
from collections.abc import Iterator
from pathlib import Path

from starling_train.config.fields import UserError

LARGEST_CELL = 1 << 30


def columns(file: Path) -> list[str]:
    """Return the names in the first line."""
    return next((cells for _, cells in _records(file)), [])


def read(file: Path) -> Iterator[tuple[str, dict]]:
    """Yield (file:line, row); the line is the row's last. A cell is text, or None where it is empty.

    Raises UserError naming the line.
    """
    names: list[str] | None = None
    for where, cells in _records(file):
        if names is None:
            names = cells
            if repeated := [name for place, name in enumerate(names) if name in names[:place]]:
                raise UserError(f"{where}: two columns are named {repeated[0]!r}; give each a name of its own")
        elif len(cells) != len(names):
            raise UserError(
                f"{where}: {len(cells)} cells, but the first line names {len(names)}; quote cells with commas"
            )
        else:
            yield where, {name: cell or None for name, cell in zip(names, cells, strict=True)}


def _records(file: Path) -> Iterator[tuple[str, list[str]]]:
    csv.field_size_limit(LARGEST_CELL)
    try:
        with open(file, encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, strict=True)
            for cells in reader:
                if cells:
                    yield f"{file}:{reader.line_num}", cells
    except csv.Error as error:
        raise UserError(f"{file}:{reader.line_num}: not CSV ({error}); repair the line") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); check the path and its permissions") from error
