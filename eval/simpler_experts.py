"""A scripted expert for SIMPLER's WidowX tasks: grasp, carry, let go, from the true poses, through the same actions.

It shows that the tasks can be solved and that success is seen, so that a score of 0 is the policy's fault.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32
from scipy.spatial.transform import Rotation

from core.policy import ActionChunk, Observation
from eval.expert_hand import CLOSED, OPEN, limited
from eval.simpler import FINGERS_DOWN, SimplerBenchmark, rotation_of

STEP_M, SLOW_STEP_M, TURN_RAD = 0.04, 0.02, 0.25
"""Furthest that a control step moves and turns the commanded pose."""
ABOVE_M = np.array([0.0, 0.0, 0.09])
"""Way over the grasp at which the hand is aligned."""
AT_PLACE_M, AT_TURN_RAD = 0.005, 0.05
GRIP_STEPS, RELEASE_STEPS = 4, 4
RISE_M = np.array([0.0, 0.0, 0.08])


@dataclass(frozen=True, kw_only=True)
class Way:
    """What differs from task to task."""

    grip_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Where the thing is grasped, along its own axes from its middle."""
    lift_m: float = 0.07
    """How high it is lifted before it is carried."""
    release_m: float
    """Height of its middle over the target's at which it is let go."""


WAYS = {
    "StackGreenCubeOnYellowCubeBakedTexInScene-v1": Way(release_m=0.031),
    "PutCarrotOnPlateInScene-v1": Way(release_m=0.022),
    # The neck in the middle is thin and low: a hand that closes on it loses the spoon, the handle is 2 cm thick.
    "PutSpoonOnTableClothInScene-v1": Way(grip_m=(0.02, 0.0, 0.003), release_m=0.02),
    # Out of the sink, over the rim of the basket.
    "PutEggplantInBasketScene-v1": Way(lift_m=0.12, release_m=0.06),
}


class SimplerExpert:
    """Decides on one action at a time, in an episode that has just begun."""

    def __init__(self, benchmark: SimplerBenchmark) -> None:
        self._benchmark = benchmark
        self._way = WAYS[benchmark.task]
        # The controller adds increments to what it was told before, not to where the hand is.
        hand = benchmark.hand_pose()
        self._told_place, self._told_turn = hand[:3], rotation_of(hand)
        self._actions = self._put_source_on_target()

    def decide(self) -> Float32[np.ndarray, "7"]:
        """The next action."""
        return next(self._actions)

    def _put_source_on_target(self) -> Iterator[Float32[np.ndarray, "7"]]:
        source = self._benchmark.object_pose("source")
        turn = Rotation.from_euler("z", self._grasp_yaw()) * FINGERS_DOWN
        place = source[:3] + rotation_of(source).apply(self._way.grip_m)
        above = place + ABOVE_M
        yield from self._go(above, turn, OPEN, lambda: self._is_at(above, turn), most_steps=20)
        yield from self._go(place, turn, OPEN, lambda: self._is_at(place, turn), most_steps=6, step_m=0.03)
        yield from self._go(place, turn, CLOSED, lambda: False, most_steps=GRIP_STEPS)
        lifted = place + np.array([0.0, 0.0, self._way.lift_m])
        yield from self._go(lifted, turn, CLOSED, lambda: self._is_told(lifted), most_steps=10)
        # The hand has turned towards the thing, not the thing towards the hand: carry what is held by where it is held.
        held = self._position("source") - self._hand
        over = np.array([*(self._position("target") - held)[:2], lifted[2]])
        yield from self._go(over, turn, CLOSED, lambda: self._is_at(over, turn), most_steps=20)
        low = np.array([*over[:2], self._position("target")[2] + self._way.release_m - held[2]])
        yield from self._go(low, turn, CLOSED, self._is_low, most_steps=12, step_m=SLOW_STEP_M)
        released = self._told_place
        yield from self._go(released, turn, OPEN, lambda: False, most_steps=RELEASE_STEPS)
        while True:
            yield self._towards(released + RISE_M, turn, OPEN, STEP_M)

    def _go(
        self,
        place: Float[np.ndarray, "3"],
        turn: Rotation,
        gripper: float,
        is_there: Callable[[], bool],
        most_steps: int,
        step_m: float = STEP_M,
    ) -> Iterator[Float32[np.ndarray, "7"]]:
        """Towards a pose until `is_there`, at least one step."""
        for _ in range(most_steps):
            yield self._towards(place, turn, gripper, step_m)
            if is_there():
                return

    def _towards(
        self, place: Float[np.ndarray, "3"], turn: Rotation, gripper: float, step_m: float
    ) -> Float32[np.ndarray, "7"]:
        step = limited(place - self._told_place, step_m)
        rotation = Rotation.from_rotvec(limited((turn * self._told_turn.inv()).as_rotvec(), TURN_RAD))
        self._told_place, self._told_turn = self._told_place + step, rotation * self._told_turn
        return np.array([*step, *rotation.as_euler("xyz"), gripper], np.float32)

    def _grasp_yaw(self) -> float:
        """The smallest turn of the hand that lets the fingers close across the source's longest level side."""
        size, pose = self._benchmark.object_size("source"), self._benchmark.object_pose("source")
        sides = rotation_of(pose).as_matrix() * size
        x, y = sides[:2, np.argmax(np.linalg.norm(sides[:2], axis=0))]
        alike = np.pi / 2 if np.isclose(size[0], size[1]) else np.pi
        return float((np.arctan2(y, x) + alike / 2) % alike - alike / 2)

    def _is_at(self, place: Float[np.ndarray, "3"], turn: Rotation) -> bool:
        hand = self._benchmark.hand_pose()
        is_near = np.linalg.norm(hand[:3] - place) < AT_PLACE_M
        return bool(is_near and (turn * rotation_of(hand).inv()).magnitude() < AT_TURN_RAD)

    def _is_told(self, place: Float[np.ndarray, "3"]) -> bool:
        return bool(np.allclose(self._told_place, place, atol=1e-6))

    def _is_low(self) -> bool:
        height = self._position("source")[2] - self._position("target")[2]
        return bool(height < self._way.release_m + 0.002)

    @property
    def _hand(self) -> Float[np.ndarray, "3"]:
        return self._benchmark.hand_pose()[:3]

    def _position(self, thing: str) -> Float[np.ndarray, "3"]:
        return self._benchmark.object_pose(thing)[:3]


class SimplerExpertPolicy:
    """The expert as a policy: what can be reached at all."""

    cameras: tuple[str, ...] = ()
    fingerprint = "expert"

    def __init__(self, benchmark: SimplerBenchmark) -> None:
        self.action_space = benchmark.action_space
        self._benchmark = benchmark

    def reset(self, instruction: str, seed: int) -> None:
        """Take up the episode in which the benchmark stands."""
        self._expert = SimplerExpert(self._benchmark)

    def act(self, observation: Observation) -> ActionChunk:
        """One action, from the true poses."""
        return ActionChunk(actions=self._expert.decide()[None], action_space=self.action_space)
