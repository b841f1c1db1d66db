"""A scripted expert for LIBERO's tasks of putting one thing into or onto another, from the true poses.

It shows that the tasks can be solved and that success is seen, so that a score of 0 is the policy's fault.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32
from scipy.spatial.transform import Rotation

from core.policy import ActionChunk, Observation
from eval.expert_hand import CLOSED, OPEN, at_height, limited
from eval.libero import MOST_M, LiberoBenchmark
from eval.libero_package import TASKS

SOLVED = tuple(
    task for task in TASKS if task.startswith(("libero_object", "libero_spatial")) and task != "libero_spatial-4"
)
"""Tasks that have an expert. In libero_spatial-4 the bowl stands in a drawer, which the hand does not reach into."""
MOST_TURN_RAD = 0.3
HAND_OPENING_M = 0.075
"""What fits between the fingers."""
FINGER_M = 0.03
"""How far the fingers reach down beside a thing."""
RIM_M, WALL_M = 0.015, 0.004
"""How far they reach down beside the wall of a bowl, and half its thickness."""
FLOOR_M = 0.01
"""Fingertips over what a thing stands on, at least."""
ABOVE_M, CLEAR_M, DROP_M = 0.10, 0.05, 0.01
"""Over a thing before it is grasped; between what is carried and what it passes over; above where it is let go."""
AT_PLACE_M, AT_TURN_RAD = 0.008, 0.05
GRIP_STEPS, RELEASE_STEPS = 10, 10
ALIKE_M = 0.004
"""Widths that are as good as the narrowest."""
PALM_M, HAND_M = 0.03, np.array([0.04, 0.11])
"""Height of the palm over the fingertips, and how far it reaches along and across the fingers' motion."""
ANGLES = np.deg2rad(np.arange(-90, 90, 5))


class Grasp(NamedTuple):
    """How a thing is taken from above."""

    place: Float[np.ndarray, "3"]
    """Between the fingertips (m, world)."""
    turn: Rotation
    """Of the hand."""


