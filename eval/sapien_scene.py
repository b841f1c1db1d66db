"""What is put into, aimed at and read from one scene of SAPIEN, the simulator under ManiSkill."""

from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

from eval.cameras import CameraPose, PlacedCamera
from eval.nuisances import DISTRACTOR_COLOUR, DISTRACTOR_HALF_SIZE_M


def add_camera(scene: Any, name: str, size: int) -> Any:
    """A camera with square pictures, to be aimed."""
    return scene.add_camera(name, width=size, height=size, fovy=1.0, near=0.01, far=100.0)


def aim(lens: Any, pose: CameraPose | PlacedCamera) -> None:
    """Put a camera somewhere."""
    lens.entity.set_pose(as_pose(pose.matrix))
    lens.set_fovy(pose.fov_rad)


def photograph(lens: Any) -> UInt8[np.ndarray, "height width 3"]:
    """What a camera sees, once the scene's `update_render` was called."""
    lens.take_picture()
    return np.ascontiguousarray(lens.get_picture("Color")[..., :3])


def lamps_of(scene: Any) -> list[Any]:
    """All directional and point lights."""
    kinds = ("RenderDirectionalLightComponent", "RenderPointLightComponent")
    return [part for thing in scene.entities for part in thing.components if type(part).__name__ in kinds]


def add_distractor(scene: Any) -> Any:
    """A thing that is seen and that nothing can touch."""
    import sapien

    material = sapien.render.RenderMaterial(base_color=[*DISTRACTOR_COLOUR, 1.0])
    body = sapien.render.RenderBodyComponent()
    body.attach(sapien.render.RenderShapeBox([DISTRACTOR_HALF_SIZE_M] * 3, material))
    box = sapien.Entity()
    box.add_component(body)
    scene.add_entity(box)
    return box


def move_to(thing: Any, position: Float[np.ndarray, "3"]) -> None:
    """Put a thing, unturned, at a position."""
    import sapien

    thing.set_pose(sapien.Pose(position.astype(np.float32)))


def as_pose(matrix: Float[np.ndarray, "4 4"]) -> Any:
    """SAPIEN's form of a pose."""
    import sapien

    return sapien.Pose(matrix.astype(np.float32))


def pose_of(thing: Any, scene_index: int = 0) -> Float32[np.ndarray, "7"]:
    """Position (m) and quaternion (wxyz) of one of ManiSkill's things, or of a place in the scene."""
    return getattr(thing, "pose", thing).raw_pose[scene_index].cpu().numpy().astype(np.float32)


def show_poses(environment: Any) -> None:
    """Let cameras see where the things of ManiSkill's scenes are now, which a GPU that simulates keeps to itself."""
    if environment.gpu_sim_enabled:
        environment.scene.px.sync_poses_gpu_to_cpu()
