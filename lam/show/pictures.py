"""Frames of a store as small pictures that stand in the page itself."""

import base64
import io
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

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
            self._clips[row] = Picture(data_url(beside(*frames)), camera, about)
        return self._clips[row]

    def first(self, row: int) -> Picture:
        """The first frame alone."""
        clips = self.clips
        return self.frame(int(clips.episodes[row]), int(clips.cameras[row]), int(clips.frames[row]))

    def frame(self, episode: int, camera: int, number: int) -> Picture:
        """Any frame."""
        view = self.clips.dataset.views[camera]
        image = small(self.store.frames(episode, view, [number])[0])
        return Picture(data_url(image), view, f"{self._words(episode)}, {view}, frame {number}")

    def _words(self, episode: int) -> str:
        record = self.store.episodes[episode]
        return f"{record.episode_id} “{record.instruction}”"


def small(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "height width 3"]:
    """The image 96 pixels high."""
    width = max(1, round(image.shape[1] * HEIGHT / image.shape[0]))
    return np.asarray(Image.fromarray(image).resize((width, HEIGHT), Image.Resampling.LANCZOS))


def beside(first: UInt8[np.ndarray, "h w 3"], later: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "height width 3"]:
    """Two images in one, with a white line between them."""
    left, right = small(first), small(later)
    return np.hstack([left, np.full((HEIGHT, BETWEEN, 3), 255, np.uint8), right])


def data_url(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """A JPEG as a URL that needs no other file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
