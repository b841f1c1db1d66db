"""The episodes that are read: two cameras, made from pictures of any video or drawn ones."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from core.episode import Episode, View
from core.spaces import END_EFFECTOR_DELTA
from core.store import Store, StoreInfo, finish_store, is_store_done, write_part
from core.video import VideoReader

CONTROL_HZ = 10.0
LENGTH = 60
"""Frames of an episode."""
EPISODES_A_PART = 20
VIEWS = ("front", "side")
PICTURES = 120


def pictures(video: str | None, side: int) -> UInt8[np.ndarray, "n side side 3"]:
    """Frames of a recording, resized; without one, drawn: a textured scene that moves, with a camera's noise."""
    if video is None:
        return _drawn(side)
    reader, file = VideoReader(), Path(video)
    times, _ = reader.times_and_size(file)
    frames = reader.read(file, times[:PICTURES])
    return np.stack([np.asarray(Image.fromarray(frame).resize((side, side), Image.Resampling.BOX)) for frame in frames])


def _drawn(side: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 255, (12, 12, 3), np.uint8))
    scene = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float64)
    frames = np.empty((PICTURES, side, side, 3), np.uint8)
    for number in range(PICTURES):
        frame = scene.copy()
        left = int((np.sin(number / 9) + 1) * side * 0.35)
        frame[side // 3 : side // 2, left : left + side // 5] = (200, 40, 60)
        frames[number] = (frame + generator.normal(0, 2.0, frame.shape)).clip(0, 255)
    return frames


def views_of(source: UInt8[np.ndarray, "n side side 3"], episode: int) -> dict[str, UInt8[np.ndarray, "t side side 3"]]:
    """What the two cameras see in an episode."""
    front = source[(np.arange(LENGTH) + 3 * episode) % len(source)]
    return dict(zip(VIEWS, (front, front[:, ::-1, ::-1]), strict=True))


def make_store(
    path: Path, source: UInt8[np.ndarray, "n side side 3"], episodes: int, codec: Literal["h264", "av1", "png"]
) -> Store:
    """A store of such episodes, unless it is there."""
    side = source.shape[1]
    info = StoreInfo(
        control_hz=CONTROL_HZ,
        views=dict.fromkeys(VIEWS, (side, side)),
        action_space=END_EFFECTOR_DELTA,
        proprioception_dims=9,
        robot_type="none",
        codec=codec,
    )
    if not is_store_done(path):
        firsts = range(0, episodes, EPISODES_A_PART)
        for part, first in enumerate(firsts):
            numbers = range(first, min(episodes, first + EPISODES_A_PART))
            write_part(path, part, _episodes(source, numbers), info=info)
        finish_store(path, info, len(firsts))
    return Store.open(path)


def _episodes(source: np.ndarray, numbers: range) -> Iterator[Episode]:
    for number in numbers:
        generator = np.random.default_rng(number)
        yield Episode(
            episode_id=f"episode_{number}",
            task="none",
            instruction="move",
            control_hz=CONTROL_HZ,
            views={name: View(frames=np.ascontiguousarray(f)) for name, f in views_of(source, number).items()},
            actions=generator.normal(size=(LENGTH, 7)).astype(np.float32),
            action_space=END_EFFECTOR_DELTA,
            proprioception=generator.normal(size=(LENGTH, 9)).astype(np.float32),
        )
