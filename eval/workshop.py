"""What a worker process needs for episodes, and keeps for the next ones: simulators and the last policy."""

import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from core.policy import Policy
from core.run import versions
from eval.baselines import RandomPolicy
from eval.batching import BatchPolicy
from eval.execution import Execution
from eval.scenes import Scenes, SeparateSimulators

RANDOM, EXPERT = "random", "expert"
REMOTE_S = 300.0
"""How long a served policy may take to answer, or to be there again."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One episode to run."""

    arm: str
    task: str
    seed: int
    policy: str
    """Path of a trained policy, address of a served one (ws://HOST:PORT), `random` or `expert`."""
    is_shuffled: bool = False
    """Tell the policy another instruction of the task than the true one."""
    is_recorded: bool = False
    """Keep a video of it."""

    @property
    def key(self) -> tuple[str, str, int]:
        """Arm, task and seed: what makes an episode the same one."""
        return self.arm, self.task, self.seed

    @property
    def kind(self) -> tuple[str, str, str, bool]:
        """What episodes share that can be simulated at once."""
        return self.arm, self.task, self.policy, self.is_shuffled


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How workers make what they need; import strings `package.module:name`, so that nothing here imports them."""

    make_policy: str
    """Called with the path of a trained policy; the policy says its `image_size`."""
    make_benchmark: str
    """Called with `task`, `image_size`, `benchmark_options` and, where the policy names some, `cameras`."""
    make_expert: str
    """Called with the benchmark; the policy of arms whose policy is `expert`."""
    make_scenes: str = ""
    """Called like `make_benchmark` and with `scenes`; empty: a simulator for each of them."""
    scenes: int = 1
    """Episodes that a worker simulates at once."""
    execution: Execution
    """How the policy's chunks become actions."""
    image_size: int
    """Pixels of the images where the policy sees none."""
    benchmark_options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `make_benchmark`."""
    server_batch: int = 0
    """Each trained policy is served to all workers, up to so many of them at a time; 0: each worker loads its own."""
    address: str = ""
    """Where the trained policy is served, if it is."""


@dataclass
class Workshop:
    """What a worker process keeps between jobs: simulators by task and kind of images, the last policy."""

    scenes: dict[tuple[str, int, tuple[str, ...]], Scenes] = field(default_factory=dict)
    path: str | None = None
    policies: Sequence[Policy] = ()

    @cached_property
    def versions(self) -> dict[str, str]:
        """Versions of what results depend on."""
        return versions()

    def policies_and_scenes(self, job: Job, setup: Setup) -> tuple[Sequence[Policy], Scenes]:
        """Scenes for episodes like the job and each one's policy, made where they are not there yet."""
        if job.policy in (RANDOM, EXPERT):
            scenes = self.scenes_of(setup, job.task, setup.image_size, ())
            if job.policy == RANDOM:
                return [RandomPolicy(scene.action_space) for scene in scenes.each], scenes
            return [pkgutil.resolve_name(setup.make_expert)(scene) for scene in scenes.each], scenes
        path = setup.address or job.policy
        if not self.policies or self.path != path:
            self.policies = ()  # frees the memory before the next one is loaded
            self.policies = _made(path, setup)
            self.path = path
        policy = self.policies[0]
        image_size = getattr(policy, "image_size", setup.image_size)
        return self.policies, self.scenes_of(setup, job.task, image_size, policy.cameras)

    def scenes_of(self, setup: Setup, task: str, image_size: int, cameras: tuple[str, ...]) -> Scenes:
        """Those of a task, with its own choice of cameras where none are named."""
        key = (task, image_size, cameras)
        if key not in self.scenes:
            if setup.scenes > 1:  # so many are kept of one task at a time
                for others in self.scenes.values():
                    others.close()
                self.scenes.clear()
            named = {"cameras": cameras} if cameras else {}
            arguments = setup.benchmark_options | {"task": task, "image_size": image_size} | named
            if setup.make_scenes:
                self.scenes[key] = pkgutil.resolve_name(setup.make_scenes)(scenes=setup.scenes, **arguments)
            else:
                make = pkgutil.resolve_name(setup.make_benchmark)
                self.scenes[key] = SeparateSimulators([make(**arguments) for _ in range(setup.scenes)])
        return self.scenes[key]


def _made(path: str, setup: Setup) -> Sequence[Policy]:
    """The policy of each scene: one for all where it can hold many episodes at once."""
    make = _connected if is_address(path) else pkgutil.resolve_name(setup.make_policy)
    policy = make(path)
    if isinstance(policy, BatchPolicy):
        return [policy] * setup.scenes
    return [policy, *(make(path) for _ in range(setup.scenes - 1))]


def is_address(policy: str) -> bool:
    """Whether a policy is given by where it is served."""
    return "://" in policy


def is_trained(policy: str) -> bool:
    """Whether a policy is given by the path of its checkpoint."""
    return policy not in (RANDOM, EXPERT) and not is_address(policy)


def _connected(address: str) -> Policy:
    from eval.remote import RemotePolicy

    return RemotePolicy(address, timeout_s=REMOTE_S, wait_s=REMOTE_S)
