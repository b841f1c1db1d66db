"""LIBERO's five suites as a benchmark: its fixed initial states, its own judgement, the published protocol.

Source: Liu et al. 2023, arXiv 2306.03310, its code at github.com/Lifelong-Robot-Learning/LIBERO; the protocol that
policies are compared by is run_libero_eval.py of github.com/openvla/openvla (and openpi's examples/libero).
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

from core.policy import Observation
from core.spaces import ActionSpace
from eval.benchmark import StepResult, square, versions_of
from eval.libero_package import SUITES, load_task, make_environment, package_version, quietly, suite_and_number
from eval.simpler_assets import NOT_OFFICIAL

CAMERAS = {"agentview": "agentview", "eye_in_hand": "robot0_eye_in_hand"}
"""The simulator's names by those of its demonstrations (configs/data/libero.yaml)."""
MOST_M, MOST_RAD = 0.05, 0.5
"""What 1 means to robosuite's controller OSC_POSE (its controllers/config/osc_pose.json)."""
LIBERO_ACTIONS = ActionSpace(
    names=("x", "y", "z", "rx", "ry", "rz", "gripper"),
    units=("m", "m", "m", "rad", "rad", "rad", "open"),
    kind="delta_end_effector",
    low=(-MOST_M,) * 3 + (-MOST_RAD,) * 3 + (-1.0,),
    high=(MOST_M,) * 3 + (MOST_RAD,) * 3 + (1.0,),
)
"""The actions of LIBERO's demonstrations in metres and radians, as configs/data/libero.yaml converts them."""
NATIVE = 1 / np.array([MOST_M] * 3 + [MOST_RAD] * 3 + [-1.0])
"""To the simulator's own numbers, -1 to 1, whose gripper closes at 1."""
SETTLE_STEPS = 10
REST = np.array([0.0] * 6 + [-1.0])
"""The simulator's own numbers for staying where it is with an open gripper."""
SCENE_SEED = 0


