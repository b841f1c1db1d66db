"""Episodes on disk, in the LeRobot v3.0 layout: ours, with a checksum for everything, or what LeRobot itself wrote.

    store/
      data/chunk-000/file-000.parquet                one row a frame
      videos/<feature>/chunk-000/file-000.mp4        the episodes' frames one after another
      meta/episodes/chunk-000/file-000.parquet       one row an episode
      meta/tasks.parquet, meta/stats.json
      meta/info.json                                 written last of all; its presence means "complete"

LeRobot has no place for the rest, and does not look at it:

      meta/splits.json                               which episodes are held out
      meta/video_index/<feature>/chunk-000/*.npz     where each encoded frame lies, and its checksum
      meta/hashes.json, meta/skipped.json

Numbers of a frame that the episode does not have (actions, proprioception, extrinsics) are NaN there and None here.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from einops import rearrange
from jaxtyping import Float, Int, UInt8

from core.episode import Episode, View
from core.pictures import decode_image
from core.run import say
from core.store_contents import Contents, episode_ids, file_numbers, read_contents
from core.store_finish import finish_store, is_store_done
from core.store_layout import (
    ACTION,
    DATA,
    EXTRINSICS,
    INDICES,
    STATE,
    ColumnInfo,
    StoreError,
    StoreInfo,
    file_of,
)
from core.store_tables import flat_values
from core.store_writer import is_part_done, write_part
from core.table_reader import TableReader
from core.video import VideoReader

__all__ = [
    "ActionsHiddenError",
    "ColumnInfo",
    "EpisodeRecord",
    "Store",
    "StoreError",
    "StoreInfo",
    "finish_store",
    "is_part_done",
    "is_store_done",
    "write_part",
]


class NoActionsError(StoreError):
    """Actions of an episode that was recorded without them."""


class ActionsHiddenError(NoActionsError):
    """Actions of an unlabelled episode were asked for by something other than an audit."""


@dataclass(frozen=True, kw_only=True)
class EpisodeRecord:
    """One row of the table of episodes."""

    index: int
    episode_id: str
    task: str
    instruction: str
    length: int
    views: tuple[str, ...]
    is_labelled: bool
    split: str
    start: int
    """Number of its first frame in the whole store."""
    extra: dict[str, Any]


class EpisodeTable(Sequence[EpisodeRecord]):
    """The records of all episodes, made when they are looked at: a table of a million takes a few hundred MB."""

    def __init__(self, contents: Contents) -> None:
        self._contents, self._table = contents, contents.table
        self._ids = pa.array(episode_ids(self._table))
        self._starts = np.cumsum(self._table["length"].to_numpy()) - self._table["length"].to_numpy()

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, index: SupportsIndex) -> EpisodeRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[EpisodeRecord]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> EpisodeRecord | list[EpisodeRecord]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = index.__index__()
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        return self._record(number % len(self))

    def __iter__(self) -> Iterator[EpisodeRecord]:
        return (self._record(number) for number in range(len(self)))

    def _record(self, number: int) -> EpisodeRecord:
        instruction = (self._value("tasks", number) or [""])[0]
        return EpisodeRecord(
            index=number,
            episode_id=self._ids[number].as_py(),
            task=self._value("task", number) or "_".join(instruction.lower().split()) or "unknown",
            instruction=instruction,
            length=self._value("length", number),
            views=tuple(self._value("views", number) or self._contents.features),
            is_labelled=self._value("is_labelled", number) is not False,
            split=self._contents.splits[number],
            start=int(self._starts[number]),
            extra=json.loads(self._value("extra", number) or "{}"),
        )

    def _value(self, name: str, number: int) -> Any:
        return self._table[name][number].as_py() if name in self._table.column_names else None

    def select(self, split: str | None, task: str | None, is_labelled: bool | None) -> list[EpisodeRecord]:
        """The episodes with all of the given properties, in order."""
        chosen = np.ones(len(self), bool)
        if split is not None:
            chosen &= np.array(self._contents.splits) == split
        if is_labelled is not None and "is_labelled" in self._table.column_names:
            chosen &= pc.equal(self._table["is_labelled"], is_labelled).to_numpy()
        elif is_labelled is False:
            chosen[:] = False
        records = [self._record(int(number)) for number in np.flatnonzero(chosen)]
        return records if task is None else [record for record in records if record.task == task]


class Store:
    """Read access to a complete store; safe in forked and spawned processes."""

    def __init__(self, path: Path, contents: Contents) -> None:
        self.path, self.info, self.fingerprint = path, contents.info, contents.fingerprint
        self.notes = contents.notes
        self.episodes = EpisodeTable(contents)
        self.num_frames: int = pc.sum(contents.table["length"]).as_py()
        self._contents = contents
        self._videos, self._tables = VideoReader(contents.hashes), TableReader(contents.hashes)
        videos = {view: f"videos/{name}" for view, name in contents.features.items() if view not in contents.pictures}
        self._files = {kind: file_numbers(contents.table, kind) for kind in ("data", *videos.values())}
        self._starts_s = {
            view: contents.table[f"{kind}/from_timestamp"].to_numpy(zero_copy_only=False)
            for view, kind in videos.items()
        }
        self._has_view = {view: ~np.isnan(starts) for view, starts in self._starts_s.items()}
        self._has_view |= _pictured(contents)
        self._lengths = contents.table["length"].to_numpy()
        files_start = np.array([contents.first_rows[number] for number in self._files["data"].tolist()])
        self._first_rows = contents.table["dataset_from_index"].to_numpy() - files_start
        self._numbers_of = contents.table["episode_index"].to_numpy()

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        """The store at `path`; says what it promises and does not hold.

        Raises:
            StoreError: there is none, it is not complete, it is damaged, or it has another format.
        """
        contents = read_contents(Path(path))
        for note in contents.notes:
            say(f"{path}: {note}")
        return cls(Path(path), contents)

    def select(
        self, *, split: str | None = None, task: str | None = None, is_labelled: bool | None = None
    ) -> list[EpisodeRecord]:
        """The episodes with all of the given properties, in order."""
        return self.episodes.select(split, task, is_labelled)

    def frames(
        self, episode: int, view: str, indices: Sequence[int] | np.ndarray | None = None
    ) -> UInt8[np.ndarray, "n h w 3"]:
        """RGB frames of one camera, all or those with the given numbers within the episode, in the order given.

        Raises:
            StoreError: the episode lacks the camera or the frame, or the frame is damaged.
        """
        self._require_view(episode, view)
        length = int(self._lengths[episode])
        numbers = np.arange(length) if indices is None else np.asarray(indices, np.int64).reshape(-1)
        if ((numbers < 0) | (numbers >= length)).any():
            name, outside = self.episodes[episode].episode_id, numbers[(numbers < 0) | (numbers >= length)]
            raise StoreError(f"{name} has frames 0..{length - 1}, asked for {outside[:5].tolist()}")
        read = self._pictures if view in self._contents.pictures else self._video_frames
        try:
            frames = read(episode, view, numbers)
            if frames.shape[1:3] != self.info.views[view]:
                raise ValueError(f"frames have {frames.shape[1:3]} pixels, info.json says {self.info.views[view]}")
        except ValueError as error:
            name = self.episodes[episode].episode_id
            raise StoreError(f"{name} in {self.path}, view {view}: {error}") from None
        return frames

    def gather(
        self, view: str, episodes: Int[np.ndarray, " n"], frames: Int[np.ndarray, " n"]
    ) -> UInt8[np.ndarray, "n h w 3"]:
        """The frames `(episodes[i], frames[i])` of a camera, in this order.

        Raises:
            StoreError: as `frames`.
        """
        gathered = np.empty((len(episodes), *self.info.views.get(view, (0, 0)), 3), np.uint8)
        if self._are_in_video(view, episodes, frames):
            try:
                return self._gather_by_file(view, episodes, frames, gathered)
            except ValueError:
                pass  # one by one, to name the episode
        for episode in np.unique(episodes).tolist():
            rows = np.flatnonzero(episodes == episode)
            gathered[rows] = self.frames(episode, view, frames[rows])
        return gathered

    def _are_in_video(self, view: str, episodes: np.ndarray, frames: np.ndarray) -> bool:
        if (
            view not in self._starts_s
            or not len(episodes)
            or episodes.min() < 0
            or episodes.max() >= len(self._lengths)
        ):
            return False
        is_there = self._has_view[view][episodes] & (frames >= 0) & (frames < self._lengths[episodes])
        return bool(is_there.all())

    def _gather_by_file(
        self, view: str, episodes: np.ndarray, frames: np.ndarray, gathered: np.ndarray
    ) -> UInt8[np.ndarray, "n h w 3"]:
        """Frames of all episodes of a file at once, which saves the work that each read begins with."""
        files = self._files[f"videos/{self._contents.features[view]}"][episodes]
        times_s = self._starts_s[view][episodes] + frames / self.info.control_hz
        for number in np.unique(files).tolist():
            rows = np.flatnonzero(files == number)
            read = self._read_video(view, number, times_s[rows])
            if read.shape[1:] != gathered.shape[1:]:
                raise StoreError(f"frames have {read.shape[1:3]} pixels")
            gathered[rows] = read
        return gathered

    def _video_frames(self, episode: int, view: str, numbers: np.ndarray) -> np.ndarray:
        number = int(self._files[f"videos/{self._contents.features[view]}"][episode])
        return self._read_video(view, number, self._starts_s[view][episode] + numbers / self.info.control_hz)

    def _read_video(self, view: str, number: int, times_s: np.ndarray) -> np.ndarray:
        name = self._contents.features[view]
        index = file_of(self.path, f"{INDICES}/{name}", number) if self._contents.is_ours else None
        return self._videos.read(file_of(self.path, f"videos/{name}", number), times_s, index)

    def _pictures(self, episode: int, view: str, numbers: np.ndarray) -> np.ndarray:
        name, (height, width) = self._contents.features[view], self.info.views[view]
        frames = np.empty((len(numbers), height, width, 3), np.uint8)
        for place, (number, picture) in enumerate(self._encoded(episode, name, numbers)):
            if not isinstance(picture, dict) or not picture.get("bytes"):
                raise StoreError(f"frame {number} has no picture")
            pixels = decode_image(picture["bytes"])
            if pixels.shape[:2] != (height, width):
                raise StoreError(f"frame {number} has {pixels.shape[:2]} pixels, info.json says {(height, width)}")
            frames[place] = pixels
        return frames

    def _encoded(self, episode: int, name: str, numbers: np.ndarray) -> Iterator[tuple[int, Any]]:
        """Pictures as they stand in the table; neighbours are read together: LeRobot writes an episode as one group."""
        if len(numbers) and np.ptp(numbers) < 2 * len(numbers):
            first = int(numbers.min())
            together = self._rows(episode, [name], first, int(numbers.max()) + 1)[name]
            yield from ((number, together[number - first].as_py()) for number in numbers.tolist())
            return
        for number in numbers.tolist():
            yield number, self._rows(episode, [name], number, number + 1)[name][0].as_py()

    def actions(self, episode: int, *, for_audit: bool = False) -> Float[np.ndarray, "t d"]:
        """Actions, one a frame, in the units of `info.action_space`.

        Raises:
            ActionsHiddenError: the episode is unlabelled and this is no audit.
            NoActionsError: none were recorded.
            StoreError: the file that holds them is damaged.
        """
        record = self._record(episode)
        if not (record.is_labelled or for_audit):
            raise ActionsHiddenError(
                f"{record.episode_id} is unlabelled: its actions must not be used; take episodes from "
                "select(is_labelled=True), or pass for_audit=True in an audit"
            )
        actions = self._numbers(episode, ACTION)
        if actions is None:
            raise NoActionsError(f"{record.episode_id} in {self.path} was recorded without actions")
        return actions

    def proprioception(self, episode: int) -> Float[np.ndarray, "t d"] | None:
        """Proprioception, one a frame; None where it was not recorded."""
        return self._numbers(episode, STATE)

    def extrinsics(self, episode: int, view: str) -> Float[np.ndarray, "t 3 4"] | None:
        """World to camera, one a frame; None where unknown.

        Raises:
            StoreError: the episode lacks the camera.
        """
        self._require_view(episode, view)
        flat = self._numbers(episode, EXTRINSICS + view)
        return None if flat is None else rearrange(flat, "t (row column) -> t row column", row=3)

    def columns(self, episode: int) -> dict[str, np.ndarray]:
        """Further things of each frame, `(t, *shape)`; single values as `(t,)`, texts as objects."""
        names, length = list(self.info.columns), self._record(episode).length
        if not names:
            return {}
        rows = self._rows(episode, names, 0, length)
        return {name: flat_values(rows[name], length) for name in names if rows[name].null_count < length}

    def episode(self, index: int, *, views: Sequence[str] | None = None, for_audit: bool = False) -> Episode:
        """Everything about one episode, with all of its cameras or those named; `actions` is None where hidden."""
        record = self._record(index)
        is_hidden = not (record.is_labelled or for_audit)
        return Episode(
            episode_id=record.episode_id,
            task=record.task,
            instruction=record.instruction,
            control_hz=self.info.control_hz,
            views={
                view: View(frames=self.frames(index, view), extrinsics=self.extrinsics(index, view))
                for view in (record.views if views is None else views)
            },
            actions=None if is_hidden else self._numbers(index, ACTION),
            action_space=self.info.action_space,
            proprioception=self.proprioception(index),
            columns=self.columns(index),
            is_labelled=record.is_labelled,
            split=record.split,
            extra=record.extra,
        )

    def _record(self, episode: int) -> EpisodeRecord:
        if not 0 <= episode < len(self.episodes):
            raise StoreError(f"{self.path} has episodes 0..{len(self.episodes) - 1}, asked for {episode}")
        return self.episodes[episode]

    def _require_view(self, episode: int, view: str) -> None:
        if not (view in self._has_view and 0 <= episode < len(self._lengths) and self._has_view[view][episode]):
            record = self._record(episode)
            raise StoreError(f"{record.episode_id} in {self.path} has the views {record.views}, not {view!r}")

    def _numbers(self, episode: int, column: str) -> np.ndarray | None:
        """A float column of one episode; None where the store or the episode lacks it."""
        record = self._record(episode)
        if column not in self._tables.columns(self._data_file(episode)):
            return None
        rows = self._rows(episode, [column], 0, record.length)
        values = flat_values(rows[column], record.length)
        if values.dtype.kind not in "fiub" or values.ndim != 2:
            raise StoreError(f"{record.episode_id} in {self.path}: {column} holds {values.dtype}, {values.ndim} axes")
        values = values.astype(np.float32, copy=False)
        if np.isnan(values).all():
            return None
        if not np.isfinite(values).all():
            frame = int(np.argmax(~np.isfinite(values).all(1)))
            raise StoreError(f"{record.episode_id} in {self.path}: {column} of frame {frame} is not finite")
        return values

    def _rows(self, episode: int, columns: list[str], start: int, stop: int) -> pa.Table:
        """Rows of an episode in its data file, once they are seen to be its own."""
        file, first, number = self._data_file(episode), int(self._first_rows[episode]), self._numbers_of[episode]
        rows = self._tables.rows(file, first + start, first + stop, [*columns, "episode_index"])
        if not np.array_equal(rows["episode_index"].to_numpy(), np.full(stop - start, number)):
            raise StoreError(f"{file}: rows {first} to {first + stop - 1} are not of episode {number} alone")
        return rows

    def _data_file(self, episode: int) -> Path:
        return file_of(self.path, DATA, int(self._files["data"][episode]))


def _pictured(contents: Contents) -> dict[str, np.ndarray]:
    """Which episodes have each of the views that are kept as pictures."""
    if not contents.pictures:
        return {}
    if "views" not in contents.table.column_names:
        return {view: np.ones(len(contents.table), bool) for view in contents.pictures}
    views = contents.table["views"].to_pylist()
    return {view: np.array([not of_one or view in of_one for of_one in views]) for view in contents.pictures}
