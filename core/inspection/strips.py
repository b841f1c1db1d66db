"""Small pictures of episodes, that stand in the page itself."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from core.pictures import picture_url as encoded
from core.store import Store, StoreError

SHOWN_EPISODES = 6
"""Episodes of a contact sheet."""
HEIGHT, WIDTH, QUALITY = 120, 214, 80
"""Largest size of a picture, in pixels, and the quality of its JPEG."""


class Strip(NamedTuple):
    """One episode through one camera: its first, middle and last frame."""

    episode: str
    instruction: str
    pictures: tuple[str, ...]
    """Data URLs."""
    frames: tuple[int, ...]
    """Their numbers."""


def strips(store: Store, episodes: Iterable[int], view: str, most: int = SHOWN_EPISODES) -> list[Strip]:
    """The first of the episodes that have the view and can be read, at most so many."""
    found: list[Strip] = []
    for number in episodes:
        if len(found) == most:
            break
        record = store.episodes[number]
        places = (0, record.length // 2, record.length - 1)
        if view not in record.views:
            continue
        try:
            frames = store.frames(number, view, places)
        except StoreError:
            continue  # what cannot be read is listed among the problems
        urls = tuple(picture_url(frame) for frame in frames)
        found.append(Strip(record.episode_id, record.instruction, urls, places))
    return found


def picture_url(frame: UInt8[np.ndarray, "height width 3"]) -> str:
    """A small JPEG as a URL that needs no other file."""
    image = Image.fromarray(frame)
    image.thumbnail((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    return encoded(np.asarray(image), QUALITY)
