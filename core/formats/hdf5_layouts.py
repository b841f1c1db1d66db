"""Where LIBERO, robomimic and ManiSkill keep what an episode needs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from core.formats.hdf5_file import fact, found, numbers_at, parsed
from core.formats.mapping import Mapping as SourceMapping

MOST_NUMBERS_BYTES = 2**30
"""Of one dataset other than pictures."""
HOW_TO_GET_IMAGES = (
    "it was recorded without images; replay it with a camera: robomimic's dataset_states_to_obs.py --camera_names, "
    "ManiSkill's replay_trajectory -o rgb --save-traj"
)
MOST_JSON_BYTES = 2**28


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way of arranging episodes in a file."""

    name: str
    parent: str
    """Group that holds the episodes; empty: the file's root."""
    episode: re.Pattern[str]
    """Name of an episode's group; its number gives the order."""
    cameras: tuple[str, ...]
    """Where pictures are, `*` standing for any name."""
    states: tuple[str, ...]
    """The robot's own state: those of them that are there, side by side."""
    observed: tuple[str, ...]
    """Beginnings of the names of what was observed; everything else belongs to the action."""
    observations_more: int
    """Observations an episode has more than actions."""
    length: str
    """The fact that states the number of actions."""


ROBOMIMIC = Layout(
    name="LIBERO or robomimic",
    parent="data",
    episode=re.compile(r"demo_(\d{1,9})"),
    cameras=("obs/*",),
    states=(
        "obs/ee_states",  # LIBERO: position, rotation vector
        "obs/gripper_states",
        "obs/robot0_eef_pos",  # robomimic: robosuite's names; quaternions are xyzw there
        "obs/robot0_eef_quat",
        "obs/robot0_gripper_qpos",
    ),
    observed=("obs/",),
    observations_more=0,
    length="num_samples",
)
"""Source: robomimic's documentation, "Dataset Structure"; LIBERO, scripts/create_dataset.py."""
MANISKILL = Layout(
    name="ManiSkill",
    parent="",
    episode=re.compile(r"traj_(\d{1,9})"),
    cameras=("obs/sensor_data/*/rgb", "obs/image/*/rgb"),
    states=("obs/agent/qpos",),
    observed=("obs/", "env_states/"),
    observations_more=1,
    length="elapsed_steps",
)
"""Source: mani_skill/utils/wrappers/record.py; obs/image is what version 2 calls the cameras."""
CONTROL_MODES = {
    "pd_joint_pos": "joint_position",
    "pd_joint_delta_pos": "delta_joint_position",
    "pd_joint_target_delta_pos": "delta_joint_position",
    "pd_joint_vel": "joint_velocity",
    "pd_ee_pose": "absolute_end_effector",
    "pd_ee_delta_pos": "delta_end_effector",
    "pd_ee_delta_pose": "delta_end_effector",
    "pd_ee_target_delta_pos": "delta_end_effector",
    "pd_ee_target_delta_pose": "delta_end_effector",
}
"""Kind of action space of ManiSkill's controllers."""
HELD_OUT = {"valid", "validation", "val", "test"}
"""Robomimic's filter keys of episodes that are not trained on; others, such as 20_percent_valid, are of a subset."""


def layout_of(file: h5py.File) -> tuple[Layout, list[str], list[str]]:
    """The layout, the episodes' groups in order of their numbers, and what else lies among them.

    Raises:
        ValueError: there are no episodes of a known layout.
    """
    for layout in (ROBOMIMIC, MANISKILL):
        parent = found(file, layout.parent)
        names = list(parent) if isinstance(parent, h5py.Group) else []
        numbered = {name: match for name in names if (match := layout.episode.fullmatch(name))}
        if numbered:
            ordered = sorted(numbered, key=lambda name: (int(numbered[name][1]), name))
            paths = [f"{layout.parent}/{name}".lstrip("/") for name in ordered]
            return layout, paths, [name for name in names if name not in numbered]
    raise ValueError(
        f"there are no episodes in it: neither data/demo_0 (LIBERO, robomimic) nor traj_0 (ManiSkill), "
        f"only {sorted(file)[:8]}; bring it into one of these layouts"
    )


def cameras_of(group: h5py.Group, layout: Layout) -> dict[str, str]:
    """Where the frames of each camera are, by the camera's name."""
    cameras = {}
    for pattern in layout.cameras:
        before, _, after = pattern.partition("*")
        holder = found(group, before)
        for name in holder if isinstance(holder, h5py.Group) else ():
            path = f"{before}{name}{after}"
            dataset = found(group, path)
            if not isinstance(dataset, h5py.Dataset) or dataset.dtype != np.uint8:
                continue  # depth lies beside the pictures and has another type, segmentation one channel
            if dataset.ndim == 4 and dataset.shape[3] == 3:
                cameras[re.sub(r"_(rgb|image)$", "", name)] = path
    return cameras


