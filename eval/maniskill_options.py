"""What can be chosen about a ManiSkill task beside its name: robot, controller, step limit, meshes, cameras."""

from typing import Literal

from pydantic import Field, field_validator

from core.config import Config
from eval.cameras import CameraJitter, CameraPose, is_own_view

PREFERRED_CONTROLLER = "pd_ee_delta_pose"


class AddedCamera(Config):
    """A camera that stands still, looks at a point, and has the world's z axis upright in its pictures."""

    eye: tuple[float, float, float]
    """Where it stands; metres, in the simulator's world."""
    target: tuple[float, float, float]
    """What it looks at."""
    fov_rad: float = Field(default=0.85, gt=0, lt=3.1)
    """Vertical field of view."""

    @property
    def pose(self) -> CameraPose:
        """Where it stands."""
        return CameraPose(eye=self.eye, target=self.target, fov_rad=self.fov_rad)


class ManiSkillOptions(Config):
    """Choices about a task; the defaults are those of the project's own episodes."""

    robot: str | None = None
    """ManiSkill's name of the robot; default: the task's."""
    controller: str | None = None
    """ManiSkill's name of the controller; default: pd_ee_delta_pose, or the robot's first where it has none."""
    max_steps: int | None = Field(default=None, gt=0)
    """Control steps after which an episode is over; default: the task's (eval/tasks.py), or as it is registered."""
    physics: Literal["physx_cpu", "physx_cuda"] = "physx_cpu"
    """Where contacts are computed; physx_cuda: on a CUDA GPU, for all of an evaluation's `scenes` at once."""
    robot_meshes: Literal["lighter", "stock"] = "lighter"
    """Lighter meshes of every Panda look the same and render three to four times as fast; other robots keep theirs."""
    added_cameras: dict[str, AddedCamera] = Field(default={})
    """More cameras, by a name of their own."""
    camera_jitter: CameraJitter = CameraJitter()
    """How far every camera is off its place, drawn once an episode by its seed."""

    @field_validator("added_cameras")
    @classmethod
    def _names_are_free(cls, cameras: dict[str, AddedCamera]) -> dict[str, AddedCamera]:
        taken = [name for name in cameras if is_own_view(name)]
        if taken:
            raise ValueError(f"added_cameras: {taken[0]!r} is the name of a camera that every task has; choose another")
        return cameras
