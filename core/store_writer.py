"""Writing a store: independent parts, each of which appears at once, whole, or not at all.

parts/part-00000/     renamed to this when complete; gone when `core.store_finish` has joined the parts
  data.parquet        frames, numbered from the start of the part
  episodes.parquet    one row an episode
  <view>.mp4, .npz    its frames one after another, and their index
  skipped.json        episodes that were left out, and why
  notes.json          what the reader noticed in these episodes, where there is one
"""

import io
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8
from PIL import Image

from core.duplicates import hash_of_actions, sampled, signature
from core.episode import Episode
from core.lazy_frames import LazyFrames, blocks
from core.statistics import QUANTILES
from core.store_layout import IMAGES, StoreError, StoreInfo, temporary
from core.store_tables import episode_row, episode_schema, frame_schema, frame_table, numbers_of
from core.video import VideoWriter

PICTURES_A_GROUP = 4
"""Rows of a data file that are read together where they hold pictures."""


def part_folder(path: str | Path, part: int) -> Path:
    """Where a part lies until the parts are joined."""
    return Path(path) / "parts" / f"part-{part:05d}"


def is_part_done(path: str | Path, part: int) -> bool:
    """Whether the part was written to its end."""
    return part_folder(path, part).is_dir()


def write_part(
    path: str | Path,
    part: int,
    episodes: Iterable[Episode],
    *,
    info: StoreInfo,
    skipped: Sequence[Mapping[str, str]] = (),
) -> None:
    """Write one part, an episode at a time; several processes may write different parts of one store.

    Args:
        path: the store.
        part: its number, from 0.
        episodes: taken one at a time, their frames a few at a time; numbers are kept as float32.
        info: the same for every part.
        skipped: episodes that were left out, with the key and the reason of each.

    Raises:
        ValueError: an episode does not fit `info`.
    """
    folder = part_folder(path, part)
    unfinished = temporary(folder)
    (Path(path) / "meta/info.json").unlink(missing_ok=True)
    for old in (unfinished, folder):
        shutil.rmtree(old, ignore_errors=True)
    unfinished.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    schema = episode_schema(info).append(pa.field("split", pa.string()))
    with ExitStack() as stack:
        files = _PartFiles(unfinished, info, stack)
        for episode in episodes:
            _check(episode, info)
            rows.append(files.append(episode) | {"split": episode.split})
        files.finish()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), unfinished / "episodes.parquet")
    (unfinished / "skipped.json").write_text(json.dumps(list(skipped)))
    _flush(unfinished)
    unfinished.replace(folder)


