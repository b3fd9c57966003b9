"""Rows of a data set, whatever its format: one raw dict a row, with the columns under our names."""

from collections.abc import Collection, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path

from starling_train.config.fields import UserError
from starling_train.data.rows import csv_rows, hub_rows, json_rows, parquet_rows, source

HEAD = 100  # rows of a JSON file within which a renamed column must come

Located = Iterator[tuple[str, dict]]


class Table:
    """The rows of a data set, to go over once: (where, row); `where` is what a message about the row should name.

    columns: names of all columns, ours where they are renamed; of JSON files those of the rows so far.
    """

    def __init__(
        self,
        path: str | Path,
        wanted: Collection[str],
        *,
        subset: str | None = None,
        split: str = source.ONLY_SPLIT,
        columns: Mapping[str, str] | None = None,
        key: str = "data",
    ):
        """Find the files. Raises UserError; more is raised while the rows are read.

        path: a file, a directory or an id on the hub, see `source.local_files`.
        wanted: columns to read, under our names, as far as they are there.
        subset: of a data set that has several.
        split: of the data set.
        columns: our name -> the data's name, of columns that are named otherwise there.
        key: the section of the configuration that says all this, for messages.
        """
        self.path = str(path)
        self.columns: set[str] = set()
        self._theirs = dict(columns or {})
        self._wanted = {self._theirs.get(name, name) for name in wanted} | set(self._theirs.values())
        self._rows = slice(None)
        if not source.is_on_hub(path):
            split, self._rows = source.sliced(split, key)
        self._files = source.local_files(path, subset, split, key)
        self._hub = (self.path, subset, split)
        self._key = key

    def __iter__(self) -> Located:
        if self._files is None:
            names, rows = hub_rows.read(*self._hub, self._wanted, self._key)
            yield from self._renamed(self.path, names, rows)  # `datasets` has cut them
        local = (row for file in self._files or [] for row in self._renamed(str(file), *self._opened(file)))
        yield from islice(local, self._rows.start, self._rows.stop)

    def _opened(self, file: Path) -> tuple[list[str] | None, Located]:
        """Return (names of a file's columns, or None where every row has its own; its rows)."""
        ending = source.suffix(file)
        if ending == ".parquet":
            return parquet_rows.columns(file), parquet_rows.read(file, self._wanted)
        if ending == ".csv":
            return csv_rows.columns(file), csv_rows.read(file)
        return None, json_rows.read_lines(file) if ending.startswith(".jsonl") else json_rows.read(file)

    def _renamed(self, name: str, names: list[str] | None, rows: Located) -> Located:
        """Yield a file's rows under our names. names: of its columns, None for those of each row."""
        if names is None:
            head = list(islice(rows, HEAD))
            names, rows = list(dict.fromkeys(key for _, row in head for key in row)), chain(head, rows)
        for ours, theirs in self._theirs.items() if names else ():
            if theirs not in names:
                listed = ", ".join(names)
                raise UserError(f"{self._key}.columns: {name} has no column {theirs!r} for {ours}; it has {listed}")
        self.columns |= self._ours(dict.fromkeys(names)).keys()
        for where, row in rows:
            renamed = self._ours(row) if self._theirs else row
            self.columns |= renamed.keys()
            yield where, renamed

    def _ours(self, row: dict) -> dict:
        kept = {key: value for key, value in row.items() if key not in self._theirs.values()}
        return kept | {ours: row[theirs] for ours, theirs in self._theirs.items() if theirs in row}
