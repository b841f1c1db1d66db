"""ManiSkill's tasks as a benchmark: actions in metres and radians, cameras anywhere, images on demand."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

from core.config import load_config
from core.policy import Observation
from core.spaces import ActionSpace
from eval.benchmark import StepResult, versions_of
from eval.cameras import (
    POLICY_CAMERA,
    CameraPose,
    PlacedCamera,
    RandomCameras,
    ViewName,
    is_own_view,
    place_camera,
    view_name,
)
from eval.controllers import ControllerError, describe_controller
from eval.maniskill_options import ManiSkillOptions
from eval.maniskill_registry import SHADER, make_environment, registered_task, set_shader, specification
from eval.nuisances import Nuisances, augmented_copy, distractor_position, overlaid
from eval.robot_meshes import PANDAS
from eval.sapien_scene import add_camera, add_distractor, as_pose, lamps_of, move_to, pose_of, show_poses
from eval.sapien_scene import aim as _aim
from eval.sapien_scene import photograph as _photograph
from eval.tasks import TASKS, is_pushed

GOALS = ("goal_region", "goal_site")
"""What ManiSkill calls the place that a thing shall go to."""
PICTURE = CameraPose(eye=(0.6, 0.7, 0.6), target=(0.0, 0.0, 0.25), fov_rad=0.9)
PICTURE_SIZE = 256


class ManiSkillBenchmark:
    """One ManiSkill task, judged by its own rule or by the direction it was told; a `Benchmark` of eval/benchmark.py.

    `cameras` are this project's views (eval/cameras.py), the simulator's own by name (such as base_camera or
    hand_camera), or added ones; `options` are those of eval/maniskill_options.py. Of several `scenes` in one simulator
    this is the first; eval/maniskill_scenes.py resets and steps them together.

    Proprioception: end-effector position (3, m, world), quaternion (4, wxyz) and positions of the gripper's joints (of
    a Panda: the openings of both fingers, m); of a robot without an end effector the positions of all joints.

    Raises:
        ValueError: there is no such task, robot, controller, camera or option.
        FileNotFoundError: the task or the robot needs files that must be downloaded first.
        RuntimeError: there is no device to render with.
    """

    def __init__(
        self,
        task: str,
        cameras: Sequence[str] = (POLICY_CAMERA,),
        image_size: int = 112,
        random_cameras: RandomCameras | Mapping[str, Any] | None = None,
        nuisances: Nuisances | Mapping[str, Any] | None = None,
        scenes: int = 1,
        **options: Any,
    ) -> None:
        self.options = load_config(ManiSkillOptions, None, options, "benchmark_options")
        self.task = task
        self.cameras = tuple(cameras)
        self.rules = registered_task(task)
        self._ranges = RandomCameras.model_validate(random_cameras or {})
        self.nuisances = Nuisances.model_validate(nuisances or {})
        self._image_size = image_size
        own_size = None if self._are_ours(cameras) else image_size
        self._environment = make_environment(self.rules, self.options, own_size, scenes)
        self._scene_index = 0
        self._is_fresh = True
        self._built_for: int | None = None
        self._lenses: dict[str, Any] = {}
        self._picture_lens: Any = None
        try:
            self._describe()
            self.furnish()
        except ValueError:
            self.close()
            raise
        self._seed = 0
        self._steps = 0
        self._start = np.zeros(2, np.float32)

    @property
    def action_space(self) -> ActionSpace:
        """Meaning of the actions that `step` takes: what the robot's controller can do."""
        return self._control.space

    @property
    def control_hz(self) -> float:
        """Control steps a second."""
        return float(self._environment.control_freq)

    @property
    def max_steps(self) -> int:
        """Control steps after which an episode is over."""
        return self.options.max_steps or self.rules.max_steps

    @property
    def facts(self) -> dict[str, Any]:
        """What else a score depends on; see eval/benchmark.py."""
        robot = self._environment.agent.uid
        registered = specification(self.rules).max_episode_steps
        changes = {
            "held_still": list(self._control.held),
            "camera_jitter": self.options.camera_jitter.model_dump(mode="json", exclude_defaults=True),
            "added_cameras": self.options.model_dump(mode="json")["added_cameras"],
            "random_cameras": self._ranges.model_dump(mode="json", exclude_defaults=True),
            "nuisances": self.nuisances.model_dump(mode="json", exclude_defaults=True),
        }
        return {
            "simulator": versions_of("mani-skill", "sapien"),
            "physics": self._environment.backend.sim_backend,
            "environment": self.rules.environment,
            "shader": SHADER,
            "robot": robot,
            "controller": self._environment.agent.control_mode,
            "robot_meshes": self.options.robot_meshes if robot in PANDAS else "stock",
            "assets": "official",
            "termination": f"after {self.max_steps} control steps (registered: {registered}), not at a first success",
            "image_size": self._image_size,
            "instruction": "derived from the task's name" if self.rules.is_derived else "eval/tasks.py",
            **{name: value for name, value in changes.items() if value},
        }

    def reset(self, seed: int) -> str:
        """Start the episode that `seed` names; answers the instruction.

        The scene is built anew when anything happened in it: PhysX resolves contacts in an order that depends on all
        that happened before, so that the same actions could otherwise end differently. Scenes that are not known to
        look the same for every seed are built for theirs.
        """
        is_any_seeds = self.task in TASKS or self._built_for == seed
        _, info = self._environment.reset(seed=seed, options={"reconfigure": not (self._is_fresh and is_any_seeds)})
        if info["reconfigure"]:  # some tasks build their scene at every reset
            self._is_fresh, self._built_for = True, seed
            self.furnish()
        show_poses(self._environment)
        return self.begin(seed)

    def initial_state(self) -> dict[str, list[float]]:
        """Places of what the task is about and of its goal, where the scene has them."""
        names = [name for name in (self.rules.moved_object, *GOALS) if hasattr(self._environment, name)]
        return {name: self.object_pose(name)[:3].round(4).tolist() for name in names}

    def observe(self) -> Observation:
        """Camera images and proprioception of this instant."""
        return Observation(images=self.render(), proprioception=self.proprioception())

    def step(self, action: Float[np.ndarray, " dims"]) -> StepResult:
        """Take one action, in the units of `action_space`; what exceeds the robot's limits is clipped."""
        self._is_fresh = False
        _, _, _, _, info = self._environment.step(self.native(action)[None])
        show_poses(self._environment)
        return self.judge(info)

    def picture(self) -> UInt8[np.ndarray, "height width 3"]:
        """An RGB picture for people, of the whole robot."""
        if self._picture_lens is None:
            self._picture_lens = add_camera(self._scene, "picture", PICTURE_SIZE)
        _aim(self._picture_lens, PICTURE)
        self._scene.update_render()
        return _photograph(self._picture_lens)

    def close(self) -> None:
        """Free the simulator."""
        self._lenses.clear()
        self._picture_lens = None
        self._environment.close()

    @property
    def environment(self) -> Any:
        """ManiSkill's own, of all scenes."""
        return self._environment

    def beside(self, index: int) -> "ManiSkillBenchmark":
        """The same task in another scene of the same simulator."""
        other = copy.copy(self)
        other._scene_index = index
        other.furnish()
        return other

    def furnish(self) -> None:
        """Put cameras and distractor into a newly built scene and hide what no camera shall see."""
        set_shader()
        self._scene = self._environment.scene.sub_scenes[self._scene_index]
        self._lenses = {camera: self._lens_of(camera) for camera in self.cameras}
        self._own_local = {
            camera: lens.get_local_pose().to_transformation_matrix()
            for camera, lens in self._lenses.items()
            if not self._are_ours([camera])
        }
        self._picture_lens = None
        for name in self.rules.hidden:
            getattr(self._environment, name).hide_visual()
        self._ambient = np.array(self._scene.ambient_light)
        self._lamps = [(lamp, np.array(lamp.color)) for lamp in lamps_of(self._scene)]
        self._distractor = add_distractor(self._scene) if self.nuisances.distractor else None

    def begin(self, seed: int) -> str:
        """Look at the episode that has been started in the scene; answers the instruction."""
        self._seed, self._steps = seed, 0
        if self.rules.directions:
            self._start = self.object_pose(self.rules.moved_object)[:2]
        return self.rules.instruction(seed)

    def native(self, action: Float[np.ndarray, " dims"]) -> Float32[np.ndarray, " numbers"]:
        """The controller's numbers for an action."""
        return self._control.native(action)

    def judge(self, info: Mapping[str, Any]) -> StepResult:
        """What a control step that has been taken led to in the scene, by what ManiSkill says of all of them."""
        self._steps += 1
        return StepResult(success=self._is_success(info), is_over=self._steps >= self.max_steps)

    def render(self, cameras: Sequence[str] | None = None) -> dict[str, UInt8[np.ndarray, "height width 3"]]:
        """What cameras (default: all) see at this instant."""
        wanted = self.cameras if cameras is None else cameras
        if not wanted:
            return {}
        for camera in wanted:
            self._place(camera)
        self._disturb_scene()
        self._scene.update_render()
        return {camera: self._picture_of(camera) for camera in wanted}

    def camera_pose(self, camera: str) -> CameraPose | PlacedCamera:
        """Where a camera stands at this instant."""
        if camera in self._own_local:
            self._place(camera)
            lens = self._lenses[camera]
            return PlacedCamera(matrix=lens.get_global_pose().to_transformation_matrix(), fov_rad=lens.fovy)
        pose = self._planned_pose(camera)
        if not self._is_jittered:
            return pose
        return PlacedCamera(matrix=pose.matrix @ self._jitter(camera), fov_rad=pose.fov_rad)

    def proprioception(self) -> Float32[np.ndarray, " numbers"]:
        """What the robot feels; see the class."""
        joints = self._environment.agent.robot.get_qpos()[self._scene_index].cpu().numpy()
        hand = getattr(self._environment.agent, "tcp", None)
        felt = joints if hand is None else np.concatenate([self._pose(hand), joints[self._gripper_joints]])
        return felt.astype(np.float32)

    def object_pose(self, name: str) -> Float32[np.ndarray, "7"]:
        """Position (m) and quaternion (wxyz) of a thing of the scene, for scripted experts; a policy never gets it."""
        return self._pose(getattr(self._environment, name))

    def robot_base_pose(self) -> Float32[np.ndarray, "7"]:
        """Position (m) and quaternion (wxyz) of the frame that the end effector's increments are in."""
        return self._pose(self._environment.agent.robot)

    def get_state(self) -> Float32[np.ndarray, " numbers"]:
        """All positions and velocities of the simulator at this instant."""
        return self._environment.get_state()[self._scene_index].cpu().numpy().astype(np.float32)

    def set_state(self, state: Float32[np.ndarray, " numbers"], seed: int, step: int) -> None:
        """Go to an instant of any episode of the task, to look at it from where its cameras stood at that `step`."""
        import torch

        self._is_fresh = False
        device = self._environment.device
        scene = torch.tensor([self._scene_index], device=device)
        self._environment.set_state(torch.from_numpy(state)[None].to(device), scene)
        show_poses(self._environment)
        self._seed, self._steps = seed, step

    def _are_ours(self, cameras: Sequence[str]) -> bool:
        return all(is_own_view(camera) or camera in self.options.added_cameras for camera in cameras)

    @property
    def _is_jittered(self) -> bool:
        return bool(self.options.camera_jitter.model_dump(exclude_defaults=True))

    def _jitter(self, camera: str) -> Float[np.ndarray, "4 4"]:
        return self.options.camera_jitter.off_place(self._seed, camera)

    def _planned_pose(self, camera: str) -> CameraPose:
        if camera in self.options.added_cameras:
            return self.options.added_cameras[camera].pose
        pose = place_camera(camera, self._seed, self._steps / self.control_hz, self._ranges)
        number = view_name(camera).number
        return self.nuisances.shaken(pose, number, self._seed, self._steps) if number else pose

    def _place(self, camera: str) -> None:
        """Put a camera where it stands at this instant; the simulator's own move with what they are fixed to."""
        if camera not in self._own_local:
            _aim(self._lenses[camera], self.camera_pose(camera))
        elif self._is_jittered:
            self._lenses[camera].set_local_pose(as_pose(self._own_local[camera] @ self._jitter(camera)))

    def _describe(self) -> None:
        """Learn from the simulator what its robot takes and feels."""
        agent = self._environment.agent
        try:
            self._control = describe_controller(agent.controller, agent.uid)
        except ControllerError as error:
            others = ", ".join(name for name in agent.supported_control_modes if name != agent.control_mode)
            raise ValueError(
                f"controller: {agent.control_mode!r} of {agent.uid} cannot be used: {error}; it also offers {others}"
            ) from None
        if not self.rules.directions and not self.rules.is_free and "success" not in self._environment.get_info():
            raise ValueError(f"{self.task} has no success that could be judged, only a reward")
        gripper = getattr(agent.controller, "controllers", {}).get("gripper")
        self._gripper_joints = [] if gripper is None else gripper.active_joint_indices.cpu().numpy()

    def _pose(self, thing: Any) -> Float32[np.ndarray, "7"]:
        return pose_of(thing, self._scene_index)

    def _is_success(self, info: Mapping[str, Any]) -> bool:
        if self.rules.is_free:
            return self._steps >= self.max_steps
        direction = self.rules.direction(self._seed)
        if direction is None:
            return bool(info["success"][self._scene_index])
        return is_pushed(self.object_pose(self.rules.moved_object)[:2] - self._start, direction)

    def _picture_of(self, camera: str) -> UInt8[np.ndarray, "height width 3"]:
        picture = _photograph(self._lenses[camera])
        kind, number = view_name(camera) if is_own_view(camera) else ViewName(camera, 0)
        if self.nuisances.overlay and number:
            picture = overlaid(picture, number, self._seed, self._steps)
        return augmented_copy(picture, number, self._seed) if kind == "copy" else picture

    def _disturb_scene(self) -> None:
        """Put lamps and distractor as they are at this instant."""
        if self._distractor is not None:
            move_to(self._distractor, distractor_position(self._seed, self._steps))
        if self.nuisances.light:
            factor = self.nuisances.brightness(self._seed, self._steps)
            self._scene.set_ambient_light(factor * self._ambient)
            for lamp, colour in self._lamps:
                lamp.set_color(factor * colour)

    def _lens_of(self, camera: str) -> Any:
        if self._are_ours([camera]):
            return add_camera(self._scene, camera, self._image_size)
        own = self._environment._sensors | self._environment._human_render_cameras
        if camera not in own:
            try:
                view_name(camera)
            except ValueError as error:
                raise ValueError(
                    f"{error}; {self.task} itself has {', '.join(own)}, and added_cameras takes more"
                ) from None
        return own[camera].camera._render_cameras[self._scene_index]
