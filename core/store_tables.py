"""Tables of a store: frames of one episode, and the row that the table of episodes has for it."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from einops import rearrange

from core.episode import Episode
from core.statistics import describe
from core.store_layout import (
    ACTION,
    EXTRINSICS,
    IMAGES,
    INDEX_FEATURES,
    STATE,
    ColumnInfo,
    StoreError,
    StoreInfo,
    list_widths,
    publish,
    temporary,
)

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""How a picture stands in a table."""


def write_table(table: pa.Table, file: Path) -> None:
    """Write a parquet file atomically."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, temporary(file))
    publish(file)


def frame_schema(info: StoreInfo) -> pa.Schema:
    """Columns of the data files."""
    fields = [(name, pa.list_(pa.float32(), width)) for name, width in list_widths(info).items()]
    if info.codec == "png":
        fields += [(IMAGES + view, PICTURE) for view in info.views]
    fields += [(name, _column_type(name, column)) for name, column in info.columns.items()]
    return pa.schema(fields + [(name, getattr(pa, kind)()) for name, kind in INDEX_FEATURES.items()])


def _column_type(name: str, column: ColumnInfo) -> pa.DataType:
    kind = {"bool": "bool_"}.get(column.dtype, column.dtype)
    if kind not in ("bool_", "string", "uint8", "int8", "int16", "int32", "int64", "float32", "float64"):
        raise StoreError(f"column {name} is {column.dtype}, which is neither a number, a flag nor a text")
    type_ = getattr(pa, kind)()
    for _ in column.shape if column.shape != (1,) else ():
        type_ = pa.list_(type_)
    return type_


def numbers_of(episode: Episode) -> dict[str, np.ndarray | None]:
    """The float arrays of an episode by the column that keeps them."""
    extrinsics = {EXTRINSICS + name: view.extrinsics for name, view in episode.views.items()}
    return {ACTION: episode.actions, STATE: episode.proprioception, **extrinsics}


def frame_table(episode: Episode, info: StoreInfo, pictures: dict[str, list[bytes]]) -> pa.Table:
    """Rows of one episode in its data file, counted from the start of the file; `pictures` are those of its views."""
    numbers, steps = numbers_of(episode), np.arange(episode.length)
    columns: dict[str, Any] = {
        "timestamp": (steps / info.control_hz).astype(np.float32),
        "frame_index": steps,
        **{name: np.zeros_like(steps) for name in ("episode_index", "index", "task_index")},
    }
    for name, width in list_widths(info).items():
        values = numbers.get(name)
        flat = np.full(episode.length * width, np.nan) if values is None else values.reshape(-1)
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(flat.astype(np.float32)), width)
    for view in info.views if info.codec == "png" else ():
        encoded: Sequence[bytes | None] = pictures.get(view) or (None,) * episode.length
        columns[IMAGES + view] = pa.array(
            [picture and {"bytes": picture, "path": None} for picture in encoded], PICTURE
        )
    for name, column in info.columns.items():
        columns[name] = _column(episode.columns.get(name), column, episode.length)
    return pa.table(columns).select(frame_schema(info).names).cast(frame_schema(info))


def _column(values: np.ndarray | None, column: ColumnInfo, length: int) -> pa.Array:
    if values is None:
        return pa.nulls(length, _column_type("", column))
    array = pa.array(values.reshape(-1).tolist() if column.dtype == "string" else values.reshape(-1))
    for size in reversed(column.shape if column.shape != (1,) else ()):
        array = pa.ListArray.from_arrays(pa.array(np.arange(0, len(array) + 1, size, dtype=np.int32)), array)
    return array


def placed(table: pa.Table, episode: int, first: int, task: int) -> pa.Table:
    """Rows of one episode with the numbers that they have in the whole store."""
    steps = np.arange(len(table))
    places = {"episode_index": steps * 0 + episode, "index": first + steps, "task_index": steps * 0 + task}
    for name, values in places.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    return table


def episode_schema(info: StoreInfo) -> pa.Schema:
    """Columns of the table of episodes."""
    whole = ["episode_index", "length", "dataset_from_index", "dataset_to_index", "task_index"]
    whole += [f"{kind}/{which}_index" for kind in ("data", "meta/episodes") for which in ("chunk", "file")]
    fields = [(name, pa.int64()) for name in whole]
    fields += [(name, pa.string()) for name in ("episode_id", "task", "extra", "action_hash")]
    fields += [("tasks", pa.list_(pa.string())), ("views", pa.list_(pa.string())), ("is_labelled", pa.bool_())]
    for view in info.views:
        if info.codec != "png":
            fields += [(f"videos/{IMAGES}{view}/{which}_index", pa.int64()) for which in ("chunk", "file")]
            fields += [(f"videos/{IMAGES}{view}/{end}_timestamp", pa.float64()) for end in ("from", "to")]
        fields += [(f"signature/{view}", pa.binary())]
    for name in (ACTION, STATE, *(IMAGES + view for view in info.views)):
        if name in (ACTION, STATE) and name not in list_widths(info):
            continue
        # LeRobot keeps the statistics of pictures as (channels, 1, 1).
        kind = pa.list_(pa.float64()) if name in (ACTION, STATE) else pa.list_(pa.list_(pa.list_(pa.float64())))
        fields += [(f"stats/{name}/{fact}", kind) for fact in ("min", "max", "mean", "std", "q01", "q10", "q50")]
        fields += [(f"stats/{name}/{fact}", kind) for fact in ("q90", "q99")]
        fields += [(f"stats/{name}/count", pa.list_(pa.int64()))]
    return pa.schema(fields)


def episode_row(episode: Episode) -> dict[str, Any]:
    """What the table of episodes says of one, but for its place."""
    row: dict[str, Any] = {name: getattr(episode, name) for name in ("episode_id", "task", "is_labelled", "length")}
    row |= {"tasks": [episode.instruction], "views": list(episode.views)}
    row["extra"] = json.dumps(episode.extra, sort_keys=True, default=np.generic.item)
    for name in (ACTION, STATE):
        values = numbers_of(episode)[name]
        if values is not None:
            row |= {f"stats/{name}/{fact}": value for fact, value in describe([values]).items()}
    return row


def flat_values(column: pa.ChunkedArray, length: int) -> np.ndarray:
    """A column as one array, one row a frame; lists in lists become axes, texts an array of objects.

    Raises:
        StoreError: the rows differ in size.
    """
    array = column.combine_chunks()
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    sizes: list[int] = []
    while pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        before = len(array)
        array = array.flatten()
        if before == 0 or len(array) % before:
            raise StoreError(f"rows of a column differ in size: {len(array)} values in {before} rows")
        sizes.append(len(array) // before)
    if array.null_count and pa.types.is_floating(array.type):
        array = array.fill_null(float("nan"))
    values = array.to_numpy(zero_copy_only=False)
    return values.reshape(length, *sizes)


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    """A column of lists of one width as one row a frame."""
    width = column.type.list_size
    return np.concatenate([rearrange(c.flatten().to_numpy(), "(t d) -> t d", d=width) for c in column.chunks])


def batches(file: Path, column: str) -> Iterator[np.ndarray]:
    """A float column of a data file, some rows at a time, without the frames that lack it."""
    for batch in pq.ParquetFile(file).iter_batches(columns=[column]):
        values = matrix(pa.chunked_array([batch[column]]))
        known = values[~np.isnan(values).all(1)]
        if len(known):
            yield known
