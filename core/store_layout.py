"""The LeRobot v3.0 layout of a store: where its files lie, their columns, and `meta/info.json`."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from einops import rearrange

from core.episode import Episode
from core.spaces import ActionSpace
from core.video import CODEC, PIXEL_FORMAT

FORMAT = "v3.0"
"""Version of the layout, as LeRobot numbers it."""
DATA, EPISODES = "data", "meta/episodes"
ACTION, STATE = "action", "observation.state"
IMAGES, EXTRINSICS = "observation.images.", "observation.extrinsics."
INDEX_FEATURES = {"timestamp": "float32"} | dict.fromkeys(
    ("frame_index", "episode_index", "index", "task_index"), "int64"
)
OURS = "mvp_lam"
"""Key of info.json under which stands what LeRobot has no place for."""


class StoreError(ValueError):
    """A store that is missing, incomplete, or asked for something it does not hold."""


class ColumnInfo(NamedTuple):
    """Further things that each frame has."""

    dtype: str
    """float32, float64, int8 to int64, uint8, bool or string."""
    shape: tuple[int, ...]
    """Of one frame's; (1,) for a single value."""


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """What holds for every episode of a store."""

    control_hz: float
    """Frames, and actions, a second."""
    views: dict[str, tuple[int, int]]
    """(height, width) of each camera; an episode may lack some of them."""
    action_space: ActionSpace | None
    """None: the store holds no actions."""
    proprioception_dims: int
    """0: the store holds none."""
    robot_type: str
    proprioception_names: tuple[str, ...] = ()
    """One name a number; empty where they are not known."""
    columns: dict[str, ColumnInfo] = field(default_factory=dict)
    """Further things of each frame, by a name without '/'."""
    codec: Literal["h264", "av1", "png"] = "h264"
    """How frames are written: as video, or as single pictures without loss."""

    def __post_init__(self) -> None:
        """Reject what the layout cannot hold.

        Raises:
            StoreError: no rate, no view, or a view whose name cannot be part of a path.
        """
        if self.control_hz <= 0 or not self.views:
            raise StoreError(f"a store needs a rate and a view, got control_hz {self.control_hz}, views {self.views}")
        if wrong := [name for name in (*self.views, *self.columns) if not name or "/" in name]:
            raise StoreError(f"names {wrong} of views or columns cannot name folders; leave out '/'")


def part_file(path: str | Path, kind: str, part: int) -> Path:
    """Where a part's file lies; `kind` is DATA, EPISODES or the folder of a camera."""
    ending = "mp4" if kind.startswith("videos/") else "parquet"
    return Path(path) / kind / "chunk-000" / f"file-{part:03d}.{ending}"


def temporary(file: Path) -> Path:
    """The name of a file that is not complete."""
    return file.with_name(f"{file.name}.partial")


def publish(file: Path) -> None:
    """Give a file its name once its bytes are on the disk."""
    with temporary(file).open("rb") as written:
        os.fsync(written.fileno())
    temporary(file).replace(file)


