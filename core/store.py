"""Episodes on disk, in the LeRobot v3.0 layout; nothing else in the project knows it.

    store/
      data/chunk-000/file-<part>.parquet             one row a frame; one row group an episode
      videos/<camera>/chunk-000/file-<part>.mp4      the episodes' frames one after another
      meta/episodes/chunk-000/file-<part>.parquet    one row an episode; written last, its presence commits the part
      meta/tasks.parquet, meta/stats.json
      meta/info.json                                 written last of all; its presence means "complete"

Numbers of a frame that the episode does not have (actions, proprioception, extrinsics) are NaN there and None here.
"""

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from einops import rearrange
from jaxtyping import Float, UInt8

from core.episode import Episode, View
from core.store_layout import (
    ACTION,
    DATA,
    EPISODES,
    EXTRINSICS,
    FORMAT,
    IMAGES,
    OURS,
    STATE,
    StoreError,
    StoreInfo,
    episode_rows,
    info_from_json,
    matrix,
    part_file,
)
from core.store_writer import finish_store, is_part_done, write_part
from core.video import OPEN_FILES, VideoReader

__all__ = [
    "ActionsHiddenError",
    "EpisodeRecord",
    "Store",
    "StoreError",
    "StoreInfo",
    "finish_store",
    "is_part_done",
    "write_part",
]


class ActionsHiddenError(StoreError):
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


class Store:
    """Read access to a complete store; safe in forked and spawned processes."""

    def __init__(self, path: Path, info: StoreInfo, fingerprint: str, rows: list[dict[str, Any]]) -> None:
        self.path = path
        self.info = info
        self.fingerprint = fingerprint
        self.episodes = [_record(row) for row in rows]
        self.num_frames = sum(record.length for record in self.episodes)
        self._rows = rows
        self._videos = VideoReader(info.control_hz)
        self._tables: OrderedDict[int, pq.ParquetFile] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tables": OrderedDict()}

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        """The store at `path`.

        Raises:
            StoreError: there is none, it is not complete, or another program wrote it.
        """
        path = Path(path)
        file = path / "meta/info.json"
        if not file.is_file():
            state = "was started but is not complete" if (path / "meta").is_dir() else "does not exist"
            raise StoreError(f"the store {path} {state}: no {file}; run the stage that writes its episodes (again)")
        described = json.loads(file.read_text())
        if described.get("codebase_version") != FORMAT or OURS not in described:
            raise StoreError(
                f"{path} has format {described.get('codebase_version')} and was not written by this project; "
                "convert it with the reader of its format in core/formats"
            )
        parts = range(described[OURS]["parts"])
        missing = [
            str(part_file(path, kind, part))
            for part in parts
            for kind in (DATA, EPISODES)
            if not part_file(path, kind, part).is_file()
        ]
        if missing:
            raise StoreError(
                f"the store {path} lost {', '.join(missing)}; run the stage that writes its episodes again"
            )
        return cls(
            path,
            info_from_json(described),
            described[OURS]["fingerprint"],
            [r for p in parts for r in episode_rows(path, p)],
        )

    def select(
        self, *, split: str | None = None, task: str | None = None, is_labelled: bool | None = None
    ) -> list[EpisodeRecord]:
        """The episodes with all of the given properties, in order."""
        wanted = {"split": split, "task": task, "is_labelled": is_labelled}
        wanted = {name: value for name, value in wanted.items() if value is not None}
        return [record for record in self.episodes if all(getattr(record, n) == v for n, v in wanted.items())]

    def frames(self, episode: int, view: str, indices: Sequence[int] | None = None) -> UInt8[np.ndarray, "n h w 3"]:
        """RGB frames of one camera, all or those with the given numbers within the episode, in the order given.

        Raises:
            StoreError: the episode lacks the camera or the frame.
        """
        record = self._with_view(episode, view)
        numbers = list(range(record.length)) if indices is None else [int(number) for number in indices]
        outside = [number for number in numbers if not 0 <= number < record.length]
        if outside:
            raise StoreError(f"{record.episode_id} has frames 0..{record.length - 1}, asked for {outside[:5]}")
        row = self._rows[episode]
        first = round(row[f"videos/{IMAGES}{view}/from_timestamp"] * self.info.control_hz)
        file = part_file(self.path, f"videos/{IMAGES}{view}", row["data/file_index"])
        return self._videos.read(file, [first + number for number in numbers])

    def actions(self, episode: int, *, for_audit: bool = False) -> Float[np.ndarray, "t d"]:
        """Actions, one a frame, in the units of `info.action_space`.

        Raises:
            ActionsHiddenError: the episode is unlabelled and this is no audit.
            StoreError: none were recorded.
        """
        record = self._record(episode)
        if not (record.is_labelled or for_audit):
            raise ActionsHiddenError(
                f"{record.episode_id} is unlabelled: its actions must not be used; take episodes from "
                "select(is_labelled=True), or pass for_audit=True in an audit"
            )
        actions = self._numbers(episode, ACTION)
        if actions is None:
            raise StoreError(f"{record.episode_id} in {self.path} was recorded without actions")
        return actions

    def proprioception(self, episode: int) -> Float[np.ndarray, "t d"] | None:
        """Proprioception, one a frame; None where it was not recorded."""
        return self._numbers(episode, STATE)

    def extrinsics(self, episode: int, view: str) -> Float[np.ndarray, "t 3 4"] | None:
        """World to camera, one a frame; None where unknown.

        Raises:
            StoreError: the episode lacks the camera.
        """
        self._with_view(episode, view)
        flat = self._numbers(episode, EXTRINSICS + view)
        return None if flat is None else rearrange(flat, "t (row column) -> t row column", row=3)

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
            is_labelled=record.is_labelled,
            split=record.split,
            extra=record.extra,
        )

    def _record(self, episode: int) -> EpisodeRecord:
        if not 0 <= episode < len(self.episodes):
            raise StoreError(f"{self.path} has episodes 0..{len(self.episodes) - 1}, asked for {episode}")
        return self.episodes[episode]

    def _with_view(self, episode: int, view: str) -> EpisodeRecord:
        record = self._record(episode)
        if view not in record.views:
            raise StoreError(f"{record.episode_id} in {self.path} has the views {record.views}, not {view!r}")
        return record

    def _numbers(self, episode: int, column: str) -> np.ndarray | None:
        """A column of one episode; None where the store or the episode lacks it."""
        row = self._rows[self._record(episode).index]
        file = self._table(row["data/file_index"])
        if column not in file.schema_arrow.names:
            return None
        group = episode - row["first_in_part"]
        values = matrix(file.read_row_group(group, columns=[column], use_threads=False)[column])
        return None if np.isnan(values).all() else values

    def _table(self, part: int) -> pq.ParquetFile:
        """The data file of a part; opening one takes milliseconds, so the last ones used stay open."""
        table = self._tables.pop(part, None) or pq.ParquetFile(part_file(self.path, DATA, part), memory_map=True)
        self._tables[part] = table
        while len(self._tables) > OPEN_FILES:
            self._tables.popitem(last=False)[1].close()
        return table


def _record(row: dict[str, Any]) -> EpisodeRecord:
    return EpisodeRecord(
        index=row["episode_index"],
        episode_id=row["episode_id"],
        task=row["task"],
        instruction=row["tasks"][0],
        length=row["length"],
        views=tuple(row["views"]),
        is_labelled=row["is_labelled"],
        split=row["split"],
        start=row["dataset_from_index"],
        extra=json.loads(row["extra"]),
    )
