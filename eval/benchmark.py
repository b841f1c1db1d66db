"""What a benchmark is: tasks that can be reset by seed, observed, acted in and judged. One file each implements it."""

import importlib.metadata
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from core.policy import Observation
from core.spaces import ActionSpace

NEEDED_FACTS = ("simulator", "shader", "robot", "robot_meshes", "assets", "termination", "image_size")
"""What every benchmark says of itself; more is welcome."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one control step led to."""

    success: bool
    """The task's own judgement of this very instant."""
    is_over: bool
    """The task's step limit is reached."""


class Benchmark(Protocol):
    """One task in one simulator. A simulator renders only when `observe` or `picture` is called."""

    @property
    def task(self) -> str:
        """Machine name of the task."""

    @property
    def action_space(self) -> ActionSpace:
        """Meaning of the actions that `step` takes."""

    @property
    def control_hz(self) -> float:
        """Control steps a second."""

    @property
    def max_steps(self) -> int:
        """Control steps after which an episode is over."""

    @property
    def facts(self) -> dict[str, Any]:
        """What else a score depends on, as JSON values by name, `NEEDED_FACTS` among them; stands in every result.

        `simulator` with its version, `shader`, `robot`, `robot_meshes` (stock or lighter), `assets` (official, or what
        is not), `termination` (when an episode ends, in words), `image_size` (pixels, or [height, width]). Whatever
        differs here makes results that are never averaged or compared, `image_size` aside, which is the policy's wish.
        """

    def reset(self, seed: int) -> str:
        """Start the episode that `seed` names (its number, where a benchmark has fixed ones); answers the instruction.

        The same seed is the same episode, whatever was run before.
        """

    def initial_state(self) -> dict[str, list[float]]:
        """Where things lie now (x, y, z; m) by name, what the task is about first; may be empty. For reports only."""

    def observe(self) -> Observation:
        """Camera images and proprioception of this instant."""

    def step(self, action: Float[np.ndarray, " dims"]) -> StepResult:
        """Take one action, in the units of `action_space`."""

    def picture(self) -> UInt8[np.ndarray, "height width 3"]:
        """An RGB picture for people."""

    def close(self) -> None:
        """Free the simulator."""


def versions_of(*packages: str) -> str:
    """Names and versions of installed packages, in one line."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)


def square(picture: UInt8[np.ndarray, "height width 3"], side: int) -> UInt8[np.ndarray, "side side 3"]:
    """The whole picture in so many pixels along each side (Lanczos)."""
    return np.array(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS))
