"""What lighter meshes of the robot save, and whether they change what is seen and what a policy achieves."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from core.benchmark.running import Numbers
from core.benchmark.timing import in_turn, ratio, ratio_row
from core.policy import Observation
from eval.baselines import ExpertPolicy
from eval.execution import Execution
from eval.maniskill import ManiSkillBenchmark
from eval.pairing import Contrast, contrast_of, count_pairs
from eval.proportions import Interval
from eval.results import Result
from eval.robot_meshes import LIGHTER, STOCK
from eval.rollout import rollout
from eval.speed.likeness import structural_similarity
from eval.speed.plain_loop import TASK
from eval.speed.rollouts import jobs_of, run_all, said, setup_of
from eval.speed.sizes import Actor, Sizes
from eval.tasks import EVALUATION_SEEDS_FROM

CAMERAS, SIDE, LOOK_EVERY = ("front", "random_1", "random_2"), 128, 5
MESHES = (LIGHTER, STOCK)
SUCCESS_TASK = "PushCubeDirections"
Picture = UInt8[np.ndarray, "height width 3"]


def meshes(sizes: Sizes, actor: Actor, numbers: Numbers) -> Iterator[str]:
    """Lighter robot meshes against stock ones: pictures a second, rollouts, how alike they look, success."""
    yield from _pictures(sizes, numbers)
    yield from _rollouts(sizes, actor, numbers)
    yield from _likeness(sizes, numbers)
    yield from _success(sizes, actor, numbers)


def _pictures(sizes: Sizes, numbers: Numbers) -> Iterator[str]:
    yield f"  pictures of {SIDE} x {SIDE} pixels a second, one process"
    with ExitStack() as opened:
        scenes = {each: opened.enter_context(closing(_scene(each, CAMERAS, SIDE))) for each in MESHES}
        for cameras in range(1, len(CAMERAS) + 1):
            calls = {name: partial(scene.render, CAMERAS[:cameras]) for name, scene in scenes.items()}
            repeats = dict.fromkeys(calls, sizes.renderings)
            timings = in_turn(calls, time.perf_counter, max(2, sizes.rounds), repeats)
            for name, timing in timings.items():
                numbers[rate := f"pictures a second, {name}, {cameras} cameras"] = cameras / timing.median_s
                yield f"  {rate:56} {numbers[rate]:9.1f}"
            yield ratio_row(f"stock / lighter, {cameras} cameras", ratio(timings[STOCK], timings[LIGHTER]), numbers)


def _rollouts(sizes: Sizes, actor: Actor, numbers: Numbers) -> Iterator[str]:
    policy: Any = actor.load()
    side = getattr(policy, "image_size", sizes.image_size)
    execution = sizes.execution
    with ExitStack() as opened:
        calls: dict[str, Callable[[], object]] = {}
        for each in MESHES:
            scene = opened.enter_context(closing(_scene(each, policy.cameras, side, max_steps=sizes.step_limit)))
            seeds = count(EVALUATION_SEEDS_FROM)
            calls[each] = lambda scene=scene, seeds=seeds: rollout(scene, policy, next(seeds), execution)  # type: ignore[misc]
        timings = in_turn(calls, time.perf_counter, max(2, sizes.episodes // 2))
    yield f"  rollouts a minute, one process, {side} pixels; {said(actor)}"
    for name, timing in timings.items():
        numbers[f"seconds of a rollout, {name}"] = timing.calls
        yield f"  {name:56} {60 / timing.median_s:9.1f}"
    yield ratio_row("stock / lighter, rollouts", ratio(timings[STOCK], timings[LIGHTER]), numbers)


class Alike(NamedTuple):
    """Of pictures of the same instants with either mesh; 1: the same."""

    mean: float
    lowest: float
    """Of the mean of a picture."""
    changed_mean: float
    """Of the pixels that differ at all, which leaves out what shows no robot."""
    changed_share: float
    """Of all pixels."""


def _likeness(sizes: Sizes, numbers: Numbers) -> Iterator[str]:
    found = {camera: _alike(pairs) for camera, pairs in pictures_of_both(sizes).items()}
    numbers["structural similarity"] = {camera: each._asdict() for camera, each in found.items()}
    yield "  structural similarity (SSIM) of pictures of the same instants of the expert's episodes"
    yield f"  {'':40}{'mean':>10}{'lowest':>10}{'where they differ':>20}"
    for camera, each in found.items():
        where = f"{each.changed_mean:.3f} in {each.changed_share:.0%}"
        yield f"  {camera:40}{each.mean:10.4f}{each.lowest:10.4f}{where:>20}"


def pictures_of_both(sizes: Sizes) -> dict[str, list[tuple[Picture, Picture]]]:
    """By camera, pictures with lighter and with stock meshes of the same instants of the scripted expert's episodes."""
    found: dict[str, list[tuple[Picture, Picture]]] = {camera: [] for camera in CAMERAS}
    options = {"max_steps": sizes.step_limit}
    with closing(_scene(LIGHTER, CAMERAS, SIDE, **options)) as light, closing(_scene(STOCK, CAMERAS, SIDE)) as stock:
        for seed in range(EVALUATION_SEEDS_FROM, EVALUATION_SEEDS_FROM + sizes.alike_episodes):
            stock.reset(seed)
            steps = count()

            def look(observation: Observation, seed: int = seed, steps: Iterator[int] = steps) -> None:
                if (step := next(steps)) % LOOK_EVERY:
                    return
                stock.set_state(light.get_state(), seed, step)
                for camera, picture in stock.render().items():
                    found[camera].append((observation.images[camera], picture))

            rollout(light, ExpertPolicy(light), seed, Execution(execute_steps=1), on_frame=look)
    return found


