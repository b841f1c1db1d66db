"""What a worker process needs for an episode, and keeps for the next one: simulators and the last policy."""

import pkgutil
from dataclasses import dataclass, field
from typing import Any

from core.policy import Policy
from core.run import versions
from eval.baselines import RandomPolicy
from eval.benchmark import Benchmark
from eval.execution import Execution

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


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How workers make what they need; import strings `package.module:name`, so that nothing here imports them."""

    make_policy: str
    """Called with the path of a trained policy; the policy says its `image_size`."""
    make_benchmark: str
    """Called with `task`, `image_size`, `benchmark_options` and, where the policy names some, `cameras`."""
    make_expert: str
    """Called with the benchmark; the policy of arms whose policy is `expert`."""
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
    """What a worker process keeps between jobs: one simulator a task and kind of images, the last policy."""

    benchmarks: dict[tuple[str, int, tuple[str, ...]], Benchmark] = field(default_factory=dict)
    path: str | None = None
    policy: Policy | None = None
    versions: dict[str, str] = field(default_factory=versions)

    def policy_and_benchmark(self, job: Job, setup: Setup) -> tuple[Policy, Benchmark]:
        """Those of the job, made where they are not there yet."""
        if job.policy in (RANDOM, EXPERT):
            benchmark: Any = self.benchmark(setup, job.task, setup.image_size, ())
            if job.policy == RANDOM:
                return RandomPolicy(benchmark.action_space), benchmark
            return pkgutil.resolve_name(setup.make_expert)(benchmark), benchmark
        path = setup.address or job.policy
        if self.policy is None or self.path != path:
            self.policy = None  # frees the memory before the next one is loaded
            self.policy = _connected(path) if is_address(path) else pkgutil.resolve_name(setup.make_policy)(path)
            self.path = path
        policy: Any = self.policy
        image_size = getattr(policy, "image_size", setup.image_size)
        return policy, self.benchmark(setup, job.task, image_size, policy.cameras)

    def benchmark(self, setup: Setup, task: str, image_size: int, cameras: tuple[str, ...]) -> Benchmark:
        """The simulator of a task, with its own choice of cameras where none are named."""
        key = (task, image_size, cameras)
        if key not in self.benchmarks:
            named = {"cameras": cameras} if cameras else {}
            make = pkgutil.resolve_name(setup.make_benchmark)
            self.benchmarks[key] = make(**setup.benchmark_options | {"task": task, "image_size": image_size} | named)
        return self.benchmarks[key]


def is_address(policy: str) -> bool:
    """Whether a policy is given by where it is served."""
    return "://" in policy


def is_trained(policy: str) -> bool:
    """Whether a policy is given by the path of its checkpoint."""
    return policy not in (RANDOM, EXPERT) and not is_address(policy)


def _connected(address: str) -> Policy:
    from eval.remote import RemotePolicy

    return RemotePolicy(address, timeout_s=REMOTE_S, wait_s=REMOTE_S)
