"""The LeRobot v3.0 layout of a store: where its files lie, and `meta/info.json`."""

import math
import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from core.spaces import ActionSpace
from core.video import CODECS, KEYFRAME_EVERY
from core.video_index import MOST_PIXELS

FORMAT = "v3.0"
"""Version of the layout, as LeRobot numbers it."""
DATA, EPISODES, INDICES = "data", "meta/episodes", "meta/video_index"
ACTION, STATE = "action", "observation.state"
IMAGES, EXTRINSICS = "observation.images.", "observation.extrinsics."
INDEX_FEATURES = {"timestamp": "float32"} | dict.fromkeys(
    ("frame_index", "episode_index", "index", "task_index"), "int64"
)
FILES_PER_CHUNK = 1000
OURS = "mvp_lam"
"""Key of info.json under which stands what LeRobot has no place for."""
SPLITS = "meta/splits.json"


class StoreError(ValueError):
    """A store that is missing, incomplete, damaged, or asked for something it does not hold."""


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
            StoreError: no rate, no view, a view of no or of too many pixels, or a name that cannot be part of a path
                or is taken.
        """
        if not 0 < self.control_hz < math.inf or not self.views:
            raise StoreError(f"a store needs a rate and a view, got control_hz {self.control_hz}, views {self.views}")
        if not all(0 < height * width <= MOST_PIXELS and height > 0 for height, width in self.views.values()):
            raise StoreError(f"views need pictures of 1 to {MOST_PIXELS} pixels, got (height, width) {self.views}")
        if wrong := [name for name in (*self.views, *self.columns) if not name or "/" in name]:
            raise StoreError(f"names {wrong} of views or columns cannot name folders; leave out '/'")
        if taken := {ACTION, STATE, *INDEX_FEATURES} & set(self.columns):
            raise StoreError(f"columns {sorted(taken)} have names that the layout itself uses; rename them")
        if self.proprioception_names and len(self.proprioception_names) != self.proprioception_dims:
            names, dims = self.proprioception_names, self.proprioception_dims
            raise StoreError(f"{len(names)} names for {dims} numbers of proprioception: {list(names)}")


@lru_cache(maxsize=4096)
def file_of(path: str | Path, kind: str, number: int) -> Path:
    """Where a file lies; `kind` is DATA, EPISODES, the folder of a camera or of its indices."""
    ending = {"videos": "mp4", INDICES.split("/")[1]: "npz"}.get(kind.removeprefix("meta/").split("/")[0], "parquet")
    chunk, file = divmod(number, FILES_PER_CHUNK)
    return Path(path) / kind / f"chunk-{chunk:03d}" / f"file-{file:03d}.{ending}"


def temporary(file: Path) -> Path:
    """The name of a file or folder that is not complete."""
    return file.with_name(f"{file.name}.partial")


def publish(file: Path) -> None:
    """Give a file its name once its bytes are on the disk."""
    with temporary(file).open("rb") as written:
        os.fsync(written.fileno())
    temporary(file).replace(file)


def info_to_json(info: StoreInfo, episodes: int, frames: int, tasks: int) -> dict[str, Any]:
    """The content of `meta/info.json`."""
    return {
        "codebase_version": FORMAT,
        "robot_type": info.robot_type,
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": tasks,
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": _whole(info.control_hz),
        "splits": {"train": f"0:{episodes}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None
        if info.codec == "png"
        else "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": _features(info),
        OURS: {"action_space": info.action_space.model_dump(mode="json") if info.action_space else None},
    }


def list_widths(info: StoreInfo) -> dict[str, int]:
    """Numbers a frame of each float column that is a list."""
    widths = {ACTION: info.action_space.dims if info.action_space else 0, STATE: info.proprioception_dims}
    return {n: w for n, w in widths.items() if w} | {EXTRINSICS + view: 12 for view in info.views}


def _features(info: StoreInfo) -> dict[str, Any]:
    features: dict[str, Any] = {
        name: {"dtype": "float32", "shape": [width], "names": None} for name, width in list_widths(info).items()
    }
    if info.action_space:
        features[ACTION]["names"] = list(info.action_space.names)
    if info.proprioception_names:
        features[STATE]["names"] = list(info.proprioception_names)
    for view, (height, width) in info.views.items():
        features[IMAGES + view] = {
            "dtype": "image" if info.codec == "png" else "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
        } | ({} if info.codec == "png" else {"info": _video_info(info, height, width)})
    for name, column in info.columns.items():
        features[name] = {"dtype": column.dtype, "shape": list(column.shape), "names": None}
    return features | {name: {"dtype": kind, "shape": [1], "names": None} for name, kind in INDEX_FEATURES.items()}


def _video_info(info: StoreInfo, height: int, width: int) -> dict[str, Any]:
    return {
        "video.fps": _whole(info.control_hz),
        "video.height": height,
        "video.width": width,
        "video.channels": 3,
        "video.codec": info.codec,
        "video.pix_fmt": CODECS[info.codec].stored,
        "video.g": KEYFRAME_EVERY,
        "video.is_depth_map": False,
        "has_audio": False,
    }


def _whole(hz: float) -> float | int:
    return int(hz) if float(hz).is_integer() else hz


def info_from_json(described: dict[str, Any]) -> StoreInfo:
    """What holds for a store, of this project or of another program, by its `info.json`.

    Raises:
        StoreError: a feature is missing or of a kind that is not known.
    """
    try:
        features = described["features"]
        views, keys = {}, view_features(described)
        for view, key in keys.items():
            views[view] = _size(features[key])
        kinds = {features[key].get("info", {}).get("video.codec") or features[key]["dtype"] for key in keys.values()}
        state = features.get(STATE)
        return StoreInfo(
            control_hz=float(described["fps"]),
            views=views,
            action_space=_action_space(described),
            proprioception_dims=int(state["shape"][0]) if state else 0,
            proprioception_names=tuple(names_of(state)) if state else (),
            robot_type=str(described.get("robot_type") or "unknown"),
            columns={
                name: ColumnInfo(str(feature["dtype"]), tuple(int(size) for size in feature["shape"]))
                for name, feature in features.items()
                if name not in (ACTION, STATE, *INDEX_FEATURES, *keys.values()) and not name.startswith(EXTRINSICS)
            },
            codec="png" if kinds == {"image"} else "av1" if kinds == {"av1"} else "h264",
        )
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError, ValueError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"meta/info.json is not one of LeRobot's: {type(error).__name__} {error}") from None


def view_features(described: dict[str, Any]) -> dict[str, str]:
    """The feature that holds each view: its name without `observation.images.`, or without `observation.`."""
    names = [name for name, feature in described["features"].items() if feature["dtype"] in ("video", "image")]
    views = {name.removeprefix(IMAGES).removeprefix("observation.").replace("/", "."): name for name in names}
    if len(views) < len(names):
        raise StoreError(f"the cameras {names} cannot be told apart by their last names; rename one")
    return views


def names_of(feature: dict[str, Any]) -> list[str]:
    """Names of a feature's numbers, empty where they are not stated for each of them.

    Programs write them as a list, as a list in a list, or as `{"axes": [...]}`.
    """
    names = feature.get("names") or []
    if isinstance(names, dict):
        names = next(iter(names.values()), [])
    if len(names) == 1 and isinstance(names[0], list):
        names = names[0]
    return [str(name) for name in names] if len(names) == feature["shape"][0] else []


def _size(feature: dict[str, Any]) -> tuple[int, int]:
    shape = [int(size) for size in feature["shape"]]
    if len(shape) != 3 or 3 not in (shape[0], shape[2]):
        raise StoreError(f"a camera has the shape {shape}; (height, width, 3) is wanted")
    is_last = shape[2] == 3 and "channel" not in str((feature.get("names") or [""])[0])
    return (shape[0], shape[1]) if is_last else (shape[1], shape[2])


def _action_space(described: dict[str, Any]) -> ActionSpace | None:
    space, feature = described.get(OURS, {}).get("action_space"), described["features"].get(ACTION)
    if space:
        return ActionSpace.model_validate(space)
    if not feature:
        return None
    dims = int(feature["shape"][0])
    names = names_of(feature) or [f"action_{number}" for number in range(dims)]
    return ActionSpace(names=tuple(names), units=("unspecified",) * dims, kind="unspecified")