class LiberoExpert:
    """Decides on one action at a time, in an episode that has just begun.

    Raises:
        ValueError: there is no expert for the task.
    """

    def __init__(self, benchmark: LiberoBenchmark) -> None:
        if benchmark.task not in SOLVED:
            raise ValueError(f"{benchmark.task} has no scripted expert; those that have: {', '.join(SOLVED)}")
        self._benchmark = benchmark
        self._scene = benchmark.scene
        self._down = self._hand_turn
        ((_, self._thing, self._target),) = self._scene.parsed_problem["goal_state"]
        self._actions = self._put()

    def decide(self) -> Float32[np.ndarray, "7"]:
        """The next action."""
        return next(self._actions)

    def _put(self) -> Iterator[Float32[np.ndarray, "7"]]:
        place, turn = self._grasp()
        over = at_height(place, max(place[2] + ABOVE_M, self._hand[2]))
        yield from self._go(lambda: over, turn, OPEN, most_steps=60)
        yield from self._go(lambda: place, turn, OPEN, most_steps=40)
        yield from self._go(lambda: place, turn, CLOSED, most_steps=GRIP_STEPS, is_waiting=True)
        carried = self._carrying_height()
        yield from self._go(lambda: at_height(self._hand, carried), turn, CLOSED, most_steps=40)
        yield from self._go(lambda: at_height(self._hand + self._way(), carried), turn, CLOSED, most_steps=60)
        yield from self._go(lambda: self._hand + self._way_down(), turn, CLOSED, most_steps=30)
        released = self._hand.copy()
        yield from self._go(lambda: released, turn, OPEN, most_steps=RELEASE_STEPS, is_waiting=True)
        while True:
            yield self._towards(at_height(released, carried), turn, OPEN)

    def _go(
        self,
        place: Callable[[], Float[np.ndarray, "3"]],
        turn: Rotation,
        gripper: float,
        most_steps: int,
        is_waiting: bool = False,
    ) -> Iterator[Float32[np.ndarray, "7"]]:
        """Towards a place, which may move, until the hand is there; or for all of the steps."""
        for _ in range(most_steps):
            yield self._towards(place(), turn, gripper)
            if not is_waiting and self._is_at(place(), turn):
                return

    def _towards(self, place: Float[np.ndarray, "3"], turn: Rotation, gripper: float) -> Float32[np.ndarray, "7"]:
        step = limited(place - self._hand, MOST_M)
        rotation = limited((turn * self._hand_turn.inv()).as_rotvec(), MOST_TURN_RAD)
        return np.array([*step, *rotation, gripper], np.float32)

    def _is_at(self, place: Float[np.ndarray, "3"], turn: Rotation) -> bool:
        is_near = np.linalg.norm(place - self._hand) < AT_PLACE_M
        return bool(is_near and (turn * self._hand_turn.inv()).magnitude() < AT_TURN_RAD)

    def _grasp(self) -> Grasp:
        """The way to take the thing that leaves most room for the hand, and of these the one that turns it least."""
        scene = self._scene
        others = [name for name in (*scene.objects_dict, *scene.fixtures_dict) if name != self._thing]
        around = np.concatenate([np.zeros((0, 3)), *(corners_of(scene, name) for name in others)])
        place, yaw = min(self._ways_to_grasp(), key=lambda way: (_blocked(around, *way), abs(way[1])))
        return Grasp(place, Rotation.from_euler("z", yaw) * self._down)

    def _ways_to_grasp(self) -> Iterator[tuple[Float[np.ndarray, "3"], float]]:
        """Places and yaws: across a thing's narrowest side, or on the wall of what is wider than the hand can open."""
        corners = corners_of(self._scene, self._thing)
        axes = [Rotation.from_euler("z", yaw).as_matrix()[:2, :2] for yaw in ANGLES]
        widths = [float(np.ptp(corners[:, :2] @ one[:, 1])) for one in axes]
        bottom, top = corners[:, 2].min(), corners[:, 2].max()
        for yaw, axis, width in zip(ANGLES, axes, widths, strict=True):
            low, high = (corners[:, :2] @ axis).min(0), (corners[:, :2] @ axis).max(0)
            (along, across), (reach, half) = (low + high) / 2, (high - low) / 2
            if min(widths) > HAND_OPENING_M:
                for spot in (across + half - WALL_M, across - half + WALL_M):
                    place = axis @ np.array([along, spot])
                    is_near = np.linalg.norm(corners[:, :2] - place, axis=1) < half
                    yield np.array([*place, corners[is_near, 2].max() - RIM_M]), float(yaw)
            elif width < min(widths) + ALIKE_M:
                for offset in (0.0, FINGER_M / 2 - reach, reach - FINGER_M / 2):
                    place = axis @ np.array([along + offset, across])
                    yield np.array([*place, max(top - FINGER_M, bottom + FLOOR_M)]), float(yaw)

    def _carrying_height(self) -> float:
        """Of the hand, so that what it holds passes over the target."""
        held = corners_of(self._scene, self._thing)[:, 2].min() - self._hand[2]
        top = max(self._target_top(), corners_of(self._scene, self._thing)[:, 2].min())
        return float(top + CLEAR_M - held)

    def _way(self) -> Float[np.ndarray, "3"]:
        """Of the thing to the target, level."""
        return at_height(self._target_place() - self._benchmark.object_position(self._thing), 0.0)

    def _way_down(self) -> Float[np.ndarray, "3"]:
        """Of the thing, to where it is let go: just over the target, or over the rim of what it is put into."""
        bottom = corners_of(self._scene, self._thing)[:, 2].min()
        return at_height(self._way(), self._target_top() + DROP_M - bottom)

    def _target_place(self) -> Float[np.ndarray, "3"]:
        if self._target in self._scene.object_sites_dict:
            return np.array(self._scene.sim.data.get_site_xpos(self._target))
        return self._benchmark.object_position(self._target)

    def _target_top(self) -> float:
        site = self._scene.object_sites_dict.get(self._target)
        return float(corners_of(self._scene, site.parent_name if site else self._target)[:, 2].max())

    @property
    def _hand(self) -> Float[np.ndarray, "3"]:
        return self._benchmark.hand_pose()[:3]

    @property
    def _hand_turn(self) -> Rotation:
        return Rotation.from_quat(self._benchmark.hand_pose()[3:])


class LiberoExpertPolicy:
    """The expert as a policy: what can be reached at all."""

    cameras: tuple[str, ...] = ()
    fingerprint = "expert"

    def __init__(self, benchmark: LiberoBenchmark) -> None:
        self.action_space = benchmark.action_space
        self._benchmark = benchmark

    def reset(self, instruction: str, seed: int) -> None:
        """Take up the episode in which the benchmark stands."""
        self._expert = LiberoExpert(self._benchmark)

    def act(self, observation: Observation) -> ActionChunk:
        """One action, from the true poses."""
        return ActionChunk(actions=self._expert.decide()[None], action_space=self.action_space)


def corners_of(scene: Any, thing: str) -> Float[np.ndarray, "corners 3"]:
    """Corners (m, world) of the boxes around all parts of a thing that can be touched."""
    model, data = scene.sim.model._model, scene.sim.data._data
    root = model.body_rootid[scene.obj_body_id[thing]]
    parts = np.flatnonzero((model.body_rootid[model.geom_bodyid] == root) & (model.geom_contype > 0))
    signs = np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, 8).T
    own = model.geom_aabb[parts, None, :3] + signs * model.geom_aabb[parts, None, 3:]
    turned = np.einsum("pij,pcj->pci", data.geom_xmat[parts].reshape(-1, 3, 3), own)
    return (turned + data.geom_xpos[parts, None]).reshape(-1, 3)


def _blocked(around: Float[np.ndarray, "corners 3"], place: Float[np.ndarray, "3"], yaw: float) -> int:
    """How many corners of other things are where the palm shall be."""
    level = (around[:, :2] - place[:2]) @ Rotation.from_euler("z", yaw).as_matrix()[:2, :2]
    is_under = (np.abs(level) < HAND_M).all(1)
    return int((is_under & (around[:, 2] > place[2] + PALM_M)).sum())
