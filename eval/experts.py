"""Scripted experts: waypoints through the end-effector controller, from the true poses of the things in the scene."""

from collections.abc import Callable, Generator, Iterator

import numpy as np
from jaxtyping import Float, Float32
from scipy.spatial.transform import Rotation

from core.spaces import END_EFFECTOR_DELTA
from eval.expert_hand import CLOSED, OPEN, STEP_LIMIT_M, TURN_LIMIT_RAD, Hand, Intention, at_height, limited
from eval.maniskill import ManiSkillBenchmark
from eval.posing_experts import insert_peg, plug_in, roll_ball, stand_upright
from eval.push_t_experts import push_t

STICK_TASKS = ("PushT-v1",)
"""Tasks whose robot has a stick instead of a gripper."""
WITHOUT_GRIPPER = END_EFFECTOR_DELTA.model_copy(
    update={name: getattr(END_EFFECTOR_DELTA, name)[:-1] for name in ("names", "units", "low", "high")}
)
TABLE_Z_M = 0.02
"""Height of the fingertips at work: the middle of a cube on the table."""
ABOVE_Z_M = 0.09
"""Height at which the fingers pass over a cube."""
CLEARANCE_M = 0.045
"""Where a push starts, from the face of the cube."""
PUSH_STEP_M = 0.06
LINE_M = 0.19
"""Distance from the middle of the table at which the hand ends a push that was told as a direction."""
RISE_M = np.array([0.0, 0.0, 0.08])
WANDER_STEPS = 4
WANDER_STEP_M = 0.04
WANDER_REACH = 2.0
"""Steps' worth of way that the hand, which lags behind, covers in a movement."""
WANDER_BOX_M = np.array([[-0.20, -0.25, 0.03], [0.12, 0.25, 0.25]])
PEG_HALF_LENGTH_M = 0.12
BIN_FLOOR_M = 0.0025
BALL_RADIUS_M = 0.02
HOOK_M = 0.15
"""From the end of the hooked tool that is held to the near face of its hook."""
BESIDE_M = 0.044
"""Between the middles of two cubes that stand side by side."""


