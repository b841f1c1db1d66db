"""Rows of parquet files by their numbers, with a bounded number of open files, each checked when it is opened."""

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from core.run import fingerprint_of_file
from core.store_layout import StoreError

OPEN_FILES = 16


class _Open(NamedTuple):
    file: pq.ParquetFile
    names: list[str]
    """Columns; asking the file each time costs more than reading a row."""
    starts: list[int]
    """First row of each row group, and the number of rows."""


class TableReader:
    """Reads stretches of rows; safe after a fork and in copies sent to other processes."""

    def __init__(self, hashes: Mapping[str, str] | None = None) -> None:
        """`hashes` are the fingerprints of files by their paths; files that are not listed are not checked."""
        self._hashes = dict(hashes or {})
        self._unchanged: set[Path] = set()
        """Files that were checked; a file is opened again and again where there are many."""
        self._open: OrderedDict[Path, _Open] = OrderedDict()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}

    def columns(self, path: Path) -> list[str]:
        """Names of the columns of a file."""
        return self._table(path).names

    def rows(self, path: Path, start: int, stop: int, columns: list[str]) -> pa.Table:
        """Rows `start` to `stop` of some columns.

        Raises:
            StoreError: the file is missing, damaged, or shorter, or lacks a column.
        """
        table = self._table(path)
        if missing := sorted(set(columns) - set(table.names)):
            raise StoreError(f"{path} lacks the columns {missing}")  # pyarrow would leave them out without a word
        if not 0 <= start < stop <= table.starts[-1]:
            raise StoreError(f"{path} has {table.starts[-1]} rows, rows {start} to {stop - 1} were asked for")
        first, last = bisect_right(table.starts, start) - 1, bisect_right(table.starts, stop - 1) - 1
        try:
            read = table.file.read_row_groups(list(range(first, last + 1)), columns=columns, use_threads=False)
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise StoreError(f"{path} is damaged: {error}") from None
        return read.slice(start - table.starts[first], stop - start)

    def _table(self, path: Path) -> _Open:
        if self._process != os.getpid():
            self._open, self._process = OrderedDict(), os.getpid()
        table = self._open.pop(path, None) or self._checked(path)
        self._open[path] = table
        while len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)[1].file.close()
        return table

    def _checked(self, path: Path) -> _Open:
        if path not in self._unchanged:
            require_unchanged(path, self._hashes.get(str(path)))
            self._unchanged.add(path)
        file = open_table(path)
        sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        return _Open(
            file, list(file.schema_arrow.names), np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).tolist()
        )


def open_table(path: Path) -> pq.ParquetFile:
    """A parquet file.

    Raises:
        StoreError: it is missing or damaged.
    """
    try:
        return pq.ParquetFile(path, memory_map=False)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is missing or damaged: {error}") from None


def require_unchanged(path: Path, fingerprint: str | None) -> None:
    """Check a file against the fingerprint that was taken when it was written.

    Raises:
        StoreError: it is missing, or has changed.
    """
    if fingerprint is None:
        return
    if not path.is_file():
        raise StoreError(f"{path} is missing; restore it, or run the stage that writes its episodes again")
    if fingerprint_of_file(path) != fingerprint:
        raise StoreError(f"{path} is damaged: it is not what was written; restore it, or write the store again")
