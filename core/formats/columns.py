"""Further columns of each frame: the types that stores have, and which of them hold the values of others."""

import numpy as np

from core.store_layout import ColumnInfo

STORED = ("bool", "string", "uint8", "int8", "int16", "int32", "int64", "float32", "float64")
"""What a column of a store can be."""
WIDER = {"float16": "float32", "uint16": "int32", "uint32": "int64", "uint64": "int64"}
"""Types that stores lack, and those that hold the same values; of uint64 all but the very large ones."""


def column_info(name: str, dtype: str, shape: tuple[int, ...]) -> ColumnInfo:
    """What a store keeps of a source's column.

    Raises:
        ValueError: no column of a store holds it.
    """
    stored = WIDER.get(dtype, dtype)
    if stored not in STORED:
        raise ValueError(
            f"{name} holds {dtype}, for which there is no column; leave it out: name those to keep in the mapping's "
            f"columns"
        )
    return ColumnInfo(stored, shape)


def widened(name: str, values: np.ndarray) -> np.ndarray:
    """The same values, of a type that stores have.

    Raises:
        ValueError: there is none, or a value is too large for it.
    """
    if values.dtype.kind == "O":
        return values
    column_info(name, values.dtype.name, values.shape[1:])
    if values.dtype == np.uint64 and values.max(initial=0) > np.iinfo(np.int64).max:
        raise ValueError(
            f"{name} holds {values.max()}, more than an int64 column can; leave it out: name those to keep in the "
            f"mapping's columns"
        )
    return values.astype(WIDER.get(values.dtype.name, values.dtype.name), copy=False)
