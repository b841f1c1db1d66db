"""Episodes one after the other in one environment, as such a loop is usually written; it uses nothing of the runner."""

import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from core.policy import Observation, Policy
from eval.cameras import RandomCameras, place_camera
from eval.controllers import describe_controller
from eval.maniskill_registry import SHADER, import_simulator
from eval.robot_meshes import LIGHTER, use_panda_meshes
from eval.speed.sizes import Actor, Sizes
from eval.tasks import find_task

TASK, CAMERA = "PushCube-v1", "base_camera"
"""A scene that this project changes nothing of, and its camera; it is moved to where the policy's stands."""


def plain_loop(sizes: Sizes, actor: Actor, seeds: Iterable[int], shows_each_step: bool) -> list[float]:
    """When each episode had ended, by `time.perf_counter`.

    Pictures are taken when the policy is asked or, with `shows_each_step`, as part of what each step answers.

    Raises:
        ValueError: the policy sees more than one camera.
    """
    policy = actor.load()
    environment = _environment(sizes, policy, "rgb" if shows_each_step else "none")
    inner, ends = environment.unwrapped, []
    native = describe_controller(inner.agent.controller, inner.agent.uid).native
    for seed in seeds:
        seen, _ = environment.reset(seed=seed)
        policy.reset(find_task(TASK).instruction(seed), seed)
        truncated = False
        while not truncated:
            picture = seen["sensor_data"][CAMERA]["rgb"] if shows_each_step else _picture(inner)
            images = {policy.cameras[0]: picture[0].numpy()}
            chunk = policy.act(Observation(images=images, proprioception=_proprioception(inner.agent)))
            for action in chunk.actions[: sizes.execute_steps]:
                seen, _, _, truncated, _ = environment.step(native(action))
                if truncated:
                    break
        ends.append(time.perf_counter())
    environment.close()
    return ends


def _environment(sizes: Sizes, policy: Policy, observations: str) -> Any:
    import_simulator()
    import gymnasium
    import sapien
    import torch

    if len(policy.cameras) != 1:
        raise ValueError(f"{TASK} has one camera, the policy sees {list(policy.cameras)}; measure one that sees one")
    use_panda_meshes(LIGHTER)
    pose, side = place_camera(policy.cameras[0], 0, 0.0, RandomCameras()), getattr(policy, "image_size", None)
    camera = {"width": side or sizes.image_size, "height": side or sizes.image_size, "fov": pose.fov_rad}
    placed = {"pose": sapien.Pose(pose.matrix.astype(np.float32)), "shader_pack": SHADER}
    return gymnasium.make(
        TASK,
        obs_mode=observations,
        reward_mode="none",
        control_mode="pd_ee_delta_pose",
        max_episode_steps=sizes.step_limit,
        sensor_configs={CAMERA: camera | placed},
        sim_backend="physx_cpu",
        render_backend="gpu" if torch.cuda.is_available() else "cpu",
    )


def _picture(environment: Any) -> Any:
    """What the camera sees now; of a batch of one."""
    environment.scene.update_render(update_sensors=True, update_human_render_cameras=False)
    environment.capture_sensor_data()
    kinds = {"depth": False, "position": False, "segmentation": False}
    return environment.scene.sensors[CAMERA].get_obs(rgb=True, **kinds)["rgb"]


def _proprioception(robot: Any) -> np.ndarray:
    """Pose of the end effector and openings of both fingers."""
    return np.concatenate([robot.tcp.pose.raw_pose[0].numpy(), robot.robot.get_qpos()[0, -2:].numpy()])