def _flush(folder: Path) -> None:
    for place in (*folder.iterdir(), folder):
        descriptor = os.open(place, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


class _PartFiles:
    """The data file and the videos of one part."""

    def __init__(self, folder: Path, info: StoreInfo, stack: ExitStack) -> None:
        self.folder, self.info = folder, info
        self.data = stack.enter_context(pq.ParquetWriter(folder / "data.parquet", frame_schema(info)))
        self.videos = {
            view: stack.enter_context(VideoWriter(folder / f"{view}.mp4", size, info.control_hz, info.codec))
            for view, size in info.views.items()
            if info.codec != "png"
        }

    def append(self, episode: Episode) -> dict[str, Any]:
        """Write an episode; what the table of episodes says of it."""
        row = episode_row(episode) | {"action_hash": hash_of_actions(episode.actions)}
        pictures: dict[str, list[bytes]] = {}
        for name, view in episode.views.items():
            if name in self.videos:
                start = self.videos[name].frames / self.info.control_hz
                row[f"videos/{IMAGES}{name}/from_timestamp"] = start
                row[f"videos/{IMAGES}{name}/to_timestamp"] = start + episode.length / self.info.control_hz
            looked_at, pictures[name] = self._append_frames(name, view.frames)
            row[f"signature/{name}"] = signature(looked_at)
            row |= {f"stats/{IMAGES}{name}/{fact}": value for fact, value in picture_statistics(looked_at).items()}
        rows = PICTURES_A_GROUP if self.info.codec == "png" else episode.length
        self.data.write_table(frame_table(episode, self.info, pictures), row_group_size=rows)
        return row

    def _append_frames(self, view: str, frames: np.ndarray | LazyFrames) -> tuple[np.ndarray, list[bytes]]:
        """Encode the frames of one view; gives the sampled ones, and all as pictures where they are kept so."""
        kept: dict[int, np.ndarray] = {}
        wanted, pictures, done = sampled(len(frames)), [], 0
        for block in blocks(frames):
            kept |= {number: block[number - done] for number in set(wanted) if done <= number < done + len(block)}
            if view in self.videos:
                self.videos[view].append(block)
            else:
                pictures += [_png(picture) for picture in block]
            done += len(block)
        return np.stack([kept[number] for number in wanted]), pictures

    def finish(self) -> None:
        self.data.close()
        for view, video in self.videos.items():
            if video.frames:
                video.finish().save(self.folder / f"{view}.npz")
                continue
            video.__exit__()
            video.path.unlink(missing_ok=True)


def _png(picture: UInt8[np.ndarray, "height width 3"]) -> bytes:
    with io.BytesIO() as buffer:
        Image.fromarray(picture).save(buffer, "png", compress_level=1, compress_type=zlib.Z_RLE)
        return buffer.getvalue()


def picture_statistics(frames: UInt8[np.ndarray, "n height width 3"]) -> dict[str, Any]:
    """Statistics of each colour, 0 to 1, in the form and under the names that LeRobot gives them."""
    facts: dict[str, list[Any]] = {}
    for colour in range(3):
        counts = np.bincount(frames[..., colour].reshape(-1), minlength=256)
        levels = np.flatnonzero(counts)
        mean = np.average(levels, weights=counts[levels])
        of_colour = {"min": levels[0], "max": levels[-1], "mean": mean}
        of_colour["std"] = np.sqrt(np.average((levels - mean) ** 2, weights=counts[levels]))
        reached = np.cumsum(counts)
        for q in QUANTILES:
            of_colour[f"q{round(100 * q):02d}"] = np.searchsorted(reached, q * (reached[-1] - 1), side="right")
        for name, value in of_colour.items():
            facts.setdefault(name, []).append([[float(value) / 255]])
    return facts | {"count": [len(frames)]}


def _check(episode: Episode, info: StoreInfo) -> None:
    episode.validate()
    where = f"episode {episode.episode_id}"
    sizes = {name: tuple(view.frames.shape[1:3]) for name, view in episode.views.items()}
    if wrong := {name: size for name, size in sizes.items() if info.views.get(name) != size}:
        raise StoreError(f"{where}: views {wrong} do not fit the store's views {info.views} (height, width)")
    if episode.control_hz != info.control_hz:
        raise StoreError(f"{where} has {episode.control_hz} Hz, the store {info.control_hz}; a store has one rate")
    if episode.actions is not None and episode.action_space != info.action_space:
        raise StoreError(f"{where}: action space {episode.action_space} is not the store's, {info.action_space}")
    if episode.proprioception is not None and episode.proprioception.shape[1] != info.proprioception_dims:
        dims = episode.proprioception.shape[1]
        raise StoreError(f"{where}: {dims} numbers of proprioception, the store has {info.proprioception_dims}")
    for name, values in episode.columns.items():
        column = info.columns.get(name)
        if column is None or tuple(values.shape[1:]) not in (column.shape, () if column.shape == (1,) else None):
            raise StoreError(f"{where}: column {name} of shape {values.shape} is not the store's, {column}")
    for name, numbers in numbers_of(episode).items():
        if numbers is not None and not np.isfinite(numbers).all():
            frame = int(np.argwhere(~np.isfinite(numbers).reshape(len(numbers), -1).all(1))[0, 0])
            raise StoreError(f"{where}: {name} of frame {frame} is not finite; mend or leave out the episode")
