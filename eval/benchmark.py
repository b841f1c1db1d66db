"""What a benchmark is: tasks that can be reset by seed, observed, acted in and judged. One file each implements it."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float, UInt8

from core.policy import Observation
from core.spaces import ActionSpace


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

    def reset(self, seed: int) -> str:
        """Start the episode that `seed` names; answers the instruction."""

    def observe(self) -> Observation:
        """Camera images and proprioception of this instant."""

    def step(self, action: Float[np.ndarray, " dims"]) -> StepResult:
        """Take one action, in the units of `action_space`."""

    def picture(self) -> UInt8[np.ndarray, "height width 3"]:
        """An RGB picture for people."""

    def close(self) -> None:
        """Free the simulator."""