class Expert:
    """An expert that decides from the present state alone where its next waypoint lies; `speed` in 0..1.

    Raises:
        ValueError: the task has no expert, or its robot is moved otherwise than by increments of the end effector.
    """

    def __init__(self, benchmark: ManiSkillBenchmark, seed: int, speed: float) -> None:
        if benchmark.task not in EXPERTS:
            raise ValueError(f"{benchmark.task} has no scripted expert; those that have: {', '.join(EXPERTS)}")
        if benchmark.action_space != (WITHOUT_GRIPPER if benchmark.task in STICK_TASKS else END_EFFECTOR_DELTA):
            raise ValueError(
                f"{benchmark.task}: the expert needs the controller pd_ee_delta_pose; leave `controller` out"
            )
        self._benchmark = benchmark
        self._rules = benchmark.rules
        self._seed = seed
        self._speed = speed
        self._intentions = EXPERTS[benchmark.task](self)

    def decide(self) -> Intention:
        """The next action."""
        return next(self._intentions)

    def hand(self) -> Hand:
        """The hand that the experts of other files move."""
        return Hand(self._benchmark, self._speed)

    def push(self, direction: tuple[float, float], distance_m: float) -> Iterator[Intention]:
        """Go behind the cube, down, and through to `distance_m` beyond where it was."""
        along = np.array([*direction, 0.0])
        start = self._position(self._rules.moved_object)
        behind = start - (self._rules.cube_half_size_m + CLEARANCE_M) * along
        while np.linalg.norm(self._hand[:2] - behind[:2]) >= 0.02:
            yield self._towards(at_height(behind, ABOVE_Z_M), CLOSED, noise_scale=1.0)
        while abs(self._hand[2] - TABLE_Z_M) >= 0.012:
            yield self._towards(at_height(behind, TABLE_Z_M), CLOSED, noise_scale=1.0)
        while True:
            # The cube sticks to the fingers: what brings the hand back to the line brings the cube back too.
            covered = float((self._hand - start) @ along)
            aim = start + along * min(covered + PUSH_STEP_M, distance_m)
            yield self._towards(at_height(aim, TABLE_Z_M), CLOSED, noise_scale=0.3)

    def push_as_told(self) -> Iterator[Intention]:
        """Push in the direction of the instruction, up to a line: where to stop can be seen in a single image."""
        direction = self._rules.direction(self._seed)
        assert direction is not None
        start = self._position(self._rules.moved_object)
        return self.push(direction, distance_m=LINE_M - float(start @ np.array([*direction, 0.0])))

    def pick(self) -> Iterator[Intention]:
        """Grasp the cube and hold it at the goal."""
        yaw = yield from self._grasp("cube")
        while True:
            way = self._position("goal_site") - self._position("cube")
            noise_scale = 0.3 if np.linalg.norm(way) > 0.03 else 0.0
            yield self._towards(self._hand + way, CLOSED, yaw, noise_scale=noise_scale)

    def stack(self) -> Iterator[Intention]:
        """Grasp one cube, set it on the other, let go and rise."""
        yaw = yield from self._grasp("cubeA")
        while self._hand[2] <= 0.08:
            yield self._towards(at_height(self._hand, 0.13), CLOSED, yaw, noise_scale=0.3)
        while np.linalg.norm((self._position("cubeA") - self._position("cubeB"))[:2]) >= 0.008:
            yield self._towards(self._over("cubeB", height_m=0.09), CLOSED, yaw, noise_scale=0.3)
        while self._position("cubeA")[2] >= 0.064:
            yield self._towards(self._over("cubeB", height_m=0.038), CLOSED, yaw, noise_scale=0.0, speed=0.3)
        released = self._hand.copy()
        while self._benchmark.proprioception()[-2:].min() < 0.03:
            yield self._towards(released, OPEN, yaw, noise_scale=0.0)
        while True:
            yield self._towards(released + RISE_M, OPEN, yaw, noise_scale=0.0)

    def stack_two(self) -> Iterator[Intention]:
        """Set one cube beside another, turned alike, and a third one on both."""
        beside, yaw = self._free_side("cubeB", "cubeC")
        yield from self._grasp("cubeA")
        yield from self._put("cubeA", lambda: self._position("cubeB") + BESIDE_M * beside, yaw, drop_m=0.002)
        grasped = yield from self._grasp("cubeC")
        yield from self._put("cubeC", lambda: self._between("cubeA", "cubeB", 0.04), grasped, drop_m=0.003)
        while True:
            yield self._towards(at_height(self._hand, 0.2), OPEN, grasped, noise_scale=0.0)

    def drop_into_bin(self) -> Iterator[Intention]:
        """Grasp the ball, let go of it in the bin and rise."""
        yaw = yield from self._grasp("obj")
        rest = np.array([0.0, 0.0, BIN_FLOOR_M + BALL_RADIUS_M])
        yield from self._put("obj", lambda: self._position("bin") + rest, yaw, drop_m=0.002)
        while True:
            yield self._towards(at_height(self._hand, 0.12), OPEN, yaw, noise_scale=0.0)

    def poke(self) -> Iterator[Intention]:
        """Grasp the near end of the peg, point it at the cube, and push as far as needed."""
        held = np.array([-0.09, 0.0, 0.0])
        yield from self._grasp("peg", held, is_turned=False)
        goal = self._position("goal_region")
        while abs(self._position("cube")[1] - self._position("peg")[1]) > 0.004 or self._hand[2] < 0.03:
            way = self._position("cube") - self._position("peg")
            yield self._towards(at_height(self._hand + np.array([0.0, way[1], 0.0]), 0.035), CLOSED, noise_scale=0.0)
        while True:
            left = goal[0] - 0.035 - self._position("cube")[0]
            head = self._position("peg")[0] + PEG_HALF_LENGTH_M
            gap = max(self._position("cube")[0] - 0.02 - head, 0.0)
            aim = self._hand + np.array([max(left, 0.0) + gap, 0.0, 0.0])
            yield self._towards(at_height(aim, 0.03), CLOSED, noise_scale=0.0, speed=0.4)

    def pull_with_hook(self) -> Iterator[Intention]:
        """Grasp the tool, set its hook down behind the cube and pull until the cube is near."""
        yield from self._grasp("l_shape_tool", np.array([0.02, 0.0, 0.0]), is_turned=False)
        while self._hand[2] < 0.18:
            yield self._towards(at_height(self._hand, 0.22), CLOSED, noise_scale=0.0)
        while np.linalg.norm((way := self._to_hooked())[:2]) > 0.015:
            yield self._towards(at_height(self._hand + way, 0.20), CLOSED, noise_scale=0.0)
        while self._hand[2] > 0.035:
            yield self._towards(at_height(self._hand + self._to_hooked(), 0.025), CLOSED, noise_scale=0.0, speed=0.4)
        while True:
            left = min(-0.06 - self._position("cube")[0], 0.0)
            aim = at_height(self._hand + np.array([left, 0.0, 0.0]), 0.03)
            yield self._towards(aim, CLOSED, noise_scale=0.0, speed=0.4)

    def wander(self) -> Iterator[Intention]:
        """Move by chance, each movement as long as a kept frame; turn back where the space to move in ends."""
        random = np.random.default_rng([self._seed, 2])
        low, high = WANDER_BOX_M
        while True:
            step = random.uniform(-WANDER_STEP_M, WANDER_STEP_M, 3)
            ahead = self._hand + WANDER_REACH * step
            step = np.where((ahead < low) | (ahead > high), -step, step)
            for _ in range(WANDER_STEPS):
                yield Intention(np.array([*step, 0.0, 0.0, 0.0, CLOSED], np.float32), noise_scale=0.0)

    def _grasp(
        self, thing: str, offset: Float[np.ndarray, "3"] | None = None, *, is_turned: bool = True
    ) -> Generator[Intention, None, float]:
        """Grasp a cube, or a thing at an `offset` from its middle, from above; returns the yaw of the hand."""
        yaw = _grasp_yaw(self._benchmark.object_pose(thing)[3:]) if is_turned else 0.0
        place = self._position(thing) + (0.0 if offset is None else offset)
        while np.linalg.norm(self._hand[:2] - place[:2]) >= 0.012 or np.linalg.norm(self._turn(yaw)) >= 0.25:
            yield self._towards(at_height(place, ABOVE_Z_M), OPEN, yaw, noise_scale=1.0)
        while abs(self._hand[2] - TABLE_Z_M) >= 0.008:
            yield self._towards(at_height(place, TABLE_Z_M), OPEN, yaw, noise_scale=0.3)
        for _ in range(3):
            yield self._towards(at_height(place, TABLE_Z_M), CLOSED, yaw, noise_scale=0.0)
        return yaw

    def _put(
        self, thing: str, goal: Callable[[], Float[np.ndarray, "3"]], yaw: float, drop_m: float
    ) -> Iterator[Intention]:
        """Carry what is held to the goal, over everything, let go `drop_m` above it and rise."""
        while self._hand[2] <= 0.11:
            yield self._towards(at_height(self._hand, 0.15), CLOSED, yaw, noise_scale=0.0)
        while np.linalg.norm((way := goal() - self._position(thing))[:2]) >= 0.003 or (
            np.linalg.norm(self._turn(yaw)) >= 0.03
        ):
            yield self._towards(at_height(self._hand + way, 0.13), CLOSED, yaw, noise_scale=0.0)
        while self._position(thing)[2] - goal()[2] >= drop_m:
            way = goal() - self._position(thing)
            yield self._towards(self._hand + way, CLOSED, yaw, noise_scale=0.0, speed=0.25)
        released = self._hand.copy()
        while self._benchmark.proprioception()[-2:].min() < 0.03:
            yield self._towards(released, OPEN, yaw, noise_scale=0.0)
        while self._hand[2] < released[2] + 0.07:
            yield self._towards(released + RISE_M + [0.0, 0.0, 0.04], OPEN, yaw, noise_scale=0.0)

    def _free_side(self, cube: str, other: str) -> tuple[Float[np.ndarray, "3"], float]:
        """The side of a cube that is farthest from another one, and the yaw of a hand whose fingers are not there."""
        yaw = _grasp_yaw(self._benchmark.object_pose(cube)[3:])
        away = self._position(cube) - self._position(other)
        sides = [yaw + quarter * np.pi / 2 for quarter in range(4)]
        angle = max(sides, key=lambda side: float(away[:2] @ [np.cos(side), np.sin(side)]))
        return np.array([np.cos(angle), np.sin(angle), 0.0]), (angle + np.pi / 2) % np.pi - np.pi / 2

    def _between(self, one: str, other: str, higher_m: float) -> Float[np.ndarray, "3"]:
        return (self._position(one) + self._position(other)) / 2 + np.array([0.0, 0.0, higher_m])

    def _to_hooked(self) -> Float[np.ndarray, "3"]:
        """The tool's way to where its hook is behind the cube and its handle beside it."""
        cube = self._position("cube")
        return cube + np.array([0.02 + 0.02 - HOOK_M, -0.068, 0.0]) - self._position("l_shape_tool")

    def _towards(
        self,
        target: Float[np.ndarray, "3"],
        gripper: float,
        yaw: float = 0.0,
        *,
        noise_scale: float,
        speed: float | None = None,
    ) -> Intention:
        """One step towards a place of the hand, fingers down, turned by `yaw`."""
        step = limited(target - self._hand, STEP_LIMIT_M * (speed or self._speed))
        turn = limited(self._turn(yaw), TURN_LIMIT_RAD)
        return Intention(np.concatenate([step, turn, [gripper]]).astype(np.float32), noise_scale)

    def _over(self, cube: str, height_m: float) -> Float[np.ndarray, "3"]:
        """Where the hand must be so that the cube it holds is `height_m` above the middle of `cube`."""
        return self._position(cube) + np.array([0.0, 0.0, height_m]) - (self._position("cubeA") - self._hand)

    @property
    def _hand(self) -> Float[np.ndarray, "3"]:
        return self._benchmark.proprioception()[:3]

    def _turn(self, yaw: float) -> Float[np.ndarray, "3"]:
        """Rotation vector from the hand's present orientation to fingers down and `yaw`."""
        present = _rotation(self._benchmark.proprioception()[3:7])
        return (Rotation.from_rotvec([0, 0, yaw]) * Rotation.from_rotvec([np.pi, 0, 0]) * present.inv()).as_rotvec()

    def _position(self, thing: str) -> Float[np.ndarray, "3"]:
        return self._benchmark.object_pose(thing)[:3].astype(float)


