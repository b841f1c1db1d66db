"""ManiSkill tasks by name: what the robot is told, how long it may take, what counts as success."""

import difflib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

EVALUATION_SEEDS_FROM = 10_000_000
"""Seeds from here on belong to evaluation; no episode for training is ever collected from them."""

PUSHED_ALONG_M = 0.10
PUSHED_ASIDE_M = 0.05


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of the simulator."""

    environment: str
    """ManiSkill's id of the scene."""
    instructions: tuple[str, ...]
    """What the robot may be told; the seed chooses, in turn."""
    max_steps: int
    """Control steps after which an episode is over."""
    moved_object: str = "cube"
    """Attribute of the scene that the task is about."""
    directions: tuple[tuple[float, float], ...] = ()
    """One unit vector (x, y) an instruction along which `moved_object` must go; empty: ManiSkill judges success."""
    is_free: bool = False
    """There is nothing to achieve: whatever happened until the step limit is a success."""
    hidden: tuple[str, ...] = ()
    """Attributes of the scene that no camera sees."""
    cube_half_size_m: float = 0.02
    """Half the edge of the cube; ManiSkill's own is 0.02."""

    def instruction(self, seed: int) -> str:
        """The instruction of the episode that `seed` names."""
        return self.instructions[seed % len(self.instructions)]

    def direction(self, seed: int) -> tuple[float, float] | None:
        """Where the object must go in the episode that `seed` names; None where ManiSkill judges."""
        return self.directions[seed % len(self.directions)] if self.directions else None


TASKS = {
    "PushCube-v1": Task(
        environment="PushCube-v1",
        instructions=("push the cube onto the red and white target",),
        max_steps=50,
        moved_object="obj",
    ),
    "PullCube-v1": Task(
        environment="PullCube-v1",
        instructions=("pull the cube onto the red and white target",),
        max_steps=50,
        moved_object="obj",
    ),
    "PickCube-v1": Task(
        environment="PickCube-v1", instructions=("pick up the red cube and hold it at the green ball",), max_steps=50
    ),
    # Letting go carefully takes longer than ManiSkill's own limit of 50 steps.
    "StackCube-v1": Task(
        environment="StackCube-v1",
        instructions=("stack the red cube on the green cube",),
        max_steps=100,
        moved_object="cubeA",
    ),
    # One scene, four instructions: without the instruction no policy can do better than chance.
    # The robot looks along +x, so its left is +y. Sideways the closed fingers are 2 cm wide: they keep hold of a 4 cm
    # cube that they meet up to 1 cm off its middle, and of this 6 cm one up to 2.5 cm (docs/experiments.md).
    "PushCubeDirections": Task(
        environment="PushCube-v1",
        instructions=(
            "push the cube to the left",
            "push the cube to the right",
            "push the cube away from the robot",
            "push the cube towards the robot",
        ),
        max_steps=50,
        moved_object="obj",
        directions=((0.0, 1.0), (0.0, -1.0), (1.0, 0.0), (-1.0, 0.0)),
        hidden=("goal_region",),
        cube_half_size_m=0.03,
    ),
    # What the hand does here does not follow from what can be seen before, as it does where an expert has a goal.
    "RandomMotion": Task(
        environment="PickCube-v1",
        instructions=("move the hand at random",),
        max_steps=35,
        is_free=True,
        hidden=("goal_site",),
    ),
}


def find_task(name: str) -> Task:
    """The task called `name`.

    Raises:
        ValueError: there is none; the message names close ones.
    """
    if name not in TASKS:
        close = difflib.get_close_matches(name, TASKS, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known tasks: {', '.join(TASKS)}"
        raise ValueError(f"unknown task {name!r}; {hint}")
    return TASKS[name]


def is_pushed(displacement_m: Float[np.ndarray, "2"], direction: tuple[float, float]) -> bool:
    """Whether an object went far enough along `direction` and not too far aside."""
    along = displacement_m @ np.array(direction)
    aside = abs(displacement_m @ np.array([-direction[1], direction[0]]))
    return bool(along >= PUSHED_ALONG_M and aside < PUSHED_ASIDE_M)
