"""Many episodes in several processes: every result on disk at once, finished episodes never run twice."""

import multiprocessing
import os
import pkgutil
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from core.policy import Observation, Policy
from core.run import say, versions
from eval.baselines import ExpertPolicy, RandomPolicy
from eval.benchmark import Benchmark
from eval.results import Result, append_result, by_arm, read_results
from eval.rollout import Outcome, another_instruction, rollout
from eval.video import side_by_side, write_video

RESULTS_FILE = "results.jsonl"
RANDOM, EXPERT = "random", "expert"
HOPELESS_AFTER = 3
SAY_EVERY_S = 10.0


class RunnerError(RuntimeError):
    """An evaluation that cannot go on."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One episode to run."""

    arm: str
    task: str
    seed: int
    policy: str
    """Path of a trained policy, `random` or `expert`."""
    is_shuffled: bool = False
    """Tell the policy another instruction of the task than the true one."""
    is_recorded: bool = False
    """Keep a video of it."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How workers make what they need; import strings `package.module:name`, so that nothing here imports them."""

    make_policy: str
    """Called with the path of a trained policy; the policy says its `image_size`."""
    make_benchmark: str
    """Called with `task`, `image_size` and, where the policy names some, `cameras`."""
    execute_steps: int
    """Actions of each chunk that are taken before the policy is asked again."""
    image_size: int
    """Pixels of the images where the policy sees none."""


def run(jobs: Sequence[Job], setup: Setup, out: str | Path, workers: int) -> list[Result]:
    """Run the jobs that `out`/results.jsonl does not hold yet, and answer the results of all.

    An episode that fails with an error is recorded, counts as a failure, and is tried again by the next call.

    Raises:
        RunnerError: the first three episodes all fail with the same error, or a worker process dies.
    """
    out = Path(out)
    file = out / RESULTS_FILE
    known = [result for result in read_results(file) if result.error is None] if file.is_file() else []
    done = {result.key for result in known}
    waiting = [job for job in jobs if (job.arm, job.task, job.seed) not in done]
    if done:
        say(f"evaluate: {len(jobs) - len(waiting)} of {len(jobs)} episodes are already in {file}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # inherited by the workers, whose number is the parallelism
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(waiting)) or 1, mp_context=spawn)
    try:
        _collect([pool.submit(run_job, job, setup, out) for job in waiting], file)
    except BrokenProcessPool:
        raise RunnerError(
            f"a worker process died (often: out of memory with workers = {workers}); the same command goes on"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
    wanted = {(job.arm, job.task, job.seed) for job in jobs}
    return [result for result in read_results(file) if result.key in wanted] if file.is_file() else []


def run_job(job: Job, setup: Setup, out: Path) -> Result:
    """Run one episode in this process, which keeps its simulators and its last policy for the next one."""
    started = time.monotonic()
    frames: list[np.ndarray] = []
    error, fingerprint, video = None, "unknown", None
    outcome = Outcome("", False, False, 0, 0)
    try:
        policy, benchmark = _WORKSHOP.policy_and_benchmark(job, setup)
        fingerprint = policy.fingerprint

        def keep(observation: Observation) -> None:
            frames.append(side_by_side(observation, policy.cameras))

        told = another_instruction(benchmark, job.seed) if job.is_shuffled else None
        on_frame = keep if job.is_recorded else None
        outcome = rollout(benchmark, policy, job.seed, setup.execute_steps, told, on_frame)
        if frames:
            video = f"videos/{job.arm}_{job.task}_{job.seed}.mp4"
            write_video(out / video, np.stack(frames), benchmark.control_hz)
    except Exception as problem:  # the only place allowed to: one bad episode must not end the others
        if os.environ.get("MVP_LAM_TRACEBACK"):
            raise
        error = f"{type(problem).__name__}: {problem}"
        outcome = outcome._replace(success_at_end=False, success_at_any_time=False)
    return Result(
        arm=job.arm,
        task=job.task,
        seed=job.seed,
        error=error,
        video=video,
        policy_fingerprint=fingerprint,
        seconds=round(time.monotonic() - started, 3),
        versions=_WORKSHOP.versions,
        **outcome._asdict(),
    )


@dataclass
class _Workshop:
    """What a worker process keeps between jobs: one simulator a task and kind of images, the last policy."""

    benchmarks: dict[tuple[str, int, tuple[str, ...]], Benchmark] = field(default_factory=dict)
    path: str | None = None
    policy: Policy | None = None
    versions: dict[str, str] = field(default_factory=versions)

    def policy_and_benchmark(self, job: Job, setup: Setup) -> tuple[Policy, Benchmark]:
        """Those of the job, made where they are not there yet."""
        if job.policy in (RANDOM, EXPERT):
            benchmark: Any = self.benchmark(setup, job.task, setup.image_size, ())
            is_random = job.policy == RANDOM
            return RandomPolicy(benchmark.action_space) if is_random else ExpertPolicy(benchmark), benchmark
        if self.policy is None or self.path != job.policy:
            self.policy = None  # frees the memory before the next one is loaded
            self.policy = pkgutil.resolve_name(setup.make_policy)(job.policy)
            self.path = job.policy
        policy: Any = self.policy
        return policy, self.benchmark(setup, job.task, policy.image_size, policy.cameras)

    def benchmark(self, setup: Setup, task: str, image_size: int, cameras: tuple[str, ...]) -> Benchmark:
        """The simulator of a task, with its own choice of cameras where none are named."""
        key = (task, image_size, cameras)
        if key not in self.benchmarks:
            named = {"cameras": cameras} if cameras else {}
            make = pkgutil.resolve_name(setup.make_benchmark)
            self.benchmarks[key] = make(task=task, image_size=image_size, **named)
        return self.benchmarks[key]


_WORKSHOP = _Workshop()


def _collect(futures: list["Future[Result]"], file: Path) -> None:
    """Write results as they come, say how it goes, stop when it is hopeless."""
    started = said = time.monotonic()
    results: list[Result] = []
    for future in as_completed(futures):
        result = future.result()
        append_result(file, result)
        results.append(result)
        if result.error is not None:
            say(f"evaluate: FAILED {result.arm}, {result.task}, seed {result.seed}: {result.error}")
            _stop_if_hopeless(results)
        if time.monotonic() - said > SAY_EVERY_S or len(results) == len(futures):
            said = time.monotonic()
            say(progress(results, len(futures), said - started))


def _stop_if_hopeless(results: list[Result]) -> None:
    if len(results) == HOPELESS_AFTER and len({result.error for result in results}) == 1:
        raise RunnerError(
            f"the first {HOPELESS_AFTER} episodes all failed with: {results[0].error}; nothing else was run"
        )


def progress(results: Sequence[Result], total: int, seconds: float) -> str:
    """One line: how many, how fast, how long to go, success at the end by arm so far."""
    rate = len(results) / max(seconds, 1e-9)
    minutes, rest = divmod(round((total - len(results)) / rate), 60)
    arms = []
    for arm, group in by_arm(results).items():
        successes = sum(result.success_at_end for result in group)
        arms.append(f"{arm} {successes}/{len(group)}")
    said = f"evaluate: {len(results)}/{total} episodes, {rate:.2f}/s, {minutes}:{rest:02d} to go"
    return f"{said}; solved: {', '.join(arms)}"