EXPERTS: dict[str, Callable[[Expert], Iterator[Intention]]] = {
    "PushCube-v1": lambda expert: expert.push((1.0, 0.0), distance_m=0.13),
    "PullCube-v1": lambda expert: expert.push((-1.0, 0.0), distance_m=0.13),
    "PushCubeDirections": Expert.push_as_told,
    "PickCube-v1": Expert.pick,
    "StackCube-v1": Expert.stack,
    "RandomMotion": Expert.wander,
    "StackPyramid-v1": Expert.stack_two,
    "PlaceSphere-v1": Expert.drop_into_bin,
    "PokeCube-v1": Expert.poke,
    "PullCubeTool-v1": Expert.pull_with_hook,
    "PlugCharger-v1": lambda expert: plug_in(expert.hand()),
    "PegInsertionSide-v1": lambda expert: insert_peg(expert.hand()),
    "LiftPegUpright-v1": lambda expert: stand_upright(expert.hand()),
    "RollBall-v1": lambda expert: roll_ball(expert.hand()),
    "PushT-v1": lambda expert: push_t(expert.hand()),
}


class Noise:
    """Execution noise that is correlated in time; the labels stay clean, so that they correct what it does.

    Source: DART (Laskey et al., 2017), with noise in the end effector's position.
    """

    def __init__(self, size_m: float, random: np.random.Generator) -> None:
        self._size_m = size_m
        self._random = random
        self._present = np.zeros(3)

    def disturb(self, intention: Intention) -> Float32[np.ndarray, " dims"]:
        """The action that is carried out instead of the intended one."""
        self._present = 0.7 * self._present + self._random.normal(0.0, self._size_m, 3)
        action = intention.action.copy()
        action[:3] += intention.noise_scale * self._present
        bounds = np.array([END_EFFECTOR_DELTA.low, END_EFFECTOR_DELTA.high])[:, : len(action)]
        return np.clip(action, *bounds).astype(np.float32)


def _grasp_yaw(quaternion: Float[np.ndarray, "4"]) -> float:
    """The turn of the hand, at most 45 degrees, that aligns the fingers with a cube on the table."""
    angle = 2 * np.arctan2(quaternion[3], quaternion[0])
    return float((angle + np.pi / 4) % (np.pi / 2) - np.pi / 4)


def _rotation(quaternion_wxyz: Float[np.ndarray, "4"]) -> Rotation:
    return Rotation.from_quat(np.roll(quaternion_wxyz, -1))
