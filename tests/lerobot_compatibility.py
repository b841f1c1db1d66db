"""What LeRobot itself reads and writes; runs in an environment with lerobot 0.6.1, which this project does not need.

HF_HUB_OFFLINE=1 python tests/lerobot_compatibility.py read STORE OUT.npz    all items, as LeRobot gives them
HF_HUB_OFFLINE=1 python tests/lerobot_compatibility.py write FOLDER          FOLDER/video and FOLDER/image
HF_HUB_OFFLINE=1 python tests/lerobot_compatibility.py write_tiny FOLDER     tests/golden/lerobot_v3/data_set
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

SIZES = {"front": (64, 96), "wrist": (72, 64)}
NUMBERS = {
    "action": {"dtype": "float32", "shape": (3,), "names": ["x", "y", "gripper"]},
    "observation.state": {"dtype": "float32", "shape": (4,), "names": {"motors": ["a", "b", "c", "d"]}},
    "observation.matrix": {"dtype": "float32", "shape": (2, 3), "names": None},
    "is_open": {"dtype": "bool", "shape": (1,), "names": None},
    "phase": {"dtype": "string", "shape": (1,), "names": None},
    "ticks": {"dtype": "int64", "shape": (1,), "names": None},
}
LENGTHS, HZ = (20, 13, 2, 30, 16, 25), 10
TASKS = ("push the cube", "reach")


def read(store: Path, out: Path) -> None:
    """Every item, and LeRobot's statistics of all."""
    dataset = LeRobotDataset("local/store", root=store, return_uint8=True)
    rows = [dataset[number] for number in range(len(dataset))]
    dumped = {name: _column([row[name] for row in rows]) for name in rows[0]}
    for feature, facts in dataset.meta.stats.items():
        dumped |= {f"stats/{feature}/{fact}": np.asarray(value) for fact, value in facts.items()}
    np.savez_compressed(out, **dumped, fps=np.array(dataset.fps), episodes=np.array(dataset.num_episodes))


def _column(values: list) -> np.ndarray:
    if not isinstance(values[0], torch.Tensor):
        return np.array([str(value) for value in values])
    stacked = torch.stack(values)
    if stacked.ndim != 4:
        return stacked.numpy()
    # Frames of videos come as they are, single pictures as 0 to 1.
    levels = stacked if stacked.dtype == torch.uint8 else (stacked * 255).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).numpy()


def picture(number: int, step: int, height: int, width: int) -> np.ndarray:
    """Waves that move from frame to frame, over a block that tells frames apart."""
    row, column, colour = np.ogrid[:height, :width, :3]
    waves = 128 + 90 * np.sin((column + (1 + colour) * row + 6 * step + 17 * number) / 15)
    waves[: height // 4, : width // 4] = (40 * number + 8 * step) % 256
    return waves.astype(np.uint8)


def write(
    folder: Path, numbers: dict, use_videos: bool, sizes: dict[str, tuple[int, int]], lengths: tuple[int, ...], **limits
) -> None:
    """A data set made with LeRobot's own writer."""
    kind = "video" if use_videos else "image"
    cameras = {
        f"observation.images.{name}": {"dtype": kind, "shape": (*size, 3), "names": ["height", "width", "channels"]}
        for name, size in sizes.items()
    }
    dataset = LeRobotDataset.create(
        "local/made", HZ, numbers | cameras, root=folder, robot_type="arm", use_videos=use_videos, **limits
    )
    rng = np.random.default_rng(0)
    for number, length in enumerate(lengths):
        for step in range(length):
            frame = {
                "action": rng.normal(size=3).astype(np.float32),
                "observation.state": rng.normal(size=4).astype(np.float32),
                "observation.matrix": rng.normal(size=(2, 3)).astype(np.float32),
                "is_open": np.array([step % 2 == 0]),
                "phase": f"phase {step // 5}",
                "ticks": np.array([10**9 * number + step]),
            }
            frame = {name: frame[name] for name in numbers} | {"task": TASKS[number % 2]}
            frame |= {f"observation.images.{name}": picture(number, step, *size) for name, size in sizes.items()}
            dataset.add_frame(frame)
        dataset.save_episode()
    dataset.finalize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["read", "write", "write_tiny"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    given = parser.parse_args()
    if given.mode == "read":
        read(given.folder, given.out)
    elif given.mode == "write":
        small = {"data_files_size_in_mb": 0.01, "video_files_size_in_mb": 0.01}
        write(given.folder / "video", NUMBERS, True, SIZES, LENGTHS, **small)
        write(given.folder / "image", NUMBERS, False, SIZES, LENGTHS, **small)
    else:
        few = {name: NUMBERS[name] for name in ("action", "observation.state", "phase")}
        write(given.folder, few, True, {"front": (64, 96), "wrist": (64, 64)}, (6, 6))


if __name__ == "__main__":
    main()
