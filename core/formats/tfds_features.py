"""What a TensorFlow Datasets folder says of itself: features.json and dataset_info.json; and values as they describe.

The files are protocol buffer messages in JSON (feature.proto and dataset_info.proto of tensorflow_datasets 4). An
example keeps each leaf under the names on its path, joined by '/'; what belongs to steps stands there once a step.
"""

import json
import zlib
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.formats.interface import SourceError
from core.formats.tfrecord import Feature, RecordError

LARGEST_DESCRIPTION = 64 * 2**20
"""Bytes of a JSON file; more is taken for damage."""
UNSIGNED, SIGNED = ("uint8", "uint16", "uint32", "uint64"), ("int8", "int16", "int32", "int64")
NUMBERS = {name: np.dtype(name) for name in ("bool", "float16", "float32", "float64", *UNSIGNED, *SIGNED)}
STEPS = "steps"


class Leaf(NamedTuple):
    """One feature that an example holds."""

    kind: str
    """number, text, image; other kinds (ragged, video, ...) are known by name and cannot be read."""
    dtype: str = ""
    shape: tuple[int | None, ...] = ()
    """Of one step's value; None where it differs from example to example."""
    encoding: str = "none"
    """Of numbers: none, bytes or zlib."""

    @property
    def size(self) -> int:
        """Values a step; 0 where it is not known beforehand."""
        return 0 if None in self.shape else prod(size or 0 for size in self.shape)

    def described(self) -> str:
        """For messages: float32 (7,), for instance."""
        return f"{self.kind} {self.dtype} {self.shape}".replace("  ", " ")


