"""Tables of numbers beside a clip, CSV or parquet, and their rows at each control step."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

TIME = "time_s"
"""Column of seconds since the beginning of the clip."""
MOST_BYTES = 2**28
MOST_ROWS = 10_000_000
OTHER_RATE = 0.1
"""Part by which rows may come faster or slower than control steps, for clocks that are not exact."""
WIDER = {"float16": "float32", "uint16": "int32", "uint32": "int64"}


@dataclass(frozen=True)
class Table:
    """Columns of equal length by their names; without `time_s`, row `i` belongs to control step `i`."""

    file: str
    columns: dict[str, np.ndarray]

    @property
    def length(self) -> int:
        """Rows."""
        return len(next(iter(self.columns.values())))

    @property
    def names(self) -> list[str]:
        """All columns but the time."""
        return [name for name in self.columns if name != TIME]

    def values(self, name: str) -> np.ndarray:
        """A column: numbers, flags, or texts."""
        return self.columns[name]

    def numbers(self, name: str) -> Float[np.ndarray, " rows"]:
        """A column of numbers.

        Raises:
            ValueError: there is none, or it holds something else; the row is named.
        """
        if name not in self.columns:
            raise ValueError(f"{self.file} has no column {name}, it has {self.names}; see the mapping's actions")
        values = self.columns[name]
        if values.dtype.kind == "O":
            row = next(row for row, text in enumerate(values) if _number(text) is None)
            raise ValueError(f"{self.file}, column {name}, row {row}: {str(values[row])[:40]!r} is no number")
        return values.astype(np.float64)

    def first(self, rows: int) -> "Table":
        """The table without the rows after these."""
        return Table(self.file, {name: values[:rows] for name, values in self.columns.items()})

    def require_rate(self, control_hz: float) -> None:
        """Refuse rows that come at another rate than control steps: increments between two steps would be lost.

        Raises:
            ValueError: they do; the message names both rates.
        """
        times = self.numbers(TIME) if TIME in self.columns else np.zeros(1)
        if len(times) < 2:
            return
        rate = (len(times) - 1) / float(times[-1] - times[0])
        if abs(rate - control_hz) > OTHER_RATE * control_hz:
            harm = "increments between two steps would be lost" if rate > control_hz else "increments would count twice"
            raise ValueError(
                f"{self.file} has {rate:.4g} rows a second, control_hz is {control_hz:g}: {harm}; set control_hz to "
                f"{rate:.4g}, or give one row a control step with increments summed, or, if its numbers are no "
                "increments, say so with action_space in the mapping (kind absolute_end_effector, joint_position, ...)"
            )

    def at_steps(self, steps: int, control_hz: float) -> "Table":
        """One row for each control step; the last step may lack.

        Raises:
            ValueError: there are more or fewer rows, or none within a control step of one.
        """
        if TIME not in self.columns:
            if self.length not in (steps, steps - 1):
                raise ValueError(
                    f"{self.file} has {self.length} rows, the clips {steps} frames at {control_hz:g} Hz; one row a "
                    f"frame is needed (or one fewer), or a column {TIME}; the rows fit the clips at about "
                    f"{self.length / steps * control_hz:.3g} Hz"
                )
            return self
        times = self.numbers(TIME)
        if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
            raise ValueError(f"{self.file}: {TIME} must be finite and ascending; sort the rows, and leave one a time")
        wanted = np.arange(steps) / control_hz
        right = np.clip(np.searchsorted(times, wanted), 0, len(times) - 1)
        left = np.maximum(right - 1, 0)
        nearest = np.where(np.abs(wanted - times[left]) <= np.abs(times[right] - wanted), left, right)
        far = np.abs(times[nearest] - wanted) > 1 / control_hz * (1 + 1e-6)
        if far[:-1].any() or (far[-1:].any() and steps < 2):
            raise ValueError(
                f"{self.file} has no row within a control step ({1 / control_hz:.3f} s) of {wanted[far][0]:.3f} s; its "
                f"{TIME} goes from {times[0]:.3f} to {times[-1]:.3f} s, the clips from 0 to {wanted[-1]:.3f} s"
            )
        rows = nearest[: steps - int(far[-1])]
        return Table(self.file, {name: values[rows] for name, values in self.columns.items()})


def read_table(file: Path) -> Table:
    """The table in a CSV file with a row of names, or in a parquet file.

    Raises:
        ValueError: it is empty, damaged, not a table of single values, or too large.
    """
    if file.stat().st_size > MOST_BYTES:
        raise ValueError(f"{file.name} has {file.stat().st_size} bytes, over {MOST_BYTES}")
    columns = _of_csv(file) if file.suffix == ".csv" else _of_parquet(file)
    if not columns or not len(next(iter(columns.values()))):
        raise ValueError(f"{file.name} has no rows")
    return Table(file.name, columns)


def _of_csv(file: Path) -> dict[str, np.ndarray]:
    try:
        rows = [row for row in csv.reader(io.StringIO(file.read_text("utf-8-sig"), newline=""), strict=True) if row]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.name} is not UTF-8 (at byte {error.start}); save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise ValueError(f"{file.name} is no CSV: {error}") from None
    if not rows:
        raise ValueError(f"{file.name} is empty")
    names = [name.strip() for name in rows[0]]
    if all(_number(name) is not None for name in names) or not all(names) or len(set(names)) < len(names):
        raise ValueError(
            f"{file.name} begins with {rows[0][:8]}; the first row must name each column, with commas between"
        )
    for number, row in enumerate(rows[1:]):
        if len(row) != len(names):
            raise ValueError(f"{file.name}, row {number} has {len(row)} values, {len(names)} columns are named")
    return {name: _typed_column([row[place] for row in rows[1:]]) for place, name in enumerate(names)}


def _typed_column(texts: list[str]) -> np.ndarray:
    numbers = [_number(text) for text in texts]
    return np.array(texts, object) if None in numbers else np.array(numbers, np.float64)


def _number(text: object) -> float | None:
    try:
        return float(str(text))
    except ValueError:
        return None


def _of_parquet(file: Path) -> dict[str, np.ndarray]:
    try:
        table = pq.ParquetFile(file, memory_map=False)
        rows, names = table.metadata.num_rows, table.schema_arrow.names
        if not 0 <= rows * max(1, len(names)) <= MOST_ROWS or len(set(names)) < len(names):
            raise ValueError(f"{file.name} claims {rows} rows of {names[:8]}; that cannot be one episode")
        content = table.read(use_threads=False)
        return {name: _of_arrow(file, name, content[name]) for name in names}
    except (OSError, KeyError, pa.ArrowException, MemoryError, OverflowError) as error:
        raise ValueError(f"{file.name} is no parquet file, or damaged: {error}") from None


def _of_arrow(file: Path, name: str, column: pa.ChunkedArray) -> np.ndarray:
    kind = column.type
    is_single = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    if column.null_count or not (is_single or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(f"{file.name}, column {name} is {kind} with {column.null_count} gaps; give one value a row")
    if not is_single:
        return np.array(column.to_pylist(), object)
    values = column.to_numpy()
    values = values.astype(WIDER.get(values.dtype.name, values.dtype.name), copy=False)
    if values.dtype == np.uint64:
        raise ValueError(f"{file.name}, column {name} holds uint64, for which there is no column; save it as int64")
    return values
