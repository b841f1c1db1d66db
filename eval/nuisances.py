"""What changes in the pictures from frame to frame without being the robot's doing, each with a switch.

Latent actions must not follow them. Everything is drawn anew for each frame from the episode's seed and the control
step alone, so that the same instant looks the same whenever it is rendered.
"""

from enum import IntEnum

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image
from pydantic import Field

from core.config import Config
from eval.cameras import CameraPose

DISTRACTOR_HALF_SIZE_M = 0.025
DISTRACTOR_COLOUR = (0.1, 0.25, 0.9)
TABLE_X_M = (-0.12, 0.12)
TABLE_Y_M = (-0.20, 0.20)
"""Where on the table the distractor may stand."""
OVERLAY_SHARE = (0.12, 0.25)
"""Smallest and largest side of an overlay, as a share of the picture's."""
KEPT_SHARE = (0.85, 1.0)
"""Smallest and largest side of what an augmented copy shows of a picture."""
GAIN = (0.7, 1.3)
"""Smallest and largest factor of each colour of an augmented copy."""


class Stream(IntEnum):
    """Random numbers of one nuisance do not depend on which others are on."""

    SHAKE = 1
    SHARED_SHAKE = 2
    DISTRACTOR = 3
    LIGHT = 4
    OVERLAY = 5
    COPY = 6


class Nuisances(Config):
    """Which nuisances there are; none by default."""

    camera_shake_m: float = Field(default=0.0, ge=0)
    """Each random camera is moved by up to so much along each axis, independently of the others."""
    shared_camera_shake_m: float = Field(default=0.0, ge=0)
    """All random cameras are moved alike by up to so much along each axis."""
    distractor: bool = False
    """A blue box, which all cameras see, jumps about on the table."""
    light: float = Field(default=0.0, ge=0, lt=1)
    """Brightness of the lamps, which all cameras see, is drawn from 1 - light to 1 + light."""
    overlay: bool = False
    """A rectangle lies over the picture of each random camera, elsewhere and of another colour for each."""

    def shaken(self, pose: CameraPose, camera: int, seed: int, step: int) -> CameraPose:
        """The pose of a random camera (its number) with its shake, which moves what it looks at by half as much."""
        own = self.camera_shake_m * _random(seed, step, Stream.SHAKE, camera).uniform(-1, 1, (2, 3))
        shared = self.shared_camera_shake_m * _random(seed, step, Stream.SHARED_SHAKE).uniform(-1, 1, (2, 3))
        eye, target = np.array([pose.eye, pose.target]) + (own + shared) * np.array([[1.0], [0.5]])
        return CameraPose(eye=_triple(eye), target=_triple(target), fov_rad=pose.fov_rad)

    def brightness(self, seed: int, step: int) -> float:
        """Factor of the lamps' brightness."""
        return float(1.0 + self.light * _random(seed, step, Stream.LIGHT).uniform(-1, 1))

    def columns(self, seed: int, steps: range) -> dict[str, Float32[np.ndarray, "n m"]]:
        """The truth about what no camera pose tells, one row a frame, for audits."""
        found: dict[str, list] = {}
        if self.distractor:
            found["distractor_position"] = [distractor_position(seed, step) for step in steps]
        if self.light:
            found["brightness"] = [[self.brightness(seed, step)] for step in steps]
        return {name: np.array(rows, np.float32) for name, rows in found.items()}


def distractor_position(seed: int, step: int) -> Float[np.ndarray, "3"]:
    """Where the distractor stands, metres in the robot's world."""
    random = _random(seed, step, Stream.DISTRACTOR)
    return np.array([random.uniform(*TABLE_X_M), random.uniform(*TABLE_Y_M), DISTRACTOR_HALF_SIZE_M])


def overlaid(picture: UInt8[np.ndarray, "h w 3"], camera: int, seed: int, step: int) -> UInt8[np.ndarray, "h w 3"]:
    """The picture of a random camera (its number) with a rectangle over it."""
    random = _random(seed, step, Stream.OVERLAY, camera)
    sides = np.array(picture.shape[:2])
    size = np.maximum(1, (random.uniform(*OVERLAY_SHARE, 2) * sides).astype(int))
    top, left = random.integers(0, sides - size, endpoint=True)
    covered = picture.copy()
    covered[top : top + size[0], left : left + size[1]] = random.integers(0, 256, 3)
    return covered


def augmented_copy(picture: UInt8[np.ndarray, "h w 3"], camera: int, seed: int) -> UInt8[np.ndarray, "h w 3"]:
    """The picture cut and coloured differently, alike in all frames of an episode: a second view that is none."""
    random = _random(seed, 0, Stream.COPY, camera)
    height, width = picture.shape[:2]
    share = random.uniform(*KEPT_SHARE)
    top, left = random.uniform(0, 1 - share, 2) * (height, width)
    box = (left, top, left + share * width, top + share * height)
    cut = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR, box=box))
    return np.clip(cut * random.uniform(*GAIN, 3), 0, 255).astype(np.uint8)


def _triple(values: Float[np.ndarray, "3"]) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def _random(seed: int, step: int, stream: Stream, camera: int = 0) -> np.random.Generator:
    return np.random.default_rng([seed, step, stream, camera])