class Features(NamedTuple):
    """The leaves of an example by their path."""

    steps: dict[str, Leaf]
    """Those of each step, by the path below the step."""
    episode: dict[str, Leaf]
    """Those of the episode as a whole."""
    steps_name: str
    """Where the steps stand in an example; usually steps."""


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping.

    Raises:
        SourceError: it cannot be read, or is something else.
    """
    try:
        if file.stat().st_size > LARGEST_DESCRIPTION:
            raise SourceError(f"{file} has {file.stat().st_size} bytes; a description of a data set is far smaller")
        content = json.loads(file.read_bytes(), object_pairs_hook=_without_repetition)
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise SourceError(f"{file} holds a {type(content).__name__}, not a mapping")
    return content


def read_features(file: Path) -> Features:
    """What features.json says an example holds.

    Raises:
        SourceError: it is damaged, of an older form, or describes no steps.
    """
    content = read_json(file)
    if "featuresDict" not in content:
        raise SourceError(
            f"{file} does not describe a features_dict in the form of tensorflow_datasets 4 (keys: {sorted(content)}); "
            "write the data set anew with a current version"
        )
    try:
        top = _children(content)
        sequences = [name for name, child in top.items() if "sequence" in child]
        name = STEPS if STEPS in sequences else sequences[0] if len(sequences) == 1 else ""
        if not name:
            raise SourceError(
                f"{file}: an example holds {sorted(top)}, none of them a sequence of steps; episodes cannot be told "
                "from each other. Only data sets with one episode an example (RLDS) can be read"
            )
        steps = dict(_leaves(top.pop(name)["sequence"]["feature"], ""))
        return Features(steps, {path: leaf for key in top for path, leaf in _leaves(top[key], key)}, name)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{file} is damaged: {type(error).__name__} {error}") from None


def values(leaf: Leaf, stored: Feature, steps: int = 0) -> np.ndarray:
    """What a feature holds, one row a step: numbers of `leaf.shape`, or texts and encoded pictures as bytes (object).

    `steps` is how many there must be; 0: as many as there are.

    Raises:
        RecordError: it does not fit the description.
    """
    if leaf.kind not in ("number", "text", "image"):
        raise RecordError(f"it is {leaf.described()}, which cannot be read")
    if leaf.kind != "number":
        shape = leaf.shape if leaf.kind == "text" else ()
        return _rows(leaf._replace(shape=shape), np.array(stored.bytes_list(), object), steps)
    dtype = NUMBERS[leaf.dtype]
    if leaf.encoding != "none":
        return _from_bytes(leaf, stored.bytes_list(), steps)
    if dtype.kind == "f":
        return _rows(leaf, stored.floats().astype(dtype), steps)
    integers = stored.integers()
    if dtype == np.uint64:  # tensorflow_datasets keeps its bits in an int64.
        return _rows(leaf, integers.view(np.uint64), steps)
    low, high = (0, 1) if dtype == np.bool_ else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if len(integers) and not low <= integers.min() <= integers.max() <= high:
        raise RecordError(f"it holds {integers.min()} to {integers.max()}, more than {leaf.dtype} can")
    return _rows(leaf, integers.astype(dtype), steps)


def _rows(leaf: Leaf, flat: np.ndarray, steps: int) -> np.ndarray:
    if not leaf.size or len(flat) % leaf.size or (steps and len(flat) != steps * leaf.size):
        raise RecordError(f"it holds {len(flat)} values, not {steps or 'a number of'} steps of {leaf.described()}")
    return flat.reshape(-1, *(size or 0 for size in leaf.shape))


def _from_bytes(leaf: Leaf, entries: list[bytes], steps: int) -> np.ndarray:
    dtype = NUMBERS[leaf.dtype]
    size = leaf.size * dtype.itemsize
    if leaf.encoding == "zlib":
        entries = [_inflated(entry, size) for entry in entries]
    if wrong := {len(entry) for entry in entries} - {size}:
        raise RecordError(f"a value has {sorted(wrong)} bytes, {leaf.described()} has {size}")
    packed = np.frombuffer(b"".join(entries), np.uint8)
    if dtype == np.bool_ and packed.max(initial=0) > 1:
        raise RecordError("it holds bytes that are neither true nor false")
    return _rows(leaf, packed.view(dtype), steps)


def _inflated(entry: bytes, size: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        # One byte more than wanted shows that there is too much, without unpacking all of it.
        unpacked = stream.decompress(entry, size + 1)
    except (zlib.error, OverflowError) as error:
        raise RecordError(f"a value cannot be unpacked: {error}") from None
    if not stream.eof:
        raise RecordError(f"a packed value of {len(entry)} bytes does not end after {size} bytes")
    return unpacked


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError(f"a key stands twice among {sorted(key for key, _ in pairs)[:20]}")
    return dict(pairs)


def _children(described: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return dict(described["featuresDict"]["features"])


def _leaves(described: dict[str, Any], path: str) -> Iterator[tuple[str, Leaf]]:
    if "featuresDict" in described:
        for name, child in _children(described).items():
            yield from _leaves(child, f"{path}/{name}" if path else name)
    elif "tensor" in described:
        tensor = described["tensor"]
        kind = "text" if tensor["dtype"] in ("string", "object") else "number"
        if kind == "number" and tensor["dtype"] not in NUMBERS:
            kind = "numbers of type"
        encoding = str(tensor.get("encoding", "none")).lower()
        if encoding not in ("none", "bytes", "zlib"):
            raise ValueError(f"{path} has the unknown encoding {encoding}")
        yield path, Leaf(kind, tensor["dtype"], _shape(tensor), encoding)
    elif "image" in described:
        image = described["image"]
        yield path, Leaf("image", image.get("dtype", "uint8"), _shape(image))
    elif "text" in described:
        yield path, Leaf("text", "string")
    elif "classLabel" in described:
        yield path, Leaf("number", "int64")
    else:
        yield path, Leaf(str(described.get("pythonClassName", "unknown")).rsplit(".", 1)[-1])


def _shape(described: dict[str, Any]) -> tuple[int | None, ...]:
    sizes = [int(size) for size in described.get("shape", {}).get("dimensions", [])]
    if any(size < -1 for size in sizes):
        raise ValueError(f"a shape is {sizes}")
    return tuple(None if size == -1 else size for size in sizes)
