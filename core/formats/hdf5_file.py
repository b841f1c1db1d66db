"""Looking things up in an HDF5 file nobody vouches for: no other file is opened, no claim believed unchecked."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np

from core.video_index import MOST_PIXELS

MOST_INFLATION = 1100
"""Bytes that a stored byte can stand for: deflate reaches 1032."""
MOST_CHUNK_BYTES = 2**30
"""Bytes of a chunk, which libhdf5 holds in memory as a whole."""
SOFT_LINKS = 8
"""Soft links followed for one name; more is a circle."""
Holder: TypeAlias = h5py.Group | h5py.Dataset


def found(group: h5py.Group, path: str, soft_links: int = SOFT_LINKS) -> Holder | None:
    """What lies at `path`, reached without leaving the file; None: nothing.

    Raises:
        ValueError: a link on the way leads to another file, nowhere, or in a circle.
    """
    here: Any = group
    for name in filter(None, path.split("/")):
        link = here.get(name, getlink=True) if isinstance(here, h5py.Group) else None
        if link is None:
            return None
        if isinstance(link, h5py.ExternalLink):
            raise ValueError(f"{path} is a link into another file, {link.filename}; copy its content into this file")
        if isinstance(link, h5py.SoftLink):
            start = here.file["/"] if link.path.startswith("/") else here
            here = found(start, link.path, soft_links - 1) if soft_links else None
            if here is None:
                raise ValueError(f"{path} is a link to {link.path}, which leads nowhere")
        else:
            here = here[name]
    return here if isinstance(here, Holder) else None


def numbers_at(group: h5py.Group, path: str) -> h5py.Dataset:
    """The dataset at `path`, once it is plain, whole, and no larger than its bytes in the file allow.

    Raises:
        ValueError: it is absent, or is not.
    """
    dataset = found(group, path)
    if dataset is None:
        raise ValueError(f"there is no {path}; there are {sorted(_paths(group))[:20]}")
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{path} is a group of {sorted(dataset)[:8]}; name one of them in the mapping")
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"{path} keeps its values in other files; copy them into this one")
    if not dataset.shape:
        raise ValueError(f"{path} holds a single value or none, not one row a frame")
    if dataset.dtype.kind not in "fiubS" and h5py.check_string_dtype(dataset.dtype) is None:
        raise ValueError(f"{path} holds {dataset.dtype}; numbers, flags or texts can be read")
    _bound(dataset, path)
    return dataset


def _bound(dataset: h5py.Dataset, path: str) -> None:
    claimed = math.prod(dataset.shape) * dataset.dtype.itemsize
    stored = dataset.id.get_storage_size()
    size = Path(dataset.file.filename).stat().st_size
    packing = dataset.id.get_create_plist().get_nfilters()
    most = stored * (MOST_INFLATION if packing else 1)
    if stored > size or claimed > most:
        raise ValueError(
            f"{path} claims {claimed} bytes {dataset.shape}; {stored} are said to be stored in a file of {size}"
        )
    if dataset.chunks:
        if math.prod(dataset.chunks) * dataset.dtype.itemsize > MOST_CHUNK_BYTES:
            raise ValueError(f"{path} claims chunks of {dataset.chunks}, over {MOST_CHUNK_BYTES} bytes each")
        needed = math.prod(-(-side // chunk) for side, chunk in zip(dataset.shape, dataset.chunks, strict=True))
        # A missing chunk would read as zeros: black frames that nobody recorded.
        if dataset.id.get_num_chunks() != needed:
            raise ValueError(f"{path} has {dataset.id.get_num_chunks()} of its {needed} chunks; the rest is missing")


def pictures_at(group: h5py.Group, path: str) -> h5py.Dataset:
    """The dataset of frames at `path`.

    Raises:
        ValueError: it is absent, damaged, or no uint8 RGB pictures.
    """
    dataset = numbers_at(group, path)
    if dataset.dtype != np.uint8 or dataset.ndim != 4 or dataset.shape[3] != 3:
        raise ValueError(
            f"{path} holds {dataset.dtype} of shape {dataset.shape}; frames are uint8 (frames, height, width, 3)"
        )
    if not 0 < dataset.shape[1] * dataset.shape[2] <= MOST_PIXELS:
        raise ValueError(f"{path} claims frames of {dataset.shape[1]} x {dataset.shape[2]} pixels")
    return dataset


def fact(name: str, places: Sequence[Holder | Mapping[str, Any] | None]) -> Any:
    """What the first of the places says of `name`, where `a/b` is key b of the JSON text a; None: nothing.

    Raises:
        ValueError: it is no text or number.
    """
    first, *rest = name.split("/")
    for place in places:
        if place is None:
            continue
        holds = place.attrs if isinstance(place, Holder) else place
        if first in holds:
            value = _plain(holds[first], first)
            for key in rest:
                value = value.get(key) if isinstance(value, dict) else None
            return value
        if isinstance(place, h5py.Group) and isinstance(text := found(place, name), h5py.Dataset):
            if math.prod(text.shape or ()) != 1:
                raise ValueError(f"{name} holds {text.shape} values; one is needed")
            return _plain(text[()], name)
    return None


def _plain(value: Any, name: str) -> Any:
    """A text, a number, or what a JSON text holds."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode()
    if not isinstance(value, str | int | float | dict | list):
        raise ValueError(f"{name} holds {type(value).__name__}, not a text or number")
    if isinstance(value, str) and value.lstrip()[:1] == "{":
        return parsed(value, name)
    return value


def parsed(text: str, name: str) -> dict[str, Any]:
    """The object of a JSON text.

    Raises:
        ValueError: it is none.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is damaged JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name} is JSON, but holds a {type(value).__name__}, not an object")
    return value


def _paths(group: h5py.Group, depth: int = 3) -> Iterator[str]:
    """Names of the datasets of an episode, for messages."""
    for name in group:
        holder = found(group, name)
        if isinstance(holder, h5py.Group) and depth:
            yield from (f"{name}/{inner}" for inner in _paths(holder, depth - 1))
        elif isinstance(holder, h5py.Dataset):
            yield name