def observations_follow_actions(group: h5py.Group) -> bool | None:
    """Whether observation `i` is what was seen after action `i`, as in the files that LIBERO publishes; None: unknown.

    LIBERO's scripts/create_dataset.py keeps what `env.step(action)` returned, while `states` are from before it: joint
    angles then agree with the state (time, joint positions, ...) one row later. Files that were made again with
    observations from before the action, as OpenVLA's are, agree in the same row.
    """
    if not all(isinstance(found(group, name), h5py.Dataset) for name in ("states", "obs/joint_states")):
        return None
    states, joints = numbers_at(group, "states"), numbers_at(group, "obs/joint_states")
    if states.ndim != 2 or joints.ndim != 2 or states.shape[1] <= joints.shape[1]:
        return None
    if len(states) != len(joints) or len(joints) < 3:
        return None
    angles, seen = states[:, 1 : 1 + joints.shape[1]].astype(float), joints[()].astype(float)
    # Medians: a few damaged numbers must not decide.
    same_row, next_row = np.median(np.abs(seen - angles)), np.median(np.abs(seen[:-1] - angles[1:]))
    if next_row < 0.5 * same_row:
        return True
    return False if same_row < 0.5 * next_row else None


def beside(file: Path) -> dict[str, Any] | None:
    """What ManiSkill's JSON file of the same name says; None: there is none.

    Raises:
        ValueError: it cannot be read.
    """
    described = file.with_suffix(".json")
    if not described.is_file():
        return None
    if described.stat().st_size > MOST_JSON_BYTES:
        raise ValueError(f"{described.name} has {described.stat().st_size} bytes, over {MOST_JSON_BYTES}")
    return parsed(described.read_text(encoding="utf-8"), described.name)


def facts_beside(described: Mapping[str, Any] | None, number: int) -> dict[str, Any]:
    """What ManiSkill's JSON file says of one episode, and of all.

    Raises:
        ValueError: it lists episodes, but not this one, or not as objects.
    """
    if described is None:
        return {}
    shared, episodes = described.get("env_info") or {}, described.get("episodes") or []
    if not isinstance(shared, dict) or not isinstance(episodes, list):
        raise ValueError("the JSON file beside it has an env_info or episodes of another form than ManiSkill writes")
    own = [one for one in episodes if isinstance(one, dict) and one.get("episode_id") == number]
    if len(own) != 1:
        raise ValueError(f"the JSON file beside it has {len(own)} entries with episode_id {number}, one is needed")
    return shared | own[0]


class Rows(NamedTuple):
    """Which rows of a file's datasets are the frames of an episode."""

    frames: int
    """Frames of the episode."""
    first_action: int
    """Row of the action that follows observation 0."""
    observations: int
    """Rows that what was observed has in the file."""
    others: int
    """Rows that everything else has."""
    observed: tuple[str, ...]
    """Beginnings of the names of what was observed."""


class Facts(NamedTuple):
    """Where an opened file tells about one episode."""

    file: h5py.File
    group: h5py.Group
    """The episode's."""
    layout: Layout
    beside: dict[str, Any]
    """What ManiSkill's JSON file says of it."""

    def get(self, *names: str) -> Any:
        """The first of these that the episode, or the file, says."""
        parent = found(self.file, self.layout.parent)
        for name in names:
            if (value := fact(name, (self.beside, self.group, parent, self.file))) is not None:
                return value
        return None


def rows_of(facts: Facts, usual_first_action: int | None = None) -> Rows:
    """Which rows of the file's datasets belong together; `usual_first_action` is that of the source's other episodes.

    Raises:
        ValueError: there are no actions, another number than the file states, or they are arranged otherwise.
    """
    layout, group = facts.layout, facts.group
    actions = found(group, "actions")
    if isinstance(actions, h5py.Group):  # one dataset a robot
        actions = next((found(actions, name) for name in actions), None)
    stated = facts.get(layout.length)
    steps = len(actions) if isinstance(actions, h5py.Dataset) and actions.shape else stated
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"it has {steps} actions and says {layout.length} {stated}; at least one step is needed")
    if stated is not None and stated != steps:
        raise ValueError(f"{layout.length} says {stated}, but there are {steps} actions; the file was cut or changed")
    follow = None if layout is MANISKILL else observations_follow_actions(group)
    first_action = usual_first_action or 0 if follow is None else int(follow)
    if usual_first_action not in (None, first_action):
        raise ValueError(
            f"its observations are from {'after' if follow else 'before'} the action of the same row, unlike those of "
            "the other episodes; convert them as separate sources"
        )
    return Rows(
        frames=steps - first_action,
        first_action=first_action,
        observations=steps + layout.observations_more,
        others=steps,
        observed=layout.observed,
    )


