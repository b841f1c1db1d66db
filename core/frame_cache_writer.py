"""Making a cache of frames: block by block, in several processes, each block whole or not at all."""

import io
import os
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from core.config import Config
from core.rows import Rows
from core.run import Stage
from core.store import Store
from core.workers import worker_pool

BLOCK_ROWS = 1024
"""Frames of a view that one worker writes at a time."""
PICTURE = np.dtype([("offset", "<u8"), ("size", "<u4"), ("checksum", "<u4")])


class FrameCacheError(ValueError):
    """Cached frames that are missing, damaged, or of another store."""


class KeptFrames(Config):
    """What a cache holds of each frame; with the store's fingerprint, its key."""

    tier: Literal["jpeg", "png", "uint8"]
    """How frames are kept."""
    size: tuple[int, int] | None
    """(height, width), where they were resized."""


class Work(NamedTuple):
    """Neighbouring rows of a view: what one worker writes at a time."""

    view: str
    number: int
    """Of the block."""
    pieces: list[tuple[int, int, int]]
    """(episode, first frame, end) of each of its stretches."""


def make_frames(store: Store, kept: KeptFrames, stage: Stage, workers: int) -> dict[str, Any]:
    """Write the frames of a store to the stage's directory; what is there already stays.

    Raises:
        FrameCacheError: the disk is too small.
    """
    sizes = {view: kept.size or size for view, size in store.info.views.items()}
    rows = Rows.of(store, list(sizes))
    if kept.tier == "uint8":
        _claim_files(stage.path, sizes, rows)
    rows.save(stage.path)
    work = [item for view, of_view in zip(sizes, rows.table, strict=True) for item in _work_of(view, of_view)]
    left = [item for item in work if not _marker(stage.path, item, kept).exists()]
    job = _Job(str(store.path), stage.path, kept, sizes)
    with tqdm(total=len(work), initial=len(work) - len(left), unit="block", desc="frames", mininterval=1.0) as bar:
        if workers == 1:
            for item in left:
                _write(item, store, job)
                bar.update()
        else:
            with worker_pool(workers, _start_worker, (job,)) as pool:
                for future in as_completed([pool.submit(_write_in_worker, item) for item in left]):
                    future.result()
                    bar.update()
    return {"frames": sum(rows.counts().values()), "sizes": sizes}


class _Job(NamedTuple):
    store: str
    directory: Path
    kept: KeptFrames
    sizes: dict[str, tuple[int, int]]


def _work_of(view: str, rows: np.ndarray) -> list[Work]:
    work: list[Work] = []
    for episode, (first, length) in enumerate(rows.tolist()):
        start = 0
        while start < length:
            number, used = divmod(first + start, BLOCK_ROWS)
            end = min(length, start + BLOCK_ROWS - used)
            if not work or work[-1].number != number:
                work.append(Work(view, number, []))
            work[-1].pieces.append((episode, start, end))
            start = end
    return work


def _claim_files(directory: Path, sizes: dict[str, tuple[int, int]], rows: Rows) -> None:
    """Claim the space of all files at once: writing to a memory map on a full disk would kill the process."""
    shapes = {directory / f"{view}.npy": (count, *sizes[view], 3) for view, count in rows.counts().items()}
    missing = {file: shape for file, shape in shapes.items() if not file.exists()}
    needed, free = sum(int(np.prod(shape)) for shape in missing.values()), shutil.disk_usage(directory).free
    if needed > 0.98 * free:
        raise FrameCacheError(
            f"frames need {needed / 1e9:.2f} GB as uint8 and the disk of {directory} has {free / 1e9:.2f} GB free; "
            "choose tier jpeg, a smaller frames.size, or another frames.directory"
        )
    for file, shape in missing.items():
        partial = file.with_suffix(".partial")
        mapped = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
        with partial.open("r+b") as claimed:
            os.posix_fallocate(claimed.fileno(), 0, mapped.offset + mapped.nbytes)
        partial.replace(file)


def _marker(directory: Path, work: Work, kept: KeptFrames) -> Path:
    """The file that says that a block is written."""
    ending = "done" if kept.tier == "uint8" else "npy"
    return directory / work.view / f"{work.number:05d}.{ending}"


_worker: tuple[Store, _Job]


def _start_worker(job: _Job) -> None:
    global _worker
    _worker = (Store.open(job.store), job)


def _write_in_worker(work: Work) -> None:
    _write(work, *_worker)


def _write(work: Work, store: Store, job: _Job) -> None:
    """Write a block; its marker comes last."""
    marker = _marker(job.directory, work, job.kept)
    marker.parent.mkdir(exist_ok=True)
    if job.kept.tier == "uint8":
        _write_pixels(work, store, job)
        marker.touch()
        return
    blob, pictures = io.BytesIO(), []
    for frames in _frames(work, store, job):
        for frame in frames:
            encoded = _encoded(frame, job.kept.tier)
            pictures.append((blob.tell(), len(encoded), zlib.crc32(encoded)))
            blob.write(encoded)
    marker.with_suffix(".bin").write_bytes(blob.getvalue())
    partial = marker.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, np.array(pictures, PICTURE))
    partial.replace(marker)


def _write_pixels(work: Work, store: Store, job: _Job) -> None:
    mapped = np.lib.format.open_memmap(job.directory / f"{work.view}.npy", "r+")
    row = work.number * BLOCK_ROWS
    for frames in _frames(work, store, job):
        mapped[row : row + len(frames)] = frames
        row += len(frames)
    mapped.flush()


def _frames(work: Work, store: Store, job: _Job) -> Iterator[UInt8[np.ndarray, "n height width 3"]]:
    for episode, start, end in work.pieces:
        yield _resized(store.frames(episode, work.view, np.arange(start, end)), job.sizes[work.view])


def _resized(frames: UInt8[np.ndarray, "n h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "n height width 3"]:
    if frames.shape[1:3] == size:
        return frames
    pictures = [Image.fromarray(frame).resize(size[::-1], Image.Resampling.BICUBIC) for frame in frames]
    return np.stack([np.asarray(picture) for picture in pictures])


def _encoded(frame: UInt8[np.ndarray, "h w 3"], tier: str) -> bytes:
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if tier == "jpeg" else {"compress_level": 1}
    with io.BytesIO() as buffer:
        Image.fromarray(frame).save(buffer, tier, **options)
        return buffer.getvalue()
