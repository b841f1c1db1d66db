"""ManiSkill tasks by name: what the robot is told, how long it may take, what counts as success.

Every other task that ManiSkill registers works too, with what its registration says (eval/maniskill_registry.py).
"""

import difflib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

EVALUATION_SEEDS_FROM = 10_000_000
"""Seeds from here on belong to evaluation; no episode for training is ever collected from them."""

CUBE_HALF_SIZE_M = 0.02
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
    cube_half_size_m: float = CUBE_HALF_SIZE_M
    """Half the edge of the cube, where it is not ManiSkill's own."""
    robot: str | None = None
    """ManiSkill's name of the robot; None: the task's own."""
    is_derived: bool = False
    """The instruction is made of the task's name, because nobody wrote one."""

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
        robot="panda",
    ),
    "PullCube-v1": Task(
        environment="PullCube-v1",
        instructions=("pull the cube onto the red and white target",),
        max_steps=50,
        moved_object="obj",
        robot="panda",
    ),
    "PickCube-v1": Task(
        environment="PickCube-v1",
        instructions=("pick up the red cube and hold it at the green ball",),
        max_steps=50,
        robot="panda",
    ),
    # Letting go carefully takes longer than ManiSkill's own limit of 50 steps.
    "StackCube-v1": Task(
        environment="StackCube-v1",
        instructions=("stack the red cube on the green cube",),
        max_steps=100,
        moved_object="cubeA",
        robot="panda",
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
        robot="panda",
    ),
    # What the hand does here does not follow from what can be seen before, as it does where an expert has a goal.
    "RandomMotion": Task(
        environment="PickCube-v1",
        instructions=("move the hand at random",),
        max_steps=35,
        is_free=True,
        hidden=("goal_site",),
        robot="panda",
    ),
}
"""Tasks that episodes are collected of."""


def _stock(environment: str, instruction: str, max_steps: int, moved_object: str, robot: str | None = None) -> Task:
    return Task(
        environment=environment,
        instructions=(instruction,),
        max_steps=max_steps,
        moved_object=moved_object,
        robot=robot,
    )


# With ManiSkill's own step limits, but for PushT.
EVALUATION_TASKS = {
    task.environment: task
    for task in (
        _stock(
            "StackPyramid-v1", "put the red cube beside the green cube and the blue cube on both", 250, "cubeC", "panda"
        ),
        _stock("PegInsertionSide-v1", "put the orange end of the peg into the hole of the box", 100, "peg"),
        _stock("LiftPegUpright-v1", "stand the peg upright", 50, "peg"),
        _stock("PlaceSphere-v1", "put the blue ball into the bin", 50, "obj"),
        _stock("PokeCube-v1", "push the red cube onto the target with the blue peg", 50, "cube"),
        _stock("RollBall-v1", "roll the blue ball onto the red and white target", 80, "ball"),
        # Push by push, looking again after each, takes longer than ManiSkill's own limit of 100 steps.
        _stock("PushT-v1", "push the red T onto the grey T", 300, "tee"),
        _stock("PullCubeTool-v1", "pull the blue cube closer with the red hook", 100, "cube"),
        _stock("PlugCharger-v1", "plug the charger into the receptacle", 200, "charger"),
    )
}
"""Other tasks of ManiSkill that need no downloads and that this project describes."""


def find_task(name: str) -> Task:
    """The task called `name`, of those that are described in this file.

    Raises:
        ValueError: there is none; the message names close ones.
    """
    known = TASKS | EVALUATION_TASKS
    if name not in known:
        raise ValueError(unknown_task(name, list(known)))
    return known[name]


def unknown_task(name: str, known: list[str]) -> str:
    """The sentence about a task that is none of the `known` ones."""
    close = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known tasks: {', '.join(known)}"
    return f"unknown task {name!r}; {hint}"


def is_pushed(displacement_m: Float[np.ndarray, "2"], direction: tuple[float, float]) -> bool:
    """Whether an object went far enough along `direction` and not too far aside."""
    along = displacement_m @ np.array(direction)
    aside = abs(displacement_m @ np.array([-direction[1], direction[0]]))
    return bool(along >= PUSHED_ALONG_M and aside < PUSHED_ASIDE_M)
