"""Episodes: synchronised camera views of one attempt at one instruction."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, UInt8

from core.lazy_frames import LazyFrames
from core.spaces import ActionSpace


@dataclass(frozen=True, kw_only=True)
class View:
    """What one camera saw."""

    frames: UInt8[np.ndarray, "frames height width 3"] | LazyFrames
    """RGB; lazy where they are decoded when they are looked at."""
    extrinsics: Float[np.ndarray, "frames 3 4"] | None = None
    """World to camera, OpenCV axes (x right, y down, z forward), metres; None where unknown."""


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One attempt: views of equal length, an instruction, and, where known, what the robot did.

    Frame `i` was seen just before action `i` was taken. A view that was not recorded is absent from `views`.
    """

    episode_id: str
    """Unique within its source, for instance `PushCube-v1/seed=17`; duplicates and splits are found by it."""
    task: str
    """Machine name of the task."""
    instruction: str
    """What the robot was told, in words."""
    control_hz: float
    """Frames, and actions, a second."""
    views: dict[str, View]
    actions: Float[np.ndarray, "frames dims"] | None = None
    """In the units of `action_space`."""
    action_space: ActionSpace | None = None
    proprioception: Float[np.ndarray, "frames senses"] | None = None
    """End-effector position (m), orientation (quaternion wxyz), finger openings (m), or what the source has."""
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    """Further things of each frame, one row a frame: numbers, flags (bool) or texts (object)."""
    is_labelled: bool = True
    """False: training must behave as if the actions did not exist; only an audit may look at them."""
    split: str = "train"
    """train or held_out."""
    extra: dict[str, float | int | str] = field(default_factory=dict)
    """Further facts about the episode, kept as columns: seed, success, ..."""

    @property
    def length(self) -> int:
        """Frames of each view."""
        return len(next(iter(self.views.values())).frames)

    def validate(self) -> None:
        """Check that the parts fit together.

        Raises:
            ValueError: no view, views or actions of unequal length, actions without an action space or of other width.
        """
        where = f"episode {self.episode_id}"
        if not self.views:
            raise ValueError(f"{where} has no view; at least one camera is needed")
        lengths = {name: len(view.frames) for name, view in self.views.items()}
        if len(set(lengths.values())) != 1 or not self.length:
            raise ValueError(f"{where}: views must be synchronised and not empty, got frames {lengths}")
        if self.control_hz <= 0:
            raise ValueError(f"{where}: control_hz is {self.control_hz}, must be positive")
        for name, view in self.views.items():
            if view.extrinsics is not None and len(view.extrinsics) != self.length:
                raise ValueError(f"{where}: view {name} has {len(view.extrinsics)} extrinsics, {self.length} frames")
        for name, values in {"actions": self.actions, "proprioception": self.proprioception, **self.columns}.items():
            if values is not None and len(values) != self.length:
                raise ValueError(f"{where}: {len(values)} {name} for {self.length} frames; one a frame is needed")
        if self.actions is not None and (self.action_space is None or self.action_space.dims != self.actions.shape[1]):
            raise ValueError(f"{where}: actions of {self.actions.shape[1]} numbers need an action_space of that size")


def frames_in(seconds: float, control_hz: float) -> int:
    """Frames that `seconds` last at `control_hz`.

    Raises:
        ValueError: the time is not a whole number of frames (to 5 %), or less than one.
    """
    exact = seconds * control_hz
    frames = round(exact)
    if frames < 1 or abs(exact - frames) > 0.05 * frames:
        raise ValueError(
            f"{seconds} s are {exact:.2f} frames at {control_hz} Hz; choose a multiple of {1 / control_hz:.3f} s"
        )
    return frames
