"""What the cameras of some episodes show: how bright it is, how much changes, and a signature."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image
from tqdm import tqdm

from core.duplicates import TIMES, signature
from core.store import Store, StoreError

LOOKED_AT = 2 * TIMES - 1
"""Frames of an episode that are looked at, evenly spread; those of the signature are every other one."""
CELLS = 24
"""Cells along each side of the coarse pictures in which change is looked for."""


class Look(NamedTuple):
    """One episode through one camera."""

    episode: int
    view: str
    contrast: Float[np.ndarray, " frames"]
    """Grey levels between the darkest and the brightest cell of each looked-at frame."""
    brightness: Float[np.ndarray, " frames"]
    """Mean grey level."""
    change: Float[np.ndarray, " frames-1"]
    """Largest change of a cell, in grey levels, from each looked-at frame to the next."""
    signature: bytes


@dataclass(frozen=True, kw_only=True)
class Looks:
    """What was seen of the episodes that were looked at."""

    episodes: Int[np.ndarray, " n"]
    """Their positions."""
    found: list[Look] = field(default_factory=list)
    unreadable: dict[tuple[int, str], str] = field(default_factory=dict)
    """Why, by episode and view."""

    def of_view(self, view: str) -> list[Look]:
        """Those through one camera."""
        return [look for look in self.found if look.view == view]


def chosen_episodes(count: int, most: int | None, seed: int) -> Int[np.ndarray, " n"]:
    """Positions of the episodes that are looked at, in order; None: all."""
    if most is None or most >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])


def look_at(store: Store, episodes: Int[np.ndarray, " n"]) -> Looks:
    """Decode a few frames of each of the episodes, through every camera that they have."""
    looks = Looks(episodes=episodes)
    for number in tqdm(episodes.tolist(), desc="inspect: frames", unit="episode", mininterval=1.0, leave=False):
        record = store.episodes[number]
        places = np.linspace(0, record.length - 1, LOOKED_AT).round().astype(np.int64)
        for view in record.views:
            try:
                frames = store.frames(number, view, places)
            except StoreError as error:
                looks.unreadable[number, view] = str(error)
                continue
            looks.found.append(look_through(number, view, frames))
    return looks


def look_through(episode: int, view: str, frames: UInt8[np.ndarray, "frames height width 3"]) -> Look:
    """What is noted of the looked-at frames of one episode and camera."""
    cells = np.stack([_coarse(frame) for frame in frames]).astype(np.float64)
    return Look(
        episode=episode,
        view=view,
        contrast=np.ptp(cells, axis=(1, 2)),
        brightness=cells.mean((1, 2)),
        change=np.abs(np.diff(cells, axis=0)).max((1, 2)),
        signature=signature(frames[::2]),
    )


def _coarse(frame: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "cells cells"]:
    return np.asarray(Image.fromarray(frame).convert("L").resize((CELLS, CELLS), Image.Resampling.BOX))
