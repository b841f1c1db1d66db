"""ManiSkill's Panda tasks as a benchmark: actions in metres and radians, cameras anywhere, images on demand."""

import functools
import gc
import logging
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

from core.policy import Observation
from core.spaces import END_EFFECTOR_DELTA, ActionSpace
from eval.benchmark import StepResult
from eval.cameras import POLICY_CAMERA, CameraPose, RandomCameras, place_camera, view_name
from eval.nuisances import (
    DISTRACTOR_COLOUR,
    DISTRACTOR_HALF_SIZE_M,
    Nuisances,
    augmented_copy,
    distractor_position,
    overlaid,
)
from eval.robot_meshes import use_lighter_panda
from eval.tasks import Task, find_task, is_pushed

PICTURE = CameraPose(eye=(0.6, 0.7, 0.6), target=(0.0, 0.0, 0.25), fov_rad=0.9)
PICTURE_SIZE = 256
NO_RENDERER = (
    "the simulator finds no device to render with; run scripts/setup.sh, which installs Mesa's software renderer "
    "(packages libvulkan1 and mesa-vulkan-drivers, version 25 or newer) where there is no graphics card"
)


class ManiSkillBenchmark:
    """One ManiSkill task, judged by its own rule or by the direction it was told; a `Benchmark` of eval/benchmark.py.

    Proprioception: end-effector position (3, m, world), quaternion (4, wxyz), openings of both fingers (2, m).
    """

    action_space: ActionSpace = END_EFFECTOR_DELTA

    def __init__(
        self,
        task: str,
        cameras: Sequence[str] = (POLICY_CAMERA,),
        image_size: int = 112,
        random_cameras: RandomCameras | None = None,
        nuisances: Nuisances | None = None,
    ) -> None:
        self.task = task
        self.cameras = tuple(cameras)
        self._rules = find_task(task)
        self._ranges = random_cameras or RandomCameras()
        self.nuisances = nuisances or Nuisances()
        for camera in self.cameras:
            view_name(camera)
        self._image_size = image_size
        self._environment = _make_environment(self._rules)
        self._is_fresh = True
        self._lenses: dict[str, Any] = {}
        self._picture_lens: Any = None
        self._furnish()
        self._seed = 0
        self._steps = 0
        self._start = np.zeros(2, np.float32)

    @property
    def control_hz(self) -> float:
        """Control steps a second."""
        return float(self._environment.control_freq)

    @property
    def max_steps(self) -> int:
        """Control steps after which an episode is over."""
        return self._rules.max_steps

    def reset(self, seed: int) -> str:
        """Start the episode that `seed` names; answers the instruction.

        The scene is built anew when anything happened in it: PhysX resolves contacts in an order that depends on all
        that happened before, so that the same actions could otherwise end differently.
        """
        self._environment.reset(seed=seed, options={"reconfigure": not self._is_fresh})
        if not self._is_fresh:
            self._is_fresh = True
            self._furnish()
        self._seed, self._steps = seed, 0
        if self._rules.directions:
            self._start = self.object_pose(self._rules.moved_object)[:2]
        return self._rules.instruction(seed)

    def observe(self) -> Observation:
        """Camera images and proprioception of this instant."""
        return Observation(images=self.render(), proprioception=self.proprioception())

    def step(self, action: Float[np.ndarray, " dims"]) -> StepResult:
        """Take one action, in the units of `action_space`; what exceeds the robot's limits is clipped."""
        self._is_fresh = False
        _, _, _, _, info = self._environment.step(self._normalised(action))
        self._steps += 1
        return StepResult(success=self._is_success(info), is_over=self._steps >= self.max_steps)

    def picture(self) -> UInt8[np.ndarray, "height width 3"]:
        """An RGB picture for people, of the whole robot."""
        if self._picture_lens is None:
            self._picture_lens = self._add_camera("picture", PICTURE_SIZE)
        _aim(self._picture_lens, PICTURE)
        self._scene.update_render()
        return _photograph(self._picture_lens)

    def close(self) -> None:
        """Free the simulator."""
        self._lenses.clear()
        self._picture_lens = None
        self._environment.close()

    def render(self, cameras: Sequence[str] | None = None) -> dict[str, UInt8[np.ndarray, "height width 3"]]:
        """What cameras (default: all) see at this instant."""
        wanted = self.cameras if cameras is None else cameras
        for camera in wanted:
            _aim(self._lenses[camera], self.camera_pose(camera))
        self._disturb_scene()
        self._scene.update_render()
        return {camera: self._picture_of(camera) for camera in wanted}

    def camera_pose(self, camera: str) -> CameraPose:
        """Where a camera stands at this instant."""
        pose = place_camera(camera, self._seed, self._steps / self.control_hz, self._ranges)
        number = view_name(camera).number
        return self.nuisances.shaken(pose, number, self._seed, self._steps) if number else pose

    def proprioception(self) -> Float32[np.ndarray, "9"]:
        """What the robot feels; see the class."""
        fingers = self._environment.agent.robot.get_qpos()[0, -2:].cpu().numpy()
        return np.concatenate([_pose(self._environment.agent.tcp), fingers]).astype(np.float32)

    def object_pose(self, name: str) -> Float32[np.ndarray, "7"]:
        """Position (m) and quaternion (wxyz) of a thing of the scene, for scripted experts; a policy never gets it."""
        return _pose(getattr(self._environment, name))

    def get_state(self) -> Float32[np.ndarray, " numbers"]:
        """All positions and velocities of the simulator at this instant."""
        return self._environment.get_state()[0].cpu().numpy().astype(np.float32)

    def set_state(self, state: Float32[np.ndarray, " numbers"], seed: int, step: int) -> None:
        """Go to an instant of any episode of the task, to look at it from where its cameras stood at that `step`."""
        import torch

        self._is_fresh = False
        self._environment.set_state(torch.from_numpy(state)[None])
        self._seed, self._steps = seed, step

    def _normalised(self, action: Float[np.ndarray, " dims"]) -> Float32[np.ndarray, "1 dims"]:
        """ManiSkill's numbers for an action: its controller scales rotations by their *lower* limit, a sign flip."""
        limits = self._environment.agent.controller.controllers["arm"].config
        scale = np.array([*[limits.pos_upper] * 3, *[limits.rot_lower] * 3, 1.0])
        return np.clip(action / scale, -1.0, 1.0).astype(np.float32)[None]

    def _is_success(self, info: dict[str, Any]) -> bool:
        if self._rules.is_free:
            return self._steps >= self.max_steps
        direction = self._rules.direction(self._seed)
        if direction is None:
            return bool(info["success"][0])
        return is_pushed(self.object_pose(self._rules.moved_object)[:2] - self._start, direction)

    def _picture_of(self, camera: str) -> UInt8[np.ndarray, "height width 3"]:
        picture = _photograph(self._lenses[camera])
        kind, number = view_name(camera)
        if self.nuisances.overlay and number:
            picture = overlaid(picture, number, self._seed, self._steps)
        return augmented_copy(picture, number, self._seed) if kind == "copy" else picture

    def _disturb_scene(self) -> None:
        """Put lamps and distractor as they are at this instant."""
        if self._distractor is not None:
            self._distractor.set_pose(_pose_at(distractor_position(self._seed, self._steps)))
        if self.nuisances.light:
            factor = self.nuisances.brightness(self._seed, self._steps)
            self._scene.set_ambient_light(factor * self._ambient)
            for lamp, colour in self._lamps:
                lamp.set_color(factor * colour)

    def _furnish(self) -> None:
        """Put cameras and distractor into a newly built scene and hide what no camera shall see."""
        self._scene = self._environment.scene.sub_scenes[0]
        self._lenses = {camera: self._add_camera(camera, self._image_size) for camera in self.cameras}
        self._picture_lens = None
        for name in self._rules.hidden:
            getattr(self._environment, name).hide_visual()
        self._ambient = np.array(self._scene.ambient_light)
        self._lamps = [(lamp, np.array(lamp.color)) for lamp in _lamps_of(self._scene)]
        self._distractor = _add_box(self._scene) if self.nuisances.distractor else None

    def _add_camera(self, name: str, size: int) -> Any:
        return self._scene.add_camera(name, width=size, height=size, fovy=1.0, near=0.01, far=100.0)


