"""What a policy sees and answers; no torch, so that a robot or simulator image needs none."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from core.spaces import ActionSpace


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What the robot senses at one instant."""

    images: dict[str, UInt8[np.ndarray, "height width 3"]]
    """RGB by camera name."""
    proprioception: Float[np.ndarray, " dims"] | None = None


@dataclass(frozen=True, kw_only=True)
class ActionChunk:
    """The next actions, first one first."""

    actions: Float[np.ndarray, "horizon dims"]
    """In the units of `action_space`."""
    action_space: ActionSpace


@runtime_checkable
class Policy(Protocol):
    """Anything that acts. Statistics, transforms and the action space are its own, never flags of the caller."""

    @property
    def fingerprint(self) -> str:
        """Identifies weights and settings in the results."""

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the images it needs."""

    @property
    def action_space(self) -> ActionSpace:
        """Meaning of the actions it answers."""

    def reset(self, instruction: str, seed: int) -> None:
        """Start an episode; whatever is random in the policy is drawn from `seed`."""

    def act(self, observation: Observation) -> ActionChunk:
        """The next chunk of actions."""
