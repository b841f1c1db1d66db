"""Collecting a store of simulated episodes: simulate, then render; part by part, in several processes.

Beside the store stand `recordings/part-000.npz`, ... (states, actions and proprioception, from which any other view can
be rendered later) and `contact_sheet.png` (one episode of each instruction).
"""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from core.episode import Episode
from core.run import Stage, is_done, read_manifest
from core.store import Store, finish_store, is_part_done, is_store_done, write_part
from core.workers import worker_pool
from eval.collection_settings import CollectionSettings, EpisodePlan, plan_episodes
from eval.contact_sheet import write_contact_sheet
from eval.demonstrations import SEEDS_BETWEEN_ATTEMPTS, Recording, render_episode, simulate_success
from eval.maniskill import ManiSkillBenchmark
from eval.recordings import is_recorded, read_recordings, write_recordings


@dataclass(frozen=True, kw_only=True)
class Part:
    """Episodes that one process simulates, and later renders, together."""

    settings: CollectionSettings
    number: int
    plans: list[EpisodePlan]


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What the parent process needs to know of a simulated part."""

    frames: int
    failures: int
    """Attempts that were thrown away."""


def collect(settings: CollectionSettings) -> None:
    """Collect the store, or go on where an earlier run with the same settings stopped."""
    stage = Stage.open(settings.out, "collect_maniskill", settings)
    if stage.is_done:
        return
    parts = parts_of(settings)
    with worker_pool(settings.workers) as pool:
        simulated = _in_all(pool, "simulate", [(part, simulate_part) for part in parts])
        stage.keep_time()
        if not is_store_done(settings.out):
            _in_all(pool, "render", [(part, render_part) for part in parts])
    finish_store(settings.out, settings.info, len(parts))
    write_contact_sheet(settings.out)
    facts = {
        "episodes": sum(len(part.plans) for part in parts),
        "frames": sum(result.frames for result in simulated),
        "failed_attempts": sum(result.failures for result in simulated),
    }
    stage.finish(facts, Store.open(settings.out).fingerprint)


def simulate_part(part: Part) -> Simulated:
    """Record the episodes of a part with physics alone, unless that was done before."""
    folder, stride = part.settings.out, part.settings.frame_stride
    if not is_recorded(folder, part.number):
        if part.settings.recordings is not None:
            recordings = _recordings_of(part, part.settings.recordings)
        else:
            recordings = [simulate_success(_benchmark_for(part, p), p.seed, part.settings.expert) for p in part.plans]
        write_recordings(folder, part.number, recordings)
    recordings = read_recordings(folder, part.number)
    return Simulated(
        frames=sum(-(-len(recording.actions) // stride) for recording in recordings),
        failures=sum(recording.failures for recording in recordings),
    )


def _recordings_of(part: Part, store: Path) -> list[Recording]:
    """The recordings that another store has of these episodes.

    Raises:
        ValueError: it has none, or of other episodes, or of experts that behaved differently.
    """
    if not is_recorded(store, part.number) or not is_done(store):
        raise ValueError(f"recordings: {store} is no finished collection with part {part.number}; finish it first")
    theirs = read_manifest(store)["config"]["expert"]
    if theirs != part.settings.expert.model_dump(mode="json"):
        raise ValueError(f"recordings: the experts of {store} were set otherwise: {theirs}")
    recordings = read_recordings(store, part.number)
    found = [(r.task, r.seed - r.failures * SEEDS_BETWEEN_ATTEMPTS) for r in recordings]
    if found != [(plan.task, plan.seed) for plan in part.plans]:
        raise ValueError(
            f"recordings: part {part.number} of {store} holds other episodes ({found[0]}, ...) than are wanted "
            f"({part.plans[0].task}, {part.plans[0].seed}, ...); give groups, first_seed and episodes_per_part alike"
        )
    return recordings


def render_part(part: Part) -> None:
    """Write a part of the store from its recordings, unless that was done before."""
    if not is_part_done(part.settings.out, part.number):
        write_part(part.settings.out, part.number, _rendered(part), info=part.settings.info)


def parts_of(settings: CollectionSettings) -> list[Part]:
    """The store in pieces of `episodes_per_part`, which do not depend on the number of workers."""
    plans, size = plan_episodes(settings), settings.episodes_per_part
    return [
        Part(settings=settings, number=number, plans=plans[start : start + size])
        for number, start in enumerate(range(0, len(plans), size))
    ]


def _in_all(pool: ProcessPoolExecutor, what: str, calls: list[tuple[Part, Callable]]) -> list:
    """Results of the calls in their order; progress in episodes."""
    futures = {pool.submit(function, part): part for part, function in calls}
    total = sum(len(part.plans) for part in futures.values())
    with tqdm(total=total, desc=what, unit="episode", mininterval=1.0) as progress:
        for future in as_completed(futures):
            future.result()
            progress.update(len(futures[future].plans))
    return [future.result() for future in futures]


def _rendered(part: Part) -> Iterator[Episode]:
    for plan, recording in zip(part.plans, read_recordings(part.settings.out, part.number), strict=True):
        yield render_episode(
            _benchmark_for(part, plan),
            recording,
            frame_stride=part.settings.frame_stride,
            is_labelled=plan.is_labelled,
            split=plan.split,
        )


def _benchmark_for(part: Part, plan: EpisodePlan) -> ManiSkillBenchmark:
    settings = part.settings
    return _benchmark(plan.task, plan.views, settings.image_size, settings.random_cameras, settings.nuisances)


@functools.cache
def _benchmark(*arguments) -> ManiSkillBenchmark:  # type: ignore[no-untyped-def]
    """One simulator a process, task and set of cameras: they take long to make."""
    return ManiSkillBenchmark(*arguments)