def check_rows(path: str, rows: int, wanted: int) -> None:
    """Refuse parts of an episode that differ in length.

    Raises:
        ValueError: they do.
    """
    if rows != wanted:
        raise ValueError(f"{path} has {rows} rows, {wanted} belong to the episode; its parts differ in length")


def values_of(group: h5py.Group, source: str, rows: Rows) -> np.ndarray:
    """What a dataset says of each frame.

    Raises:
        ValueError: it is absent, damaged, too large or of another length.
    """
    path = source if found(group, source) is not None or found(group, f"obs/{source}") is None else f"obs/{source}"
    dataset = numbers_at(group, path)
    is_observed = path.startswith(rows.observed)
    check_rows(path, len(dataset), rows.observations if is_observed else rows.others)
    if dataset.size * dataset.dtype.itemsize > MOST_NUMBERS_BYTES:
        raise ValueError(f"{path} claims {dataset.size} values of an episode, over {MOST_NUMBERS_BYTES} bytes")
    first = 0 if is_observed else rows.first_action
    is_text = h5py.check_string_dtype(dataset.dtype) is not None
    return (dataset.asstr() if is_text else dataset)[first : first + rows.frames]


def camera_path(group: h5py.Group, source: str) -> str:
    """Where the frames are that a mapping names by their path or by the camera.

    Raises:
        ValueError: nowhere.
    """
    paths = (source, f"obs/{source}", f"obs/{source}_rgb", f"obs/{source}_image", f"obs/sensor_data/{source}/rgb")
    there = (path for path in paths if isinstance(found(group, path), h5py.Dataset))
    path = next(there, None)
    if path is None:
        known = list(cameras_of(group, MANISKILL).values()) + list(cameras_of(group, ROBOMIMIC).values())
        hint = f"there are {known}" if known else HOW_TO_GET_IMAGES
        raise ValueError(f"the mapping's views name {source}, which is not there; {hint}")
    return path


def check_control_mode(mapping: SourceMapping, facts: Facts) -> None:
    """Refuse a mapping that calls joint angles end-effector motion, which no later check would find.

    Raises:
        ValueError: it does, or may do so because ManiSkill's file does not say what its actions are.
    """
    mode = facts.get("control_mode", "env_kwargs/control_mode")
    kind = CONTROL_MODES.get(mode) if isinstance(mode, str) else None
    claimed = mapping.action_space.kind if mapping.action_space else "unspecified"
    if facts.layout is MANISKILL and mode is None and claimed != "unspecified":
        name = Path(facts.file.filename).with_suffix(".json").name
        raise ValueError(
            f"the mapping's action_space says {claimed}, but nothing tells the control_mode that was recorded; put "
            f"ManiSkill's {name} beside the file"
        )
    if kind and claimed not in (kind, "unspecified"):
        raise ValueError(
            f"control_mode is {mode}, which is {kind}; the mapping's action_space says {claimed}. Change the mapping, "
            f"or replay with another controller: replay_trajectory -c pd_ee_delta_pose"
        )


def extra_of(facts: Facts, mapping: SourceMapping) -> dict[str, float | int | str]:
    """Seed, success, environment, the source's own splits and the scene, where they are known.

    Raises:
        ValueError: the mapping's scene is nowhere.
    """
    extra: dict[str, Any] = {
        "seed": facts.get("episode_seed", "reset_kwargs/seed"),
        "control_mode": facts.get("control_mode"),
        "environment": facts.get("env_id", "env_args/env_name"),
        "source_split": ",".join(_splits(facts)) or None,
        "scene": facts.get(mapping.scene) if mapping.scene else None,
    }
    if mapping.scene and extra["scene"] is None:
        raise ValueError(f"there is no {mapping.scene}, which the mapping's scene names")
    success = found(facts.group, "success")
    if isinstance(success, h5py.Dataset) and success.ndim == 1:
        extra["success"] = int(numbers_at(facts.group, "success")[-1])
    return {name: value for name, value in extra.items() if isinstance(value, str | int | float)}


def split_of(facts: Facts) -> str:
    """The split that robomimic's filter keys give the episode."""
    return "held_out" if HELD_OUT & set(_splits(facts)) else "train"


def _splits(facts: Facts) -> list[str]:
    """Robomimic's filter keys, such as train or valid, that list the episode."""
    masks, own = found(facts.file, "mask"), facts.group.name.rpartition("/")[2]
    if not isinstance(masks, h5py.Group):
        return []
    return sorted(name for name in masks if own in numbers_at(masks, name).asstr()[()].reshape(-1).tolist())
