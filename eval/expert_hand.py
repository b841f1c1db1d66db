"""What scripted experts are made of: what they want now, and a hand that they bring to poses of any orientation."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32
from scipy.spatial.transform import Rotation

from eval.maniskill import ManiSkillBenchmark

OPEN, CLOSED = 1.0, -1.0
STEP_LIMIT_M = 0.1
TURN_LIMIT_RAD = 0.1
ABOVE_M = 0.07
"""Way over a grasp at which the hand is aligned."""
GRIP_STEPS = 3
FINGERS_DOWN = Rotation.from_rotvec([np.pi, 0, 0])


class Intention(NamedTuple):
    """What an expert wants to do now."""

    action: Float32[np.ndarray, " dims"]
    """In the units of `END_EFFECTOR_DELTA`; of a hand that has no gripper its first six numbers."""
    noise_scale: float
    """How much of the execution noise the expert stands at this point: less where it touches things."""


class Hand:
    """The hand of a benchmark's robot, at `speed` in 0..1. Poses are matrices: of a thing in the simulator's world."""

    def __init__(self, benchmark: ManiSkillBenchmark, speed: float) -> None:
        self._benchmark = benchmark
        self._speed = speed
        self._base = pose_matrix(benchmark.robot_base_pose())[:3, :3]
        self._dims = benchmark.action_space.dims
        self.control_hz = benchmark.control_hz
        self.steps_left = benchmark.max_steps
        """Of the episode, if every intention is carried out."""

    @property
    def pose(self) -> Float[np.ndarray, "4 4"]:
        """Where the hand is."""
        return pose_matrix(self._benchmark.proprioception()[:7])

    def thing(self, name: str) -> Float[np.ndarray, "4 4"]:
        """Where a thing of the scene is."""
        return pose_matrix(self._benchmark.object_pose(name))

    def holding(self, thing: str, goal: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
        """Where the hand must be so that what it holds is at `goal`."""
        return goal @ np.linalg.inv(self.thing(thing)) @ self.pose

    def is_at(self, target: Float[np.ndarray, "4 4"], within_m: float, within_rad: float) -> bool:
        """Whether the hand is that near to a pose."""
        is_near = np.linalg.norm(target[:3, 3] - self.pose[:3, 3]) < within_m
        return bool(is_near and np.linalg.norm(turn_between(self.pose, target)) < within_rad)

    def towards(
        self,
        target: Float[np.ndarray, "4 4"],
        gripper: float,
        *,
        noise_scale: float = 0.0,
        speed: float | None = None,
    ) -> Intention:
        """One step towards a pose."""
        step = limited(target[:3, 3] - self.pose[:3, 3], STEP_LIMIT_M * (speed or self._speed))
        return self.move(step, target, gripper, noise_scale)

    def move(
        self,
        step: Float[np.ndarray, "3"],
        oriented_as: Float[np.ndarray, "4 4"],
        gripper: float,
        noise_scale: float = 0.0,
    ) -> Intention:
        """One given step, turning on the way as a pose is turned."""
        self.steps_left -= 1
        turn = limited(turn_between(self.pose, oriented_as), TURN_LIMIT_RAD)
        action = np.concatenate([step @ self._base, turn @ self._base, [gripper]])[: self._dims]
        return Intention(action.astype(np.float32), noise_scale)

    def grasp(self, place: Float[np.ndarray, "4 4"], grip: float = CLOSED) -> Iterator[Intention]:
        """Go over a pose, down to it, and close the fingers to `grip`."""
        above = raised(place, ABOVE_M)
        while not self.is_at(above, within_m=0.012, within_rad=0.05):
            yield self.towards(above, OPEN, noise_scale=1.0)
        while not self.is_at(place, within_m=0.004, within_rad=0.05):
            yield self.towards(place, OPEN, noise_scale=0.3, speed=0.4)
        for _ in range(GRIP_STEPS):
            yield self.towards(place, grip)


def pose_matrix(pose: Float[np.ndarray, "7"]) -> Float[np.ndarray, "4 4"]:
    """The matrix of a position (m) and a quaternion (wxyz)."""
    return placed(pose[:3], Rotation.from_quat(np.roll(pose[3:], -1)))


def placed(position: Float[np.ndarray, "3"], turn: Rotation) -> Float[np.ndarray, "4 4"]:
    """The matrix of a position (m) and an orientation."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn.as_matrix(), position
    return matrix


def shifted(x_m: float) -> Float[np.ndarray, "4 4"]:
    """A pose that is so far along x."""
    return placed(np.array([x_m, 0.0, 0.0]), Rotation.identity())


def raised(pose: Float[np.ndarray, "4 4"], by_m: float) -> Float[np.ndarray, "4 4"]:
    """A pose that is higher by so much."""
    return placed(np.array([0.0, 0.0, by_m]), Rotation.identity()) @ pose


def turn_between(pose: Float[np.ndarray, "4 4"], target: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "3"]:
    """Rotation vector in the world from one orientation to another."""
    return Rotation.from_matrix(target[:3, :3] @ pose[:3, :3].T).as_rotvec()


def at_height(place: Float[np.ndarray, "3"], height_m: float) -> Float[np.ndarray, "3"]:
    """The place at that height over or under this one."""
    return np.array([place[0], place[1], height_m])


def limited(vector: Float[np.ndarray, "3"], length: float) -> Float[np.ndarray, "3"]:
    """The vector, or a shorter one of its direction."""
    return vector * min(1.0, length / max(float(np.linalg.norm(vector)), 1e-9))
