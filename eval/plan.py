"""What an evaluation compares: arms, their tasks and episodes, spelt out as jobs on paired seeds."""

from pathlib import Path

from pydantic import Field, model_validator

from core.config import Config
from eval.runner import EXPERT, RANDOM, Job
from eval.tasks import EVALUATION_SEEDS_FROM


class TaskPlan(Config):
    """Episodes of one task."""

    task: str
    """Machine name of the task."""
    episodes: int = Field(gt=0)
    """Episodes, on the seeds first_seed, first_seed + 1, ..."""


class ArmPlan(Config):
    """One thing to compare."""

    name: str
    """Name in the results; `_<demonstrations>` at the end places it on the label-budget curve of the report."""
    policy: str
    """Path of a trained policy below `policies`, or `random`, or `expert`."""
    shuffle_instructions: bool = False
    """Tell the policy another instruction of the task than the one it is judged by."""
    tasks: tuple[TaskPlan, ...]
    """What it is tried on."""


class EvaluateConfig(Config):
    """Closed-loop evaluation of policies."""

    out: str
    """Directory of this stage."""
    policies: str = "."
    """Directory that the arms' policy paths start from."""
    arms: tuple[ArmPlan, ...]
    """What is compared, on the same seeds."""
    execute_steps: int = Field(default=8, gt=0)
    """Actions of each predicted chunk that are taken before the policy is asked again."""
    image_size: int = Field(default=112, gt=0)
    """Pixels of the images of arms whose policy sees none (in their videos); policies bring their own."""
    workers: int = Field(default=2, gt=0)
    """Processes, each with its simulators and one policy; about one a core."""
    first_seed: int = Field(default=EVALUATION_SEEDS_FROM, ge=EVALUATION_SEEDS_FROM)
    """Seed of each task's first episode; training uses seeds below 10,000,000."""
    video_every: int = Field(default=10, ge=0)
    """One episode in so many is recorded; 0 for none."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> "EvaluateConfig":
        names = [arm.name for arm in self.arms]
        doubled = {name for name in names if names.count(name) > 1}
        if doubled:
            raise ValueError(f"arms: {sorted(doubled)} stand there twice; give each arm a name of its own")
        return self


def policy_paths(config: EvaluateConfig) -> dict[str, Path]:
    """Directory of the trained policy of each arm that has one."""
    return {arm.name: Path(config.policies) / arm.policy for arm in config.arms if arm.policy not in (RANDOM, EXPERT)}


def jobs_of(config: EvaluateConfig) -> list[Job]:
    """All episodes, arm by arm (a worker loads each policy once); all arms have the same seeds."""
    paths = policy_paths(config)
    return [
        Job(
            arm=arm.name,
            task=plan.task,
            seed=config.first_seed + index,
            policy=str(paths.get(arm.name, arm.policy)),
            is_shuffled=arm.shuffle_instructions,
            is_recorded=config.video_every > 0 and index % config.video_every == 0,
        )
        for arm in config.arms
        for plan in arm.tasks
        for index in range(plan.episodes)
    ]