def replace_table(table: pa.Table, file: Path) -> None:
    """Write a parquet file atomically."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, temporary(file))
    publish(file)


def list_widths(info: StoreInfo) -> dict[str, int]:
    """Numbers a frame of each list column."""
    widths = {ACTION: info.action_space.dims if info.action_space else 0, STATE: info.proprioception_dims}
    return {n: w for n, w in widths.items() if w} | {EXTRINSICS + view: 12 for view in info.views}


def frame_schema(info: StoreInfo) -> pa.Schema:
    """Columns of the data files."""
    lists = [(name, pa.list_(pa.float32(), width)) for name, width in list_widths(info).items()]
    return pa.schema(lists + [(name, getattr(pa, kind)()) for name, kind in INDEX_FEATURES.items()])


def frame_table(episode: Episode, info: StoreInfo, row: dict[str, Any]) -> pa.Table:
    """Rows of one episode in its data file; `row` is its row in the table of episodes."""
    numbers = numbers_of(episode)
    steps = np.arange(episode.length)
    columns = {
        "timestamp": (steps / info.control_hz).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.full_like(steps, row["episode_index"]),
        "index": row["dataset_from_index"] + steps,
        "task_index": np.full_like(steps, row["task_index"]),
    }
    for name, width in list_widths(info).items():
        values = numbers.get(name)
        flat = np.full(episode.length * width, np.nan) if values is None else values.reshape(-1)
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(flat.astype(np.float32)), width)
    return pa.table(columns).select(frame_schema(info).names).cast(frame_schema(info))


def episode_schema(info: StoreInfo) -> pa.Schema:
    """Columns of the table of episodes."""
    whole = (
        "data/chunk_index",
        "data/file_index",
        "meta/episodes/chunk_index",
        "meta/episodes/file_index",
        "episode_index",
        "length",
        "dataset_from_index",
        "dataset_to_index",
        "task_index",
    )
    fields = [(name, pa.int64()) for name in whole]
    fields += [(name, pa.string()) for name in ("episode_id", "task", "split", "extra")]
    fields += [("tasks", pa.list_(pa.string())), ("views", pa.list_(pa.string())), ("is_labelled", pa.bool_())]
    for view in info.views:
        fields += [(f"videos/{IMAGES}{view}/{end}_index", pa.int64()) for end in ("chunk", "file")]
        fields += [(f"videos/{IMAGES}{view}/{end}_timestamp", pa.float64()) for end in ("from", "to")]
    return pa.schema(fields)


def episode_row(episode: Episode, info: StoreInfo, part: int, starts: dict[str, float]) -> dict[str, Any]:
    """What the table of episodes says of one; `starts` is where it begins in its videos, in seconds."""
    row: dict[str, Any] = {
        name: getattr(episode, name) for name in ("episode_id", "task", "split", "is_labelled", "length")
    }
    row |= {"tasks": [episode.instruction], "views": list(episode.views)}
    row["extra"] = json.dumps(episode.extra, sort_keys=True, default=np.generic.item)
    for kind in ("data", "meta/episodes", *(f"videos/{IMAGES}{view}" for view in info.views)):
        row |= {f"{kind}/chunk_index": 0, f"{kind}/file_index": part}
    for view, start in starts.items():
        row[f"videos/{IMAGES}{view}/from_timestamp"] = start
        row[f"videos/{IMAGES}{view}/to_timestamp"] = start + episode.length / info.control_hz
    return row


def episode_rows(path: Path, part: int) -> list[dict[str, Any]]:
    """The table of episodes of one part."""
    rows = pq.read_table(part_file(path, EPISODES, part)).to_pylist()
    return [row | {"first_in_part": rows[0]["episode_index"]} for row in rows]


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    """A column of lists as one row a frame."""
    arrays = [rearrange(chunk.flatten().to_numpy(), "(t d) -> t d", t=len(chunk)) for chunk in column.chunks]
    return np.concatenate(arrays)


def info_to_json(info: StoreInfo, episodes: int, frames: int, tasks: int) -> dict[str, Any]:
    """The content of `meta/info.json`."""
    hz = int(info.control_hz) if float(info.control_hz).is_integer() else info.control_hz
    features: dict[str, Any] = {
        name: {"dtype": "float32", "shape": [width], "names": None} for name, width in list_widths(info).items()
    }
    if info.action_space:
        features[ACTION]["names"] = list(info.action_space.names)
    for view, (height, width) in info.views.items():
        features[IMAGES + view] = {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.fps": hz,
                "video.height": height,
                "video.width": width,
                "video.channels": 3,
                "video.codec": CODEC,
                "video.pix_fmt": PIXEL_FORMAT,
                "video.is_depth_map": False,
                "has_audio": False,
            },
        }
    features |= {name: {"dtype": kind, "shape": [1], "names": None} for name, kind in INDEX_FEATURES.items()}
    return {
        "codebase_version": FORMAT,
        "robot_type": info.robot_type,
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": tasks,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": hz,
        "splits": {"train": f"0:{episodes}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": features,
        OURS: {"action_space": info.action_space.model_dump(mode="json") if info.action_space else None},
    }


def info_from_json(described: dict[str, Any]) -> StoreInfo:
    """What `info_to_json` was given."""
    features, space = described["features"], described[OURS]["action_space"]
    return StoreInfo(
        control_hz=float(described["fps"]),
        views={n.removeprefix(IMAGES): tuple(f["shape"][:2]) for n, f in features.items() if n.startswith(IMAGES)},
        action_space=ActionSpace.model_validate(space) if space else None,
        proprioception_dims=features[STATE]["shape"][0] if STATE in features else 0,
        robot_type=described["robot_type"],
    )


def numbers_of(episode: Episode) -> dict[str, np.ndarray | None]:
    """The arrays of an episode by the column that keeps them."""
    extrinsics = {EXTRINSICS + name: view.extrinsics for name, view in episode.views.items()}
    return {ACTION: episode.actions, STATE: episode.proprioception, **extrinsics}