def _make_environment(task: Task) -> Any:
    """The scene of a task with the light Panda, without ManiSkill's own images.

    Raises:
        RuntimeError: there is no device to render with.
    """
    _import_simulator()
    import torch
    from mani_skill.render import PREBUILT_SHADER_CONFIGS, set_shader_pack
    from mani_skill.utils.registration import REGISTERED_ENVS

    use_lighter_panda()
    stock = REGISTERED_ENVS[task.environment].cls
    scene = type(stock.__name__, (stock,), {"cube_half_size": task.cube_half_size_m})
    try:
        environment = scene(
            obs_mode="none",
            reward_mode="none",
            control_mode="pd_ee_delta_pose",
            robot_uids="panda",
            sim_backend="physx_cpu",
            render_backend="gpu" if torch.cuda.is_available() else "cpu",
        )
    except RuntimeError as error:
        raise RuntimeError(f"{NO_RENDERER} (the simulator said: {error})") from error
    set_shader_pack(PREBUILT_SHADER_CONFIGS["minimal"])
    return environment


@functools.cache
def _import_simulator() -> None:
    """Import ManiSkill, once and quietly."""
    os.environ.setdefault("MS_RENDERER_LOG_LEVEL", "error")
    warnings.filterwarnings("ignore", module=r"(mani_skill|gymnasium|sapien|toppra).*")
    import mani_skill.envs

    mani_skill.logger.setLevel(logging.ERROR)
    # ManiSkill collects garbage whenever it builds a scene: 0.35 s to walk through all that imports alone have left
    # behind, 0.02 s without.
    gc.freeze()


def _aim(lens: Any, pose: CameraPose) -> None:
    import sapien

    matrix = np.eye(4, dtype=np.float32)
    matrix[:3, :3], matrix[:3, 3] = pose.axes.T, pose.eye
    lens.entity.set_pose(sapien.Pose(matrix))
    lens.set_fovy(pose.fov_rad)


def _lamps_of(scene: Any) -> list[Any]:
    kinds = ("RenderDirectionalLightComponent", "RenderPointLightComponent")
    return [part for thing in scene.entities for part in thing.components if type(part).__name__ in kinds]


def _add_box(scene: Any) -> Any:
    """A thing that is seen and that nothing can touch."""
    import sapien

    material = sapien.render.RenderMaterial(base_color=[*DISTRACTOR_COLOUR, 1.0])
    body = sapien.render.RenderBodyComponent()
    body.attach(sapien.render.RenderShapeBox([DISTRACTOR_HALF_SIZE_M] * 3, material))
    box = sapien.Entity()
    box.add_component(body)
    scene.add_entity(box)
    return box


def _pose_at(position: Float[np.ndarray, "3"]) -> Any:
    import sapien

    return sapien.Pose(position.astype(np.float32))


def _photograph(lens: Any) -> UInt8[np.ndarray, "height width 3"]:
    lens.take_picture()
    return np.ascontiguousarray(lens.get_picture("Color")[..., :3])


def _pose(thing: Any) -> Float32[np.ndarray, "7"]:
    return thing.pose.raw_pose[0].cpu().numpy().astype(np.float32)
