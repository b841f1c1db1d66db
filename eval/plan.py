"""What an evaluation compares: arms, their tasks and episodes, spelt out as jobs on paired seeds."""

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, model_validator

from core.config import Config
from eval.execution import Execution
from eval.runner import ATTEMPTS, TIMEOUT_S
from eval.tasks import EVALUATION_SEEDS_FROM
from eval.workshop import Job, Setup, is_trained


class Kind(NamedTuple):
    """A benchmark that can be named in a configuration."""

    make: str
    """Import string of its class."""
    make_expert: str
    """Import string of the policy that knows the state of its simulator."""
    first_seed: int
    """The lowest seed that an evaluation may have."""
    make_scenes: str = ""
    """Import string of what makes many scenes; empty: a simulator for each."""


BENCHMARKS = {
    "maniskill": Kind(
        "eval.maniskill:ManiSkillBenchmark",
        "eval.baselines:ExpertPolicy",
        EVALUATION_SEEDS_FROM,
        "eval.maniskill_scenes:make_scenes",
    ),
    # The seeds of these are the numbers of their fixed episodes.
    "simpler": Kind("eval.simpler:SimplerBenchmark", "eval.simpler_experts:SimplerExpertPolicy", 0),
    "libero": Kind("eval.libero:LiberoBenchmark", "eval.libero_experts:LiberoExpertPolicy", 0),
}


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
    """Path of a trained policy below `policies`, address of a served one (ws://HOST:PORT), `random` or `expert`."""
    shuffle_instructions: bool = False
    """Tell the policy another instruction of the task than the one it is judged by."""
    tasks: tuple[TaskPlan, ...]
    """What it is tried on."""


class EvaluateConfig(Execution):
    """Closed-loop evaluation of policies; how their answers are used is the same for all arms."""

    out: str
    """Directory of this stage."""
    policies: str = "."
    """Directory that the arms' policy paths start from."""
    arms: tuple[ArmPlan, ...]
    """What is compared, on the same seeds."""
    benchmark: str = "maniskill"
    """Where the tasks come from: a name in eval/plan.py."""
    benchmark_options: dict[str, Any] = Field(default_factory=dict)
    """Further settings of the benchmark: arguments of its class."""
    image_size: int = Field(default=112, gt=0)
    """Pixels of the images of arms whose policy sees none (in their videos); policies bring their own."""
    workers: int = Field(default=2, gt=0, exclude=True)
    """Processes, each with its simulators and one policy; about one a core. Results do not depend on it."""
    scenes: int = Field(default=1, gt=0)
    """Episodes that a worker simulates, and asks its policy for, at once; what that changes says docs/maniskill.md."""
    server_batch: int = Field(default=0, ge=0)
    """Workers that one server of the policy answers in one forward pass; 0: each loads its own; 1: to the same bit."""
    episode_timeout_s: float = Field(default=TIMEOUT_S, gt=0, exclude=True)
    """An episode (or `scenes` at once) that takes longer, loading of simulator and policy included, is begun anew."""
    attempts: int = Field(default=ATTEMPTS, gt=0, exclude=True)
    """How often an episode is begun, where its worker crashes, hangs or is killed, before it counts as failed."""
    first_seed: int | None = Field(default=None, ge=0)
    """Seed of each task's first episode; None: the lowest that the benchmark keeps for evaluation."""
    video_every: int = Field(default=10, ge=0)
    """One episode in so many is recorded; 0 for none."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> "EvaluateConfig":
        names = [arm.name for arm in self.arms]
        doubled = {name for name in names if names.count(name) > 1}
        if doubled:
            raise ValueError(f"arms: {sorted(doubled)} stand there twice; give each arm a name of its own")
        return self

    @model_validator(mode="after")
    def _seeds_are_for_evaluation(self) -> "EvaluateConfig":
        if self.benchmark not in BENCHMARKS:
            raise ValueError(f"benchmark = {self.benchmark}: the known ones are {', '.join(BENCHMARKS)}")
        lowest = BENCHMARKS[self.benchmark].first_seed
        if self.first_seed is not None and self.first_seed < lowest:
            raise ValueError(f"first_seed = {self.first_seed}: seeds below {lowest} are for training; take others")
        return self


def setup_of(config: EvaluateConfig, make_policy: str) -> Setup:
    """How workers make what they need."""
    kind = BENCHMARKS[config.benchmark]
    return Setup(
        make_policy=make_policy,
        make_benchmark=kind.make,
        make_expert=kind.make_expert,
        make_scenes=kind.make_scenes,
        execution=Execution(**{name: getattr(config, name) for name in Execution.model_fields}),
        image_size=config.image_size,
        benchmark_options=config.benchmark_options,
        scenes=config.scenes,
        server_batch=config.server_batch,
    )


def policy_paths(config: EvaluateConfig) -> dict[str, Path]:
    """Directory of the trained policy of each arm that has one."""
    return {arm.name: Path(config.policies) / arm.policy for arm in config.arms if is_trained(arm.policy)}


def jobs_of(config: EvaluateConfig) -> list[Job]:
    """All episodes, arm by arm (a worker loads each policy once); all arms have the same seeds."""
    paths = policy_paths(config)
    lowest = BENCHMARKS[config.benchmark].first_seed
    first_seed = lowest if config.first_seed is None else config.first_seed
    return [
        Job(
            arm=arm.name,
            task=plan.task,
            seed=first_seed + index,
            policy=str(paths.get(arm.name, arm.policy)),
            is_shuffled=arm.shuffle_instructions,
            is_recorded=config.video_every > 0 and index % config.video_every == 0,
        )
        for arm in config.arms
        for plan in arm.tasks
        for index in range(plan.episodes)
    ]
