"""Made-up episodes with everything that a store can hold, and stores of them, for several files of tests."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from core.episode import Episode, View
from core.spaces import END_EFFECTOR_DELTA
from core.store import ColumnInfo, StoreInfo, finish_store, write_part

HZ = 20 / 3
SIZES = {"front": (48, 64), "side": (33, 47)}
COLUMNS = {
    "reward": ColumnInfo("float64", (1,)),
    "is_open": ColumnInfo("bool", (1,)),
    "phase": ColumnInfo("string", (1,)),
    "counts": ColumnInfo("int16", (4,)),
    "poses": ColumnInfo("float32", (2, 3)),
    "ticks": ColumnInfo("int64", (1,)),
}
INFO = StoreInfo(
    control_hz=HZ,
    views=SIZES,
    action_space=END_EFFECTOR_DELTA,
    proprioception_dims=9,
    proprioception_names=tuple(f"joint_{number}" for number in range(9)),
    robot_type="panda",
    columns=COLUMNS,
)
INSTRUCTIONS = ("push the cube", "reach")
LENGTHS = (9, 12, 5, 7, 11)
PARTS = ((0, 1), (2,), (3, 4))


def moving_picture(seed, frames, height, width):
    time, row, column, colour = np.ogrid[:frames, :height, :width, :3]
    waves = 128 + 90 * np.sin((column + (1 + colour) * row + 4 * time + 7 * seed) / 15)
    return waves.astype(np.uint8)


def make_columns(number, length):
    rng = np.random.default_rng(number)
    return {
        "reward": rng.normal(size=length),
        "is_open": rng.random(length) < 0.5,
        "phase": np.array([f"grasp é {number}" if step % 3 else "" for step in range(length)], object),
        "counts": rng.integers(-5, 5, (length, 4)).astype(np.int16),
        "poses": rng.normal(size=(length, 2, 3)).astype(np.float32),
        "ticks": rng.integers(-(2**60), 2**60, length),
    }


def make_episode(number, length=None, **changes):
    """Episode 1 hides its actions, 2 has none, 3 lacks a camera, 4 is held out."""
    length = length or LENGTHS[number % 5]
    rng = np.random.default_rng(number)
    views = {
        name: View(
            frames=moving_picture(number + 10 * (name == "side"), length, *size),
            extrinsics=rng.normal(size=(length, 3, 4)).astype(np.float32) if name == "front" else None,
        )
        for name, size in SIZES.items()
        if (number, name) != (3, "front")
    }
    parts = {
        "episode_id": f"reach/seed={number}",
        "task": "reach" if number % 2 else "push",
        "instruction": INSTRUCTIONS[number % 2],
        "control_hz": HZ,
        "views": views,
        "actions": None if number == 2 else rng.normal(size=(length, 7)).astype(np.float32),
        "action_space": END_EFFECTOR_DELTA,
        "proprioception": rng.normal(size=(length, 9)).astype(np.float32),
        "columns": make_columns(number, length),
        "is_labelled": number != 1,
        "split": "held_out" if number == 4 else "train",
        "extra": {"seed": number, "success": 0.1 * number, "source": "x"},
    }
    return Episode(**(parts | changes))


def write(path, part, codec="h264"):
    write_part(path, part, (make_episode(number) for number in PARTS[part]), info=replace(INFO, codec=codec))


def write_store(path, order=(0, 1, 2), codec="h264"):
    for part in order:
        write(path, part, codec)
    return finish_store(path, replace(INFO, codec=codec), len(PARTS))


def files_of(path: Path, without=()) -> dict[str, bytes]:
    """Every file below `path` by its name, but for some."""
    files = (file for file in sorted(path.rglob("*")) if file.is_file() and file.name not in without)
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def copy_of(store: Path, target: Path) -> Path:
    """A copy to be damaged."""
    shutil.copytree(store, target)
    return target


def psnr_db(left, right):
    return 10 * np.log10(255**2 / max(1e-9, np.mean((left.astype(float) - right) ** 2)))
