"""Reader of LeRobot v2.0 and v2.1: one parquet file and one video a camera for each episode.

    meta/info.json, meta/tasks.jsonl
    data/chunk-000/episode_000090.parquet
    videos/chunk-000/<feature>/episode_000090.mp4

Read as they are: an episode is one whose parquet file is there, whatever `info.json` promises.
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from core.episode import Episode, View
from core.formats.agreement import add_note, time_gaps
from core.formats.assembly import action_space_of, put_together, size_after, task_of, transformed
from core.formats.columns import column_info, widened
from core.formats.interface import EpisodeError, SourceError
from core.formats.mapping import Mapping, Numbers, ViewMapping
from core.lazy_frames import LazyFrames
from core.pictures import decode_image
from core.spaces import ActionSpace
from core.splits import splits_of_ranges
from core.store_layout import (
    ACTION,
    INDEX_FEATURES,
    STATE,
    ColumnInfo,
    StoreError,
    StoreInfo,
    info_from_json,
    names_of,
    view_features,
)
from core.store_tables import flat_values
from core.video import VideoError, VideoReader

VERSIONS = ("v2.0", "v2.1")
_EPISODE = re.compile(r"episode_(\d{6,9})\.parquet")


def recognises(path: Path) -> bool:
    """Whether the folder looks like LeRobot v2."""
    is_v2 = any((path / "data").glob("chunk-*/episode_*.parquet")) or (path / "meta/episodes.jsonl").is_file()
    return (path / "meta/info.json").is_file() and is_v2


class LeRobotV2:
    """A data set of one file an episode."""

    def __init__(self, path: Path, mapping: Mapping) -> None:
        self.path, self.mapping = path, mapping
        self._described = _described(path)
        self._features: dict[str, Any] = self._described["features"]
        try:
            of_source, self._cameras = info_from_json(self._described), view_features(self._described)
        except StoreError as error:
            raise SourceError(f"{path}: {error}") from None
        self._files = {f"{int(number):06d}": file for number, file in _episode_files(path)}
        self.keys: Sequence[str] = sorted(self._files)
        self._sizes = of_source.views
        splits = splits_of_ranges(self._described, [int(key) for key in self.keys])
        self._splits = dict(zip(self.keys, splits, strict=True))
        self._tasks, notes = _tasks(path)
        self.notes = self._broken_promises() + notes
        self.views = mapping.views or {name: ViewMapping(source=name) for name in self._cameras}
        self._videos = VideoReader()
        self.info = self._info(of_source)

    def _broken_promises(self) -> list[str]:
        if not self.keys:
            raise SourceError(f"{self.path} has no data/chunk-*/episode_*.parquet; nothing of it can be read")
        promised = self._described.get("total_episodes")
        if promised == len(self.keys):
            return []
        return [f"meta/info.json promises {promised} episodes, {len(self.keys)} are there"]

    def _info(self, of_source: StoreInfo) -> StoreInfo:
        if unknown := {v.source for v in self.views.values()} - set(of_source.views):
            raise SourceError(f"{self.path} has the views {list(of_source.views)}, the mapping wants {sorted(unknown)}")
        hz = of_source.control_hz
        if self.mapping.control_hz not in (None, hz):
            raise SourceError(
                f"{self.path} has {hz} frames a second, the mapping's control_hz {self.mapping.control_hz}"
            )
        if unknown := set(self.mapping.columns) - set(of_source.columns):
            raise SourceError(f"{self.path} has the columns {list(of_source.columns)}, not {sorted(unknown)}")
        state = self._pieces(STATE)
        is_plain = self.mapping.proprioception is None
        return StoreInfo(
            control_hz=hz,
            views={name: size_after(view, of_source.views[view.source]) for name, view in self.views.items()},
            action_space=self._space(of_source.action_space),
            proprioception_dims=sum(len(self._taken(piece)) for piece in state),
            proprioception_names=of_source.proprioception_names if is_plain else (),
            robot_type=self.mapping.robot_type or of_source.robot_type,
            columns=self._columns(of_source),
        )

    def _columns(self, of_source: StoreInfo) -> dict[str, ColumnInfo]:
        names = self.mapping.columns or of_source.columns
        try:
            return {name: column_info(name, *of_source.columns[name]) for name in names}
        except ValueError as error:
            raise SourceError(f"{self.path}: {error}") from None

    def _pieces(self, kind: str) -> tuple[Numbers, ...]:
        pieces = self.mapping.actions if kind == ACTION else self.mapping.proprioception
        if pieces is not None:
            return pieces
        return (Numbers(source=kind),) if kind in self._features else ()

    def _taken(self, piece: Numbers) -> Sequence[int]:
        if piece.source not in self._features:
            raise SourceError(f"{self.path} has no feature {piece.source}; it has {list(self._features)}")
        try:
            return piece.taken(math.prod(int(size) for size in self._features[piece.source]["shape"]))
        except (ValueError, TypeError) as error:
            raise SourceError(f"{self.path}: {error}") from None

    def _space(self, of_source: ActionSpace | None) -> ActionSpace | None:
        pieces = self._pieces(ACTION)
        if not pieces:
            return None
        if self.mapping.actions is None and self.mapping.action_space is None:
            return of_source
        names = [name for piece in pieces for name in self._names(piece)]
        try:
            return action_space_of(self.mapping, names)
        except ValueError as error:
            raise SourceError(f"{self.path}: {error}") from None

    def _names(self, piece: Numbers) -> list[str]:
        taken = self._taken(piece)
        names = dict(enumerate(names_of(self._features[piece.source])))
        return [names.get(column, f"{piece.source}_{column}") for column in taken]

    def read(self, key: str) -> Episode:
        """One episode; frames are decoded when they are looked at.

        Raises:
            EpisodeError: its table or one of its videos is damaged, or they do not fit together.
        """
        file = self._files[key]
        try:
            table = self._table(file)
            self._look_at_times(key, table)
            instruction = self._instruction(table)
            actions, state = (self._numbers(table, kind) for kind in (ACTION, STATE))
            episode = Episode(
                episode_id=f"{self.path.name}/{key}",
                task=task_of(self.mapping, instruction),
                instruction=instruction,
                control_hz=self.info.control_hz,
                views={name: View(frames=self._frames(key, view, table)) for name, view in self.views.items()},
                actions=actions,
                action_space=None if actions is None else self.info.action_space,
                proprioception=state,
                columns={name: widened(name, self._values(table, name)) for name in self.info.columns},
                split=self._splits[key],
            )
            episode.validate()
        except (ValueError, OSError) as error:
            raise EpisodeError(file, key, str(error)) from None
        return episode

    def _table(self, file: Path) -> pa.Table:
        needed = {p.source for kind in (ACTION, STATE) for p in self._pieces(kind)} | set(self.info.columns)
        needed |= {name for name in self._cameras.values() if self._features[name]["dtype"] == "image"}
        try:
            table = pq.ParquetFile(file)
            rows = table.metadata.num_rows
            names = [name for name in (*sorted(needed), *INDEX_FEATURES) if name in table.schema_arrow.names]
            if missing := needed - set(names):
                raise ValueError(f"it lacks the columns {sorted(missing)} that meta/info.json promises")
            read = table.read(columns=names, use_threads=False)
        except (OSError, KeyError, pa.ArrowException) as error:
            raise ValueError(f"the table is damaged: {error}") from None
        if not len(read) or len(read) != rows:
            raise ValueError(f"the table has {len(read)} of {rows} frames")
        if "frame_index" in names and not np.array_equal(read["frame_index"].to_numpy(), np.arange(len(read))):
            raise ValueError("frame_index does not count the frames from 0 on")
        return read

    def _look_at_times(self, key: str, table: pa.Table) -> None:
        if "timestamp" in table.column_names:
            times_s = table["timestamp"].to_numpy().astype(np.float64)
            if gaps := time_gaps(times_s, self.info.control_hz):
                add_note(self.notes, f"{key}: {gaps}")

    def _values(self, table: pa.Table, name: str) -> np.ndarray:
        values = flat_values(table[name], len(table))
        wanted = tuple(int(size) for size in self._features[name]["shape"])
        if values.shape[1:] not in (wanted, () if wanted == (1,) else wanted):
            raise ValueError(f"{name} has the shape {values.shape[1:]} a frame, meta/info.json says {wanted}")
        return values

    def _numbers(self, table: pa.Table, kind: str) -> np.ndarray | None:
        values = put_together(self._pieces(kind), lambda name: self._values(table, name))
        if values is not None and not np.isfinite(values).all():
            raise ValueError(f"{kind} of frame {int(np.argmax(~np.isfinite(values).all(1)))} is not finite")
        return values

    def _instruction(self, table: pa.Table) -> str:
        if self.mapping.instruction:
            if self.mapping.instruction not in table.column_names:
                raise ValueError(f"there is no column {self.mapping.instruction}, the mapping's instruction")
            return str(table[self.mapping.instruction][0].as_py())
        number = table["task_index"][0].as_py() if "task_index" in table.column_names else None
        if number is not None and self._tasks and number not in self._tasks:
            raise ValueError(f"meta/tasks.jsonl has no task {number}, which the frames are of")
        return self._tasks.get(-1 if number is None else number, self.mapping.default_instruction)

    def _frames(self, key: str, view: ViewMapping, table: pa.Table) -> np.ndarray | LazyFrames:
        name = self._cameras[view.source]
        is_picture = self._features[name]["dtype"] == "image"
        frames = self._pictures(key, name, table) if is_picture else self._video(key, name, len(table))
        if frames.shape[1:3] != self._sizes[view.source]:
            raise ValueError(f"{name}: pictures of {frames.shape[1:3]}, meta/info.json says {self._sizes[view.source]}")
        return transformed(frames, view)

    def _pictures(self, key: str, name: str, table: pa.Table) -> LazyFrames:
        if not pa.types.is_struct(table[name].type):
            raise ValueError(f"{name} holds {table[name].type}, not pictures as LeRobot keeps them: bytes and a path")
        encoded: list[bytes] = []
        for number, row in enumerate(table[name].to_pylist()):
            picture = row.get("bytes") if row else None
            if not isinstance(picture, bytes) or not picture:
                raise ValueError(f"frame {number} of {name} has no picture")
            encoded.append(picture)

        def read(start: int, stop: int) -> np.ndarray:
            try:
                return np.stack([decode_image(picture) for picture in encoded[start:stop]])
            except ValueError as error:
                raise EpisodeError(self._files[key], key, f"{name}: {error}") from None

        return LazyFrames(len(encoded), decode_image(encoded[0]).shape[:2], read)

    def _video(self, key: str, name: str, length: int) -> LazyFrames:
        file = self.path / "videos" / self._files[key].parent.name / name / f"episode_{key}.mp4"
        if not file.is_file():
            raise ValueError(f"{file} is missing")
        shown_s, size = self._videos.times_and_size(file)
        times_s = shown_s
        if len(shown_s) != length:  # a camera with a rate of its own
            times_s = np.arange(length) / self.info.control_hz
            _require_as_long(file, shown_s, times_s)

        def read(start: int, stop: int) -> np.ndarray:
            try:
                return self._videos.read(file, times_s[start:stop])
            except VideoError as error:
                raise EpisodeError(file, key, str(error)) from None

        return LazyFrames(length, size, read)


def _require_as_long(file: Path, shown_s: np.ndarray, times_s: np.ndarray) -> None:
    """The video lasts as long as the table, to less than a frame of the slower of the two."""
    steps_s = [float(np.median(np.diff(times))) if len(times) > 1 else 0.0 for times in (shown_s, times_s)]
    video_s, table_s = shown_s[-1] + steps_s[0], times_s[-1] + steps_s[1]
    if abs(video_s - table_s) > 0.75 * max(steps_s):
        frames = f"{len(shown_s)} frames and lasts {video_s:.3f} s"
        raise ValueError(f"{file} holds {frames}, the table {len(times_s)} and lasts {table_s:.3f} s; one was cut off")


def _described(path: Path) -> dict[str, Any]:
    file = path / "meta/info.json"
    try:
        described: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        version, features = described["codebase_version"], described["features"]
        shapes = [feature["shape"] for feature in features.values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{file} is missing or damaged: {type(error).__name__} {error}") from None
    if version not in VERSIONS or not all(isinstance(shape, list) for shape in shapes):
        raise SourceError(f"{file} states the format {version}; this reader knows {', '.join(VERSIONS)}")
    return described


def _episode_files(path: Path) -> list[tuple[str, Path]]:
    files = sorted((path / "data").glob("chunk-*/episode_*.parquet"))
    found = [(match.group(1), file) for file in files if (match := _EPISODE.fullmatch(file.name))]
    if len({number for number, _ in found}) < len(found):
        raise SourceError(f"{path}/data holds one episode in two chunks")
    return found


def _tasks(path: Path) -> tuple[dict[int, str], list[str]]:
    file = path / "meta/tasks.jsonl"
    if not file.is_file():
        return {}, ["meta/tasks.jsonl is missing, so no instruction is known; give default_instruction in a mapping"]
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not rows:
            raise ValueError("it holds no task")
        return {int(row["task_index"]): str(row["task"]) for row in rows}, []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{file} is damaged: {type(error).__name__} {error}") from None
