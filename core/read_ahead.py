"""Frames that loader workers read and the process that trains encodes: only there may an encoder use the GPU.

A worker makes a batch to find out which frames it takes.
The main process makes the same batch again, with those frames.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
from jaxtyping import UInt8

Frames = UInt8[np.ndarray, "n height width 3"]
_kept: ContextVar[list[np.ndarray] | None] = ContextVar("kept", default=None)
_given: ContextVar[Iterator[np.ndarray] | None] = ContextVar("given", default=None)


@contextmanager
def frames_kept() -> Iterator[list[np.ndarray]]:
    """A block in which nothing is encoded; what is read in it, in order."""
    kept: list[np.ndarray] = []
    token = _kept.set(kept)
    try:
        yield kept
    finally:
        _kept.reset(token)


@contextmanager
def frames_given(frames: Iterable[np.ndarray]) -> Iterator[None]:
    """A block in which these are taken, in order, instead of being read."""
    token = _given.set(iter(frames))
    try:
        yield
    finally:
        _given.reset(token)


def frames_by(read: Callable[[], Frames]) -> Frames:
    """What `read` gives, unless it was given already."""
    given, kept = _given.get(), _kept.get()
    frames = read() if given is None else next(given)
    if kept is not None:
        kept.append(frames)
    return frames


def is_only_reading() -> bool:
    """Whether whoever asks for features gets none, for the frames alone are wanted."""
    return _kept.get() is not None
