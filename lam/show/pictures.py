"""Frames of a store as small pictures that stand in the page itself."""

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from core.pictures import at_height, picture_url
from core.store import Store
from lam.show.sample import Clips

HEIGHT = 96
BETWEEN = 3
QUALITY = 82


class Picture(NamedTuple):
    """A picture and what it shows."""

    source: str
    """A data URL."""
    camera: str
    about: str


class Pictures:
    """Pictures of clips and frames, each read once."""

    def __init__(self, store: Store, clips: Clips) -> None:
        self.store, self.clips = store, clips
        self._clips: dict[int, Picture] = {}

    def clip(self, row: int) -> Picture:
        """First and later frame side by side."""
        if row not in self._clips:
            clips, first = self.clips, int(self.clips.frames[row])
            episode, camera = int(clips.episodes[row]), clips.dataset.views[clips.cameras[row]]
            frames = self.store.frames(episode, camera, [first, first + clips.gap])
            about = f"{self._words(episode)}, {camera}, frames {first} and {first + clips.gap}"
            self._clips[row] = Picture(picture_url(beside(*frames), QUALITY), camera, about)
        return self._clips[row]

    def first(self, row: int) -> Picture:
        """The first frame alone."""
        clips = self.clips
        return self.frame(int(clips.episodes[row]), int(clips.cameras[row]), int(clips.frames[row]))

    def frame(self, episode: int, camera: int, number: int) -> Picture:
        """Any frame."""
        view = self.clips.dataset.views[camera]
        image = at_height(self.store.frames(episode, view, [number])[0], HEIGHT)
        return Picture(picture_url(image, QUALITY), view, f"{self._words(episode)}, {view}, frame {number}")

    def _words(self, episode: int) -> str:
        record = self.store.episodes[episode]
        return f"{record.episode_id} “{record.instruction}”"


def beside(first: UInt8[np.ndarray, "h w 3"], later: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "height width 3"]:
    """Two images in one, with a white line between them."""
    left, right = at_height(first, HEIGHT), at_height(later, HEIGHT)
    return np.hstack([left, np.full((HEIGHT, BETWEEN, 3), 255, np.uint8), right])