def _alike(pairs: list[tuple[Picture, Picture]]) -> Alike:
    maps = np.stack([structural_similarity(*pair) for pair in pairs])
    differs = np.stack([(light != stock).any(-1) for light, stock in pairs])
    by_picture = maps.mean((1, 2))
    changed = float(maps[differs].mean()) if differs.any() else 1.0
    return Alike(float(by_picture.mean()), float(by_picture.min()), changed, float(differs.mean()))


def _success(sizes: Sizes, actor: Actor, numbers: Numbers) -> Iterator[str]:
    if not actor.is_given:
        yield "  success: not measured; it takes a policy that sees, which --policy names"
        return
    results = {}
    for each in MESHES:
        with tempfile.TemporaryDirectory(prefix="benchmark_eval_") as folder:
            jobs, setup = jobs_of(actor, SUCCESS_TASK, sizes.success_episodes), setup_of(sizes, actor, each)
            results[each] = run_all(jobs, setup, Path(folder), sizes.workers)
    found = by_meshes(results[LIGHTER], results[STOCK])
    numbers["success"] = found._asdict()
    yield f"  success at the end of {SUCCESS_TASK}, the same {found.pairs.n} seeds; {said(actor)}"
    yield f"  {LIGHTER:40}{found.first:6d}  {_percent(found.first_wilson95)}"
    yield f"  {STOCK:40}{found.second:6d}  {_percent(found.second_wilson95)}"
    yield f"  {'lighter - stock':40}{found.difference:+7.1%}  {_percent(found.tango95)}, p {found.p_value:.2f}"


def by_meshes(lighter: list[Result], stock: list[Result]) -> Contrast:
    """The paired difference in success; results of other meshes are compared nowhere else.

    Raises:
        ValueError: the episodes are not the same, or differ in more than the meshes.
    """
    pairs = list(zip(lighter, stock, strict=True))
    for ours, theirs in pairs:
        if ours.key != theirs.key or ours.protocol is None or theirs.protocol is None:
            raise ValueError(f"{ours.key} and {theirs.key} cannot be paired")
        differ = ours.protocol.difference(theirs.protocol)
        if differ != [f"benchmark.robot_meshes: {LIGHTER} -> {STOCK}"]:
            raise ValueError(f"the episodes should differ in their meshes only, but differ in: {'; '.join(differ)}")
    return contrast_of(count_pairs(pairs))


def _percent(interval: Interval) -> str:
    return f"({interval[0]:.1%} to {interval[1]:.1%})"


def _scene(robot_meshes: str, cameras: tuple[str, ...], side: int, **options: Any) -> ManiSkillBenchmark:
    """A simulator at the beginning of an episode."""
    scene = ManiSkillBenchmark(TASK, cameras, side, robot_meshes=robot_meshes, **options)
    scene.reset(EVALUATION_SEEDS_FROM)
    return scene
