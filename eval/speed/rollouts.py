"""Rollouts a minute of the runner's worker processes beside those of a plain loop in one process."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from core.benchmark.fresh_process import in_fresh_process
from core.benchmark.running import Numbers
from core.benchmark.timing import Ratio, Timing, ratio, ratio_row
from eval.results import RESULTS_FILE, Result, read_results
from eval.runner import run
from eval.speed.arrivals import Arrivals
from eval.speed.plain_loop import TASK, plain_loop
from eval.speed.sizes import Actor, Sizes
from eval.tasks import EVALUATION_SEEDS_FROM
from eval.workshop import Job, Setup

PLAIN, SHOWN = "plain loop", "plain loop, all pictures"
TARGET = 1.5


class Pace(NamedTuple):
    """Seconds an episode."""

    steady_s: float
    """Once every process has come to the end of its first episode."""
    whole_s: float
    """From nothing: imports, policies and simulators are made meanwhile."""
    start_s: float
    """Until every process has come to the end of its first episode; of all together, not of an episode."""


def rollouts(sizes: Sizes, actor: Actor, numbers: Numbers) -> Iterator[str]:
    """Episodes a minute in worker processes of the runner, against a plain loop; pictures when the policy is asked."""
    ours = f"{sizes.workers} workers"
    # The loop comes first, before the runner limits the threads of processes that are begun after it.
    ways: dict[str, Callable[[], Pace]] = {
        PLAIN: partial(pace_of_loop, sizes, actor, False),
        SHOWN: partial(pace_of_loop, sizes, actor, True),
        ours: partial(pace_of_runner, sizes, actor),
    }
    found: dict[str, list[Pace]] = {name: [] for name in ways}
    for _ in range(sizes.rounds):
        for name, measure in ways.items():
            found[name].append(measure())
    yield f"  {TASK}, {sizes.episodes} episodes of {sizes.step_limit} steps each time; lighter meshes; {said(actor)}"
    yield f"  {'':40}{'a minute':>10}{'':20}{'from nothing':>14}{'first done':>12}"
    for name, paces in found.items():
        yield _row(name, paces, numbers)
    for name in (PLAIN, SHOWN):
        target = f"  (target: {TARGET:g})" if name == PLAIN else ""
        yield ratio_row(f"{name} / {ours}", _ratio(found[name], found[ours], "steady_s"), numbers) + target
        from_nothing = _ratio(found[name], found[ours], "whole_s")
        yield ratio_row(f"{name} / {ours}, from nothing", from_nothing, numbers)


def said(actor: Actor) -> str:
    """Who acts."""
    return f"{actor.path} acts" if actor.is_given else "random actions, which are drawn in no time"


def pace_of_loop(sizes: Sizes, actor: Actor, shows_each_step: bool) -> Pace:
    """Of the plain loop, in a process of its own."""
    start = time.perf_counter()
    ends = in_fresh_process("a plain loop", plain_loop, sizes, actor, _seeds(sizes.episodes), shows_each_step)
    return pace(start, ends, 1)


def pace_of_runner(sizes: Sizes, actor: Actor) -> Pace:
    """Of worker processes that are begun for it.

    Raises:
        RuntimeError: an episode failed.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark_eval_") as folder:
        jobs = jobs_of(actor, TASK, sizes.episodes)
        start = time.perf_counter()
        with Arrivals(Path(folder) / RESULTS_FILE) as arrivals:
            run_all(jobs, setup_of(sizes, actor), Path(folder), sizes.workers)
        order = [result.seed for result in read_results(Path(folder) / RESULTS_FILE)]
    return pace(start, arrivals.times, warm_up(order, [job.seed for job in jobs[: sizes.workers]]))


def warm_up(order: Sequence[int], firsts: Sequence[int]) -> int:
    """How many episodes had ended when each worker had ended its first, of those that came in this order.

    The workers begin with `firsts`. Where one is very late, half of all is the answer, which makes the runner slower
    than it is, not faster.
    """
    return min(1 + max(order.index(seed) for seed in firsts), len(order) // 2)


def pace(start: float, ends: Sequence[float], warm: int) -> Pace:
    """Of episodes that ended then, the first `warm` of which belong to the start."""
    ready = ends[warm - 1]
    return Pace((ends[-1] - ready) / (len(ends) - warm), (ends[-1] - start) / len(ends), ready - start)


def setup_of(sizes: Sizes, actor: Actor, meshes: str = "lighter") -> Setup:
    """How workers make what they need."""
    return Setup(
        make_policy=actor.make,
        make_benchmark="eval.maniskill:ManiSkillBenchmark",
        make_expert="eval.baselines:ExpertPolicy",
        execution=sizes.execution,
        image_size=sizes.image_size,
        benchmark_options={"max_steps": sizes.step_limit, "robot_meshes": meshes},
    )


def jobs_of(actor: Actor, task: str, episodes: int) -> list[Job]:
    """So many episodes of a task."""
    return [Job(arm="measured", task=task, seed=seed, policy=actor.path) for seed in _seeds(episodes)]


def run_all(jobs: Sequence[Job], setup: Setup, out: Path, workers: int) -> list[Result]:
    """The results of all jobs.

    Raises:
        RuntimeError: an episode failed, so that neither its time nor its success tells anything.
    """
    results = run(jobs, setup, out, workers)
    for result in results:
        if result.error is not None:
            raise RuntimeError(f"an episode failed, so nothing was measured: {result.error}")
    return results


def _seeds(episodes: int) -> range:
    return range(EVALUATION_SEEDS_FROM, EVALUATION_SEEDS_FROM + episodes)


def _row(name: str, paces: Sequence[Pace], numbers: Numbers) -> str:
    numbers.setdefault("seconds an episode", {})[name] = [each._asdict() for each in paces]
    steady, whole = (Timing.of([getattr(each, field) for each in paces]) for field in ("steady_s", "whole_s"))
    span = f"({60 / max(steady.calls):.1f} to {60 / min(steady.calls):.1f})"
    start = Timing.of([each.start_s for each in paces])
    return f"  {name:40}{60 / steady.median_s:10.1f}{span:>20}{60 / whole.median_s:14.1f}{start.median_s:10.1f} s"


def _ratio(above: Sequence[Pace], below: Sequence[Pace], field: str) -> Ratio:
    return ratio(*(Timing.of([getattr(each, field) for each in paces]) for paces in (above, below)))
