"""Where the simulator's cameras stand: one fixed camera for policies, random ones, and how far any may be off."""

import math
import re
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from pydantic import Field, model_validator
from scipy.spatial.transform import Rotation

from core.config import Config

POLICY_CAMERA = "front"
JITTER_STREAM = 7
"""Random numbers of the jitter are no other's (see eval/nuisances.py)."""


@dataclass(frozen=True, kw_only=True)
class CameraPose:
    """A camera at `eye` that looks at `target`, with the world's z axis upright in the image; metres, robot world."""

    eye: tuple[float, float, float]
    target: tuple[float, float, float]
    fov_rad: float
    """Vertical field of view."""

    @property
    def axes(self) -> Float[np.ndarray, "3 3"]:
        """Rows: the camera's forward, left and up directions in the world."""
        forward = np.subtract(self.target, self.eye)
        forward = forward / np.linalg.norm(forward)
        left = np.cross([0.0, 0.0, 1.0], forward)
        left = left / np.linalg.norm(left)
        return np.stack([forward, left, np.cross(forward, left)])

    @property
    def matrix(self) -> Float[np.ndarray, "4 4"]:
        """Camera to world; the camera's axes are forward, left and up."""
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = self.axes.T, self.eye
        return matrix

    @property
    def extrinsics(self) -> Float[np.ndarray, "3 4"]:
        """World to camera, OpenCV axes (x right, y down, z forward)."""
        return _extrinsics(self.matrix)


@dataclass(frozen=True, kw_only=True)
class PlacedCamera:
    """A camera anywhere, turned in any way: one of the simulator's own, or one that is off its place."""

    matrix: Float[np.ndarray, "4 4"]
    """Camera to world; the camera's axes are forward, left and up."""
    fov_rad: float
    """Vertical field of view."""

    @property
    def extrinsics(self) -> Float[np.ndarray, "3 4"]:
        """World to camera, OpenCV axes (x right, y down, z forward)."""
        return _extrinsics(self.matrix)


FRONT = CameraPose(eye=(0.50, 0.0, 0.45), target=(-0.02, 0.0, 0.02), fov_rad=0.85)


class RandomCameras(Config):
    """From where random cameras look: drawn once an episode, around the middle of the table."""

    azimuth_deg: tuple[float, float] = (-75.0, 75.0)
    """Smallest and largest angle about the vertical; 0 looks at the robot from the front, 90 from its left."""
    elevation_deg: tuple[float, float] = (25.0, 55.0)
    """Smallest and largest angle above the table."""
    distance_m: tuple[float, float] = (0.5, 0.75)
    """Smallest and largest distance from the middle of the table."""
    look_at_height_m: float = FRONT.target[2]
    """Height above the table of the point that they look at."""
    is_fixed: bool = False
    """Each camera has one place for all episodes."""
    camera_motion_m: float = 0.0
    """How far a camera sways to either side of its place during an episode; 0 stands still."""
    sway_period_s: float = 2.0
    """Duration of one sway to and fro."""

    @model_validator(mode="after")
    def _ranges_are_ranges(self) -> "RandomCameras":
        for name in ("azimuth_deg", "elevation_deg", "distance_m"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} is a range from small to large, got {low} to {high}")
        if self.distance_m[0] <= 0 or not 0 < self.elevation_deg[0] <= self.elevation_deg[1] < 90:
            raise ValueError("cameras stand above the table: distance_m above 0, elevation_deg between 0 and 90")
        return self


class CameraJitter(Config):
    """How far cameras may be off their places; drawn once an episode, for each camera by itself."""

    translation_m: float = Field(default=0.0, ge=0)
    """Largest distance from the place."""
    rotation_deg: float = Field(default=0.0, ge=0, le=90)
    """Largest angle to the orientation."""

    def off_place(self, seed: int, camera: str) -> Float[np.ndarray, "4 4"]:
        """Of the episode that `seed` names: the camera as it stands, seen from where it should stand."""
        random = np.random.default_rng([seed, JITTER_STREAM, zlib.crc32(camera.encode())])
        shift, axis = (vector / np.linalg.norm(vector) for vector in random.normal(size=(2, 3)))
        distance, angle = random.uniform(size=2) * (self.translation_m, math.radians(self.rotation_deg))
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = Rotation.from_rotvec(angle * axis).as_matrix(), distance * shift
        return matrix


class ViewName(NamedTuple):
    """What the name of a view says."""

    kind: str
    """front; random; copy: a random camera's pictures, cut and coloured differently; late: what it sees later."""
    number: int
    """Of the random camera, from 1; 0 for the policy's."""


def view_name(name: str) -> ViewName:
    """What is meant by `front`, `random_n`, `copy_n` or `late_n`.

    Raises:
        ValueError: there is no such view.
    """
    if name == POLICY_CAMERA:
        return ViewName(name, 0)
    match = re.fullmatch(r"(random|copy|late)_([1-9]\d*)", name)
    if match is None:
        raise ValueError(
            f"unknown view {name!r}; there are {POLICY_CAMERA!r}, 'random_1', 'random_2', ..., of each also 'copy_1' "
            "(an augmented copy) and 'late_1' (half a kept frame later)"
        )
    return ViewName(match[1], int(match[2]))


def is_own_view(name: str) -> bool:
    """Whether `view_name` knows the view."""
    try:
        view_name(name)
    except ValueError:
        return False
    return True


def place_camera(name: str, seed: int, seconds: float, ranges: RandomCameras) -> CameraPose:
    """Where the camera `name` stands, `seconds` after the start of the episode that `seed` names."""
    number = view_name(name).number
    if number == 0:
        return FRONT
    random = np.random.default_rng([number] if ranges.is_fixed else [seed, number])
    azimuth, elevation = (math.radians(random.uniform(*span)) for span in (ranges.azimuth_deg, ranges.elevation_deg))
    distance = random.uniform(*ranges.distance_m)
    direction = np.array(
        [math.cos(azimuth) * math.cos(elevation), math.sin(azimuth) * math.cos(elevation), math.sin(elevation)]
    )
    sway = random.normal(size=3)
    phase = random.uniform(0, 2 * math.pi) + 2 * math.pi * seconds / ranges.sway_period_s
    offset = ranges.camera_motion_m * math.sin(phase) * sway / np.linalg.norm(sway)
    target = (*FRONT.target[:2], ranges.look_at_height_m)
    eye = np.array(target) + distance * direction + offset
    return CameraPose(eye=(float(eye[0]), float(eye[1]), float(eye[2])), target=target, fov_rad=FRONT.fov_rad)


def _extrinsics(matrix: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "3 4"]:
    forward, left, up = matrix[:3, :3].T
    rotation = np.stack([-left, -up, forward])
    return np.concatenate([rotation, -rotation @ matrix[:3, 3:]], axis=1)
