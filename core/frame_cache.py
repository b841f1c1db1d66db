"""Decoded or lightly compressed frames of a store, made on demand and shared by all processes.

<tier>-<key>/            the key is of the store and of what is kept, so that no cache ever takes another's place
  <view>.npy              tier uint8: (rows, height, width, 3), the frames of the view's episodes one after another
  <view>/00000.bin, .npy  tiers jpeg and png: pictures of a block of rows, and where each lies
  rows.npy                int64 (views, episodes, 2): first row and length of each episode; length 0: not recorded
  manifest.json
"""

import os
import time
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torchvision.io import ImageReadMode, decode_image

from core.config import Config
from core.frame_cache_writer import BLOCK_ROWS, FrameCacheError, KeptFrames, make_frames
from core.rows import RowFile, Rows, RowsError
from core.run import Stage, StageBusyError, fingerprint_of, is_done, read_manifest, say
from core.store import Store

OPEN_BLOCKS = 32


class FramesConfig(Config):
    """From where training reads frames."""

    tier: Literal["video", "jpeg", "png", "uint8"] = "video"
    """video: decoded each time, no cache. jpeg: quality 95, png: exact, uint8: the pixels themselves, fastest."""
    directory: str = ""
    """Folder in which caches lie, each in one of its own, made when it is first needed; empty: frames in the store."""
    size: tuple[int, int] | None = None
    """(height, width) to which frames are resized before they are kept; none: as the store has them."""
    workers: int = 1
    """Processes that make the cache."""


@runtime_checkable
class FrameSource(Protocol):
    """Frames at random: a store itself, or a cache of it."""

    def gather(
        self, view: str, episodes: Int[np.ndarray, " n"], frames: Int[np.ndarray, " n"]
    ) -> UInt8[np.ndarray, "n height width 3"]:
        """The frames `(episodes[i], frames[i])` of a camera, in this order."""


def open_frames(store: Store, config: FramesConfig) -> FrameSource:
    """Frames of a store through the tier that is asked for; a cache that is not there is made, by one process.

    Raises:
        FrameCacheError: the cache is damaged, or its disk too small.
    """
    if config.tier == "video":
        if config.size or config.directory:
            raise FrameCacheError("frames.tier is video, which has no cache; leave out frames.size and directory")
        return store
    kept = KeptFrames(tier=config.tier, size=config.size)
    key = fingerprint_of([store.fingerprint, kept.model_dump(mode="json")])
    directory = Path(config.directory or store.path / "frames") / f"{config.tier}-{key}"
    waiting = False
    while not is_done(directory):
        try:
            stage = Stage.open(directory, "frame_cache", kept, {"store": store.fingerprint})
        except StageBusyError:
            if not waiting:
                say(f"another process makes the frames in {directory}; waiting for it")
            waiting = True
            time.sleep(1.0)
            continue
        if not stage.is_done:
            stage.finish(make_frames(store, kept, stage, config.workers))
    return FrameCache(directory)


class FrameCache:
    """Read access to cached frames; safe in forked processes."""

    def __init__(self, directory: Path) -> None:
        manifest = read_manifest(directory)
        self.fingerprint: str = manifest["fingerprint"]
        sizes: dict[str, tuple[int, int]] = {n: tuple(s) for n, s in manifest["summary"]["sizes"].items()}
        kind = _pixels if manifest["config"]["tier"] == "uint8" else _Pictures
        self._rows = Rows.load(directory, list(sizes))
        self._views = {view: kind(directory, view, size) for view, size in sizes.items()}

    def gather(
        self, view: str, episodes: Int[np.ndarray, " n"], frames: Int[np.ndarray, " n"]
    ) -> UInt8[np.ndarray, "n height width 3"]:
        """The frames `(episodes[i], frames[i])` of a camera, in this order.

        Raises:
            RowsError: an episode lacks the camera or the frame, or pixels were cut off.
            FrameCacheError: the cache is damaged.
        """
        rows = self._rows.numbers(view, episodes, frames)
        return self._views[view].rows(rows)


def _pixels(directory: Path, view: str, size: tuple[int, int]) -> RowFile:
    """Tier uint8: the pixels as they are."""
    try:
        file = RowFile(directory / f"{view}.npy")
    except RowsError as error:
        raise FrameCacheError(f"{error}; delete {directory}") from None
    if file.shape != (*size, 3) or file.dtype != np.uint8:
        raise FrameCacheError(f"{file.path} holds {file.dtype} {file.shape}; delete {directory}")
    return file


class _Block(NamedTuple):
    file: int
    pictures: np.ndarray
    """One `PICTURE` a row."""


class _Pictures:
    """Tiers jpeg and png: one picture after another, each with a checksum."""

    def __init__(self, directory: Path, view: str, size: tuple[int, int]) -> None:
        self._folder, self._size = directory / view, size
        self._open: OrderedDict[int, _Block] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        taken = np.empty((len(numbers), *self._size, 3), np.uint8)
        for place, number in enumerate(numbers.tolist()):
            block = self._block(number // BLOCK_ROWS)
            offset, size, checksum = block.pictures[number % BLOCK_ROWS].tolist()
            encoded = bytearray(os.pread(block.file, size, offset))
            if len(encoded) != size or zlib.crc32(encoded) != checksum:
                raise FrameCacheError(f"{self._folder}: picture {number} is damaged; delete {self._folder.parent}")
            pixels = decode_image(torch.frombuffer(encoded, dtype=torch.uint8), ImageReadMode.RGB)
            taken[place] = pixels.permute(1, 2, 0).numpy()
        return taken

    def _block(self, number: int) -> _Block:
        block = self._open.pop(number, None) or self._opened(number)
        self._open[number] = block
        while len(self._open) > OPEN_BLOCKS:
            os.close(self._open.popitem(last=False)[1].file)
        return block

    def _opened(self, number: int) -> _Block:
        file = self._folder / f"{number:05d}.bin"
        try:
            return _Block(os.open(file, os.O_RDONLY), np.load(file.with_suffix(".npy")))
        except (ValueError, EOFError, OSError) as error:
            raise FrameCacheError(f"{file} is missing or damaged ({error}); delete {self._folder.parent}") from None
