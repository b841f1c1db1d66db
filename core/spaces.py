"""Action spaces as data: what each number of an action means, so that no convention has to be guessed."""

from typing import Literal

import numpy as np
from jaxtyping import Float
from pydantic import model_validator

from core.config import Config


class ActionSpace(Config):
    """What the numbers of an action mean; stored with episodes and in every policy checkpoint."""

    names: tuple[str, ...]
    """One name a dimension."""
    units: tuple[str, ...]
    """One unit a dimension: m, rad, open for a gripper (1 open, -1 closed), or unspecified."""
    kind: Literal[
        "delta_end_effector",
        "absolute_end_effector",
        "end_effector_velocity",
        "joint_position",
        "delta_joint_position",
        "joint_velocity",
        "unspecified",
    ]
    """Whether numbers are increments a control step, targets, or velocities; unspecified: the source does not say."""
    frame: str = "robot_base"
    """Coordinate frame of positions and rotations."""
    rotation: str = "rotation_vector"
    """Form of the rotation dimensions, where there are any."""
    low: tuple[float, ...] | None = None
    """Smallest value a control step that the robot takes, per dimension; None: not known."""
    high: tuple[float, ...] | None = None
    """Largest value a control step that the robot takes, per dimension; None: not known."""

    @model_validator(mode="after")
    def _lengths_agree(self) -> "ActionSpace":
        known = [name for name in ("names", "units", "low", "high") if getattr(self, name) is not None]
        lengths = {name: len(getattr(self, name)) for name in known}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"names, units, low and high need one entry a dimension, got lengths {lengths}")
        return self

    @property
    def dims(self) -> int:
        """Numbers an action has."""
        return len(self.names)

    @property
    def is_increment(self) -> np.ndarray:
        """True for the dimensions that add up over control steps (a gripper command never does)."""
        return np.array([self.kind.startswith("delta") and unit != "open" for unit in self.units])

    def over_steps(self, actions: Float[np.ndarray, "steps dims"], stride: int) -> Float[np.ndarray, "strides dims"]:
        """Actions at every `stride`-th step: increments summed over the stride, targets taken at its end.

        Rotation vectors are summed as vectors, which is exact to second order for the small turns of one control step.
        The last stride may be shorter; it is summed as it is.
        """
        starts = np.arange(0, len(actions), stride)
        summed = np.add.reduceat(actions, starts, axis=0)
        final = actions[np.minimum(starts + stride, len(actions)) - 1]
        return np.where(self.is_increment, summed, final).astype(actions.dtype)


END_EFFECTOR_DELTA = ActionSpace(
    names=("x", "y", "z", "rx", "ry", "rz", "gripper"),
    units=("m", "m", "m", "rad", "rad", "rad", "open"),
    kind="delta_end_effector",
    low=(-0.1,) * 6 + (-1.0,),
    high=(0.1,) * 6 + (1.0,),
)
"""Increments of the end effector in the robot's base frame at one control step, and a gripper command."""
