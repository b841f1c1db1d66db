"""SIMPLER's four WidowX tasks as a benchmark: mani-skill's digital twins of the Bridge scenes, as published.

Source: Li et al. 2024, arXiv 2405.05941 (visual matching), its code at github.com/simpler-env/SimplerEnv, and
mani_skill/envs/tasks/digital_twins/bridge_dataset_eval, which it was moved into.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8
from scipy.spatial.transform import Rotation

from core.policy import Observation
from core.spaces import ActionSpace
from eval.benchmark import StepResult, square, versions_of
from eval.maniskill_options import AddedCamera
from eval.maniskill_registry import import_simulator, renderer_needed
from eval.sapien_scene import add_camera, aim, photograph
from eval.simpler_assets import require_assets

TASKS = (
    "StackGreenCubeOnYellowCubeBakedTexInScene-v1",
    "PutCarrotOnPlateInScene-v1",
    "PutSpoonOnTableClothInScene-v1",
    "PutEggplantInBasketScene-v1",
)
EPISODES = 24
"""Fixed initial states of each task; mani-skill's `episode_id` 0 to 23."""
CAMERA = "image_0"
"""The view over the robot's shoulder, by its name in BridgeData."""
CONTROLLER = "arm_pd_ee_target_delta_pose_align2_gripper_pd_joint_pos"
BRIDGE_ACTIONS = ActionSpace(
    names=("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
    units=("m", "m", "m", "rad", "rad", "rad", "open"),
    kind="delta_end_effector",
    rotation="roll_pitch_yaw",
    low=(-1.0,) * 3 + (-math.pi / 2,) * 3 + (-1.0,),
    high=(1.0,) * 3 + (math.pi / 2,) * 3 + (1.0,),
)
"""BridgeData's actions (configs/data/bridge.yaml), within the range that the simulated controller registers."""

ITS_CAMERA = "3rd_view_camera"
FINGER_RANGE_M = (0.015, 0.037)
FINGERS_DOWN = Rotation.from_matrix([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
"""The hand's orientation that BridgeData's states call zero.

Source: widowx_controller.py of github.com/rail-berkeley/bridge_data_robot.
"""


class SimplerBenchmark:
    """One WidowX task at the published protocol; a `Benchmark` of eval/benchmark.py. Seeds are `episode_id`s, 0 to 23.

    An action's roll, pitch and yaw turn the commanded pose about the base's x, y and z axes, in this order, as in
    BridgeData; mani-skill's controller takes the same turn as angles about x', y' and z'' (SIMPLER's first version took
    a rotation vector), so it is converted, exactly. A gripper command above 0 opens, any other closes, as in all
    published wrappers of policies. They have neither a sticky gripper for the WidowX nor another scale than 1.

    Success is what mani-skill says at each step, and the episode goes on to the official limit; published code stops at
    the first success, so that its numbers compare with success at any time.

    Proprioception, as BridgeData's state: end-effector position (3, m, base), roll, pitch and yaw against fingers down
    (3, rad), opening of the gripper (1, 0 closed to 1 open).
    """

    action_space: ActionSpace = BRIDGE_ACTIONS

    def __init__(
        self,
        task: str,
        cameras: Sequence[str] = (CAMERA,),
        image_size: int = 224,
        added_cameras: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Build the scene; `added_cameras` are further views by name, see eval/maniskill_options.py.

        Images are rendered at 640 x 480 and made square (Lanczos). Added cameras see the simulator's own table: there
        is a photograph for the official view only.

        Raises:
            ValueError: there is no such task or camera.
            AssetsError: SIMPLER's files are not there.
            RuntimeError: there is no device to render with.
        """
        if task not in TASKS:
            raise ValueError(f"unknown task {task!r}; SIMPLER's WidowX tasks are {', '.join(TASKS)}")
        self.task = task
        self.cameras = tuple(cameras)
        self._added = {name: AddedCamera.model_validate(camera) for name, camera in (added_cameras or {}).items()}
        if unknown := set(self.cameras) - {CAMERA, *self._added}:
            raise ValueError(
                f"SIMPLER has the camera {CAMERA}, not {sorted(unknown)}; name it so in the data that the policy is "
                "trained on, or say in added_cameras (eye, target, fov_rad) where the others stand"
            )
        self._image_size = image_size
        self._assets = require_assets()
        self._environment = _make_environment(task)
        self._lenses: dict[str, Any] = {}
        self._steps = 0

    @property
    def control_hz(self) -> float:
        """Control steps a second."""
        return float(self._environment.control_freq)

    @property
    def max_steps(self) -> int:
        """Control steps after which an episode is over."""
        from mani_skill.utils.registration import REGISTERED_ENVS

        return int(REGISTERED_ENVS[self.task].max_episode_steps)

    @property
    def facts(self) -> dict[str, Any]:
        """What else a score depends on; see eval/benchmark.py."""
        lens = self._environment.scene.sensors[ITS_CAMERA].config
        return {
            "simulator": versions_of("mani-skill", "sapien"),
            "shader": lens.shader_pack,
            "robot": self._environment.agent.uid,
            "robot_meshes": "stock",
            "assets": self._assets,
            "termination": "at the step limit, success or not",
            "image_size": self._image_size,
            "controller": CONTROLLER,
            "gripper": "opens above 0, closes otherwise",
            "camera": f"{CAMERA}, {lens.width} x {lens.height}, visual matching, made square",
            "added_cameras": {name: camera.model_dump() for name, camera in self._added.items()},
            "episodes": f"{EPISODES} fixed ones, seed = episode_id",
        }

    def reset(self, seed: int) -> str:
        """Start the fixed episode `seed`, 0 to 23, in a scene that is built anew; answers the instruction.

        Raises:
            ValueError: there is no such episode.
        """
        if not 0 <= seed < EPISODES:
            raise ValueError(
                f"there is no episode {seed}: SIMPLER has {EPISODES} fixed ones, 0 to {EPISODES - 1}; ask for at most "
                f"{EPISODES} from first_seed 0 on"
            )
        import torch

        options = {"episode_id": torch.tensor([seed]), "reconfigure": True}
        self._environment.reset(seed=seed, options=options)
        self._lenses = {name: self._add_camera(name) for name in self._added}
        self._steps = 0
        return str(self._environment.get_language_instruction()[0])

    def initial_state(self) -> dict[str, list[float]]:
        """Places of the thing to move and of where it belongs, in the base's frame."""
        return {name: self.object_pose(name)[:3].round(4).tolist() for name in ("source", "target")}

    def observe(self) -> Observation:
        """Camera images and proprioception of this instant."""
        images = {name: self._seen(name) for name in self.cameras}
        return Observation(images=images, proprioception=self.proprioception())

    def step(self, action: Float[np.ndarray, " dims"]) -> StepResult:
        """Take one action, in the units of `action_space`."""
        turn = Rotation.from_euler("xyz", action[3:6]).as_euler("XYZ")
        numbers = np.concatenate([action[:3], turn, [1.0 if action[6] > 0 else -1.0]])
        _, _, _, _, info = self._environment.step(numbers.astype(np.float32)[None])
        self._steps += 1
        return StepResult(success=bool(info["success"][0]), is_over=self._steps >= self.max_steps)

    def picture(self) -> UInt8[np.ndarray, "height width 3"]:
        """What the camera sees, 640 x 480: robot and things rendered, all else from the photograph."""
        seen = self._environment.rendered()["sensor_data"][ITS_CAMERA]["rgb"][0]
        return np.ascontiguousarray(seen.cpu().numpy().astype(np.uint8))

    def close(self) -> None:
        """Free the simulator."""
        self._lenses.clear()
        self._environment.close()

    def proprioception(self) -> Float32[np.ndarray, "7"]:
        """What the robot feels; see the class."""
        hand = self.hand_pose()
        angles = (rotation_of(hand) * FINGERS_DOWN.inv()).as_euler("xyz")
        fingers = float(self._environment.agent.robot.get_qpos()[0, -2:].mean())
        opening = np.interp(fingers, FINGER_RANGE_M, (0.0, 1.0))
        return np.array([*hand[:3], *angles, opening], np.float32)

    def hand_pose(self) -> Float[np.ndarray, "7"]:
        """Position (m) and quaternion (wxyz) of the end effector in the base's frame."""
        return self._in_base(self._environment.agent.robot.links_map["ee_gripper_link"])

    def object_pose(self, name: str) -> Float[np.ndarray, "7"]:
        """Pose of the `source` or the `target` in the base's frame, for scripted experts; a policy never gets it."""
        return self._in_base(self._environment.objs[getattr(self._environment, f"{name}_obj_name")])

    def object_size(self, name: str) -> Float[np.ndarray, "3"]:
        """Extent (m) of the `source` or the `target` along its own axes."""
        box = self._environment.model_db[getattr(self._environment, f"{name}_obj_name")]["bbox"]
        return np.subtract(box["max"], box["min"])

    def _in_base(self, thing: Any) -> Float[np.ndarray, "7"]:
        pose = self._environment.agent.robot.pose.inv() * thing.pose
        return pose.raw_pose[0].cpu().numpy().astype(np.float64)

    def _add_camera(self, name: str) -> Any:
        lens = add_camera(self._environment.scene.sub_scenes[0], name, self._image_size)
        aim(lens, self._added[name].pose)
        return lens

    def _seen(self, name: str) -> UInt8[np.ndarray, "side side 3"]:
        if name == CAMERA:
            return square(self.picture(), self._image_size)
        self._environment.scene.sub_scenes[0].update_render()
        return photograph(self._lenses[name])


def _make_environment(task: str) -> Any:
    """The scene of a task, which renders only when its `rendered()` is called.

    mani-skill keeps the photographs and the list of what stands before them in the class, where two tasks in one
    process would get each other's; here each scene has its own.

    Raises:
        RuntimeError: there is no device to render with.
    """
    import_simulator()
    import torch
    from mani_skill.utils.registration import REGISTERED_ENVS

    stock = REGISTERED_ENVS[task].cls
    changes = {
        "get_obs": lambda scene, *args, **kwargs: {},
        "rendered": lambda scene: stock.get_obs(scene, info={}, unflattened=True),
        "_rgb_overlay_images": {},
        "_objects_to_remove_from_greenscreen": [],
    }
    with renderer_needed():
        return type(stock.__name__, (stock,), changes)(
            obs_mode="rgb+segmentation",
            reward_mode="none",
            control_mode=CONTROLLER,
            sim_backend="physx_cpu",
            render_backend="gpu" if torch.cuda.is_available() else "cpu",
        )


def rotation_of(pose: Float[np.ndarray, "7"]) -> Rotation:
    """The orientation in a position and quaternion (wxyz)."""
    return Rotation.from_quat(np.roll(pose[3:], -1))