class LiberoBenchmark:
    """One task of LIBERO; a `Benchmark` of eval/benchmark.py. Seeds are numbers of its initial states, 0 to 49.

    Before an episode begins things come to rest in 10 steps, in which the robot stays where it is. A state holds the
    robot and everything that can be moved, not where furniture stands: LIBERO draws that (within a centimetre) at each
    reset, and published code from wherever its generator has come to; here every episode draws it from seed 0.

    Success is what LIBERO says at each step, and the episode goes on to the published step limit; published code stops
    at the first success, so that its numbers compare with success at any time.

    Images are turned by 180 degrees, as demonstrations are on conversion: the simulator's are upside down. They are of
    the end of a control step, when they are asked for; published code sees 2 ms less of the step's 50.

    Proprioception, as in LIBERO's demonstrations: end-effector position (3, m, world), rotation vector (3, rad, of an
    angle up to 2 pi), positions of the two fingers (2, m).
    """

    action_space: ActionSpace = LIBERO_ACTIONS

    def __init__(
        self,
        task: str,
        cameras: Sequence[str] = tuple(CAMERAS),
        image_size: int = 224,
        render_size: int = 256,
    ) -> None:
        """Build the scene of a task (`libero_spatial-0`, see eval/libero_package.py).

        Images are rendered at `render_size` (the published 256; demonstrations have 128) and resized (Lanczos).

        Raises:
            ValueError: there is no such task or camera.
            LiberoError: LIBERO, or what it renders with, is not there.
        """
        self.task = task
        suite, _ = suite_and_number(task)
        if unknown := set(cameras) - set(CAMERAS):
            raise ValueError(
                f"LIBERO has the cameras {' and '.join(CAMERAS)}, not {sorted(unknown)}; name them so in the data that "
                "the policy is trained on"
            )
        self.cameras = tuple(cameras)
        self.max_steps = SUITES[suite].max_steps
        self._image_size, self._render_size = image_size, render_size
        self._task = load_task(task)
        self._environment = make_environment(self._task.definition)
        self._felt: dict[str, Any] = {}
        self._steps = 0

    @property
    def scene(self) -> Any:
        """The environment of robosuite with all that is true, for scripted experts; a policy never gets it."""
        return self._environment.env

    @property
    def control_hz(self) -> float:
        """Control steps a second."""
        return float(self.scene.control_freq)

    @property
    def facts(self) -> dict[str, Any]:
        """What else a score depends on; see eval/benchmark.py."""
        return {
            "simulator": versions_of("mujoco", "robosuite"),
            "shader": f"MuJoCo's OpenGL, {os.environ['MUJOCO_GL']}",
            "robot": self.scene.robots[0].name,
            "robot_meshes": "stock",
            "assets": f"{NOT_OFFICIAL} ({package_version()}, an unofficial repackaging of LIBERO's files)",
            "termination": "at the step limit, success or not",
            "image_size": self._image_size,
            "controller": "OSC_POSE, increments from where the hand is",
            "gripper": "opens above 0, closes below",
            "camera": f"{self._render_size} x {self._render_size}, turned by 180 degrees, resized (Lanczos)",
            "episodes": f"{len(self._task.initial_states)} fixed initial states, seed = their number",
            "settle_steps": f"{SETTLE_STEPS}, not counted, at rest with an open gripper",
            "furniture": f"drawn from seed {SCENE_SEED} in every episode",
        }

    def reset(self, seed: int) -> str:
        """Start from the initial state `seed`, 0 to 49, in a scene that is built anew; answers the instruction.

        Raises:
            ValueError: there is no such initial state.
        """
        known = len(self._task.initial_states)
        if not 0 <= seed < known:
            raise ValueError(
                f"there is no initial state {seed}: {self.task} has {known}, 0 to {known - 1}; ask for at most {known} "
                "episodes from first_seed 0 on"
            )
        with quietly():
            self.scene.seed(SCENE_SEED)
            self.scene.reset()
        self._felt = self._environment.set_init_state(self._task.initial_states[seed])
        for _ in range(SETTLE_STEPS):
            self._felt, *_ = self.scene.step(REST)
        self._steps = 0
        return self._task.instruction

    def initial_state(self) -> dict[str, list[float]]:
        """Where things lie in the world, those that the task is about first; furniture only where it is about it."""
        known = self.scene.obj_body_id
        names = [name for name in (*self.scene.obj_of_interest, *self.scene.objects_dict) if name in known]
        return {name: self.object_position(name).round(4).tolist() for name in names}

    def observe(self) -> Observation:
        """Camera images and proprioception of this instant."""
        return Observation(
            images={name: square(self._rendered(name), self._image_size) for name in self.cameras},
            proprioception=self.proprioception(),
        )

    def step(self, action: Float[np.ndarray, " dims"]) -> StepResult:
        """Take one action, in the units of `action_space`."""
        # What robosuite calls done is, in LIBERO, whether the task is solved at this instant.
        self._felt, _, is_solved, _ = self.scene.step(NATIVE * action)
        self._steps += 1
        return StepResult(success=bool(is_solved), is_over=self._steps >= self.max_steps)

    def picture(self) -> UInt8[np.ndarray, "height width 3"]:
        """What the camera before the table sees."""
        return self._rendered("agentview")

    def close(self) -> None:
        """Free the simulator."""
        self._environment.close()

    def proprioception(self) -> Float32[np.ndarray, "8"]:
        """What the robot feels; see the class."""
        from robosuite.utils.transform_utils import quat2axisangle

        turn = quat2axisangle(self._felt["robot0_eef_quat"].copy())
        return np.array([*self._felt["robot0_eef_pos"], *turn, *self._felt["robot0_gripper_qpos"]], np.float32)

    def object_position(self, name: str) -> Float[np.ndarray, "3"]:
        """Where a thing lies (m, world)."""
        return np.array(self.scene.sim.data.body_xpos[self.scene.obj_body_id[name]])

    def hand_pose(self) -> Float[np.ndarray, "7"]:
        """Position (m, world) and quaternion (xyzw) of the end effector."""
        return np.concatenate([self._felt["robot0_eef_pos"], self._felt["robot0_eef_quat"]])

    def _rendered(self, camera: str) -> UInt8[np.ndarray, "side side 3"]:
        seen = self.scene.sim.render(width=self._render_size, height=self._render_size, camera_name=CAMERAS[camera])
        return np.ascontiguousarray(seen[::-1, ::-1])
