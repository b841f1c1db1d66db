"""Frames that are decoded when they are looked at, so that an episode of any length fits in memory."""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import UInt8

BLOCK_FRAMES = 32
"""Frames that are decoded at a time."""


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


def blocks(frames: np.ndarray | LazyFrames) -> Iterator[UInt8[np.ndarray, "n height width 3"]]:
    """All frames in order, a few at a time."""
    for start in range(0, len(frames), BLOCK_FRAMES):
        yield frames[start : start + BLOCK_FRAMES]
