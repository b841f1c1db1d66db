"""Frames that are decoded when they are looked at, so that an episode of any length fits in memory."""

import math
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import UInt8

BLOCK_FRAMES = 32
"""Frames that are decoded at a time, at most."""
BLOCK_BYTES = 2**26
"""Fewer, where these would not hold them: 32 frames of 4K video take 800 MB."""


class LazyFrames:
    """The frames of one camera over one episode: a length, a size, and a function that decodes a stretch of them.

    Answers `len`, `shape` and slices as the array of all frames would, `(frames, height, width, 3)` uint8 RGB.
    """

    def __init__(self, count: int, size: tuple[int, int], read: Callable[[int, int], np.ndarray]) -> None:
        """`read(start, stop)` gives the frames of that stretch; `size` is their (height, width)."""
        self.shape = (count, *size, 3)
        self._read = read

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, stretch: slice) -> UInt8[np.ndarray, "n height width 3"]:
        start, stop, step = stretch.indices(len(self))
        assert step == 1, "frames are decoded in neighbouring stretches"
        frames = self._read(start, max(start, stop))
        wanted = (max(0, stop - start), *self.shape[1:])
        if frames.shape != wanted or frames.dtype != np.uint8:
            raise ValueError(f"frames {start} to {stop - 1} are {frames.dtype} {frames.shape}, not uint8 {wanted}")
        return frames


def blocks(
    frames: np.ndarray | LazyFrames, start: int = 0, stop: int | None = None
) -> Iterator[UInt8[np.ndarray, "n height width 3"]]:
    """The frames of a stretch, or all, in order, a few at a time."""
    stop = len(frames) if stop is None else stop
    size = max(1, min(BLOCK_FRAMES, BLOCK_BYTES // max(1, math.prod(frames.shape[1:]))))
    for first in range(start, stop, size):
        yield frames[first : min(stop, first + size)]
