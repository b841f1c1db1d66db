"""What a collection of simulated episodes consists of: settings, and the plan that follows from them."""

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from core.config import Config
from core.spaces import END_EFFECTOR_DELTA
from core.store import StoreInfo
from core.store_layout import ColumnInfo
from eval.cameras import POLICY_CAMERA, RandomCameras, view_name
from eval.demonstrations import OBJECT_POSE, SEEDS_BETWEEN_ATTEMPTS, ExpertSettings
from eval.nuisances import Nuisances
from eval.tasks import find_task

CONTROL_HZ = 20.0
PROPRIOCEPTION_DIMS = 9


class Group(Config):
    """Episodes of one task that are seen and labelled alike."""

    task: str
    """Name in eval/tasks.py."""
    episodes: int = Field(gt=0)
    """How many successful ones to keep."""
    views: tuple[str, ...] = ("front",)
    """Cameras: front, random_1, random_2, ...; copy_1 is an augmented copy of random_1, late_1 half a frame late."""
    labelled: bool = True
    """False: the actions are kept for audits only."""

    @field_validator("task")
    @classmethod
    def _is_known(cls, task: str) -> str:
        find_task(task)
        return task

    @field_validator("views")
    @classmethod
    def _are_views(cls, views: tuple[str, ...]) -> tuple[str, ...]:
        for view in views:
            view_name(view)
        if not views or len(set(views)) < len(views):
            raise ValueError(f"views is {list(views)}; name at least one camera, and each only once")
        return views


class CollectionSettings(Config):
    """Which episodes to collect, and how."""

    out: Path = Field(exclude=True)
    """Directory of the store; not part of what identifies it."""
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, gt=0, exclude=True)
    """Processes; the result does not depend on them."""
    recordings: Path | None = Field(default=None, exclude=True)
    """Store with the same groups, seeds and experts, whose recordings are rendered instead of simulating them again."""
    groups: tuple[Group, ...] = Field(min_length=1)
    """What to collect; the groups are interleaved, so that every stretch of the store is a mixture."""
    image_size: int = Field(default=112, gt=0)
    """Height and width of the frames in pixels."""
    frame_stride: int = Field(default=1, gt=0)
    """Keep every n-th control step of 20 Hz; increments between kept frames are summed."""
    held_out_every: int = Field(default=8, ge=0)
    """One in so many episodes is marked held_out, evenly over instructions; 0 for none."""
    first_seed: int = Field(default=0, ge=0)
    """Seed of the first episode, each has its own; give each store a range of its own."""
    episodes_per_part: int = Field(default=24, gt=0)
    """Episodes that one process renders, and a resumed run repeats at worst."""
    random_cameras: RandomCameras = RandomCameras()
    """From where random_1, random_2, ... look."""
    nuisances: Nuisances = Nuisances()
    """What changes in the pictures without being the robot's doing."""
    expert: ExpertSettings = ExpertSettings()
    """How the experts behave."""

    @model_validator(mode="after")
    def _seeds_suffice(self) -> "CollectionSettings":
        total = sum(group.episodes for group in self.groups)
        if self.first_seed + total > SEEDS_BETWEEN_ATTEMPTS:
            raise ValueError(
                f"first_seed {self.first_seed} and {total} episodes pass seed {SEEDS_BETWEEN_ATTEMPTS}, "
                "where those of second attempts begin; lower first_seed or episodes"
            )
        return self

    @property
    def info(self) -> StoreInfo:
        """What holds for every episode of the store."""
        views = sorted({view for group in self.groups for view in group.views}, key=_by_kind)
        return StoreInfo(
            control_hz=CONTROL_HZ / self.frame_stride,
            views=dict.fromkeys(views, (self.image_size, self.image_size)),
            action_space=END_EFFECTOR_DELTA,
            proprioception_dims=PROPRIOCEPTION_DIMS,
            columns={name: ColumnInfo("float32", shape) for name, shape in self._columns.items()},
            robot_type="panda",
        )

    @property
    def _columns(self) -> dict[str, tuple[int]]:
        rows = self.nuisances.columns(0, range(1))
        return {OBJECT_POSE: (7,)} | {name: (values.shape[1],) for name, values in rows.items()}


def _by_kind(view: str) -> tuple[bool, str, int]:
    kind, number = view_name(view)
    return kind != POLICY_CAMERA, kind, number


@dataclass(frozen=True, kw_only=True)
class EpisodePlan:
    """One episode to be collected."""

    task: str
    seed: int
    """Of the first attempt."""
    views: tuple[str, ...]
    is_labelled: bool
    split: str


def plan_episodes(settings: CollectionSettings) -> list[EpisodePlan]:
    """The episodes in their order in the store: tasks and instructions are interleaved."""
    planned: list[tuple[float, EpisodePlan]] = []
    seed = settings.first_seed
    for group in settings.groups:
        told = len(find_task(group.task).instructions)
        for number in range(group.episodes):
            plan = EpisodePlan(
                task=group.task,
                seed=seed + number,
                views=group.views,
                is_labelled=group.labelled,
                split="held_out" if _is_held_out(number, told, settings.held_out_every) else "train",
            )
            planned.append(((number + 0.5) / group.episodes, plan))
        seed += group.episodes
    return [plan for _, plan in sorted(planned, key=lambda pair: pair[0])]


def _is_held_out(number: int, instructions: int, every: int) -> bool:
    """One in `every` episodes of each instruction; which one differs between them, to spread them over the store."""
    turn, instruction = divmod(number, instructions)
    return every > 0 and (turn + instruction) % every == 0
