"""All measurements in one run: their tables line by line, their numbers as JSON."""

import os
from collections.abc import Collection, Iterator
from functools import partial, wraps

from core.benchmark.running import Numbers, processor, run_measurements
from core.run import versions
from eval.speed.meshes import meshes
from eval.speed.rollouts import rollouts
from eval.speed.server import crowded_server, server_overhead
from eval.speed.sizes import FULL, QUICK, actor

MEASUREMENTS = {1: rollouts, 2: meshes, 3: server_overhead, 4: crowded_server}


def benchmark(
    is_quick: bool, only: Collection[int], out: str | None, *, policy: str, make_policy: str
) -> Iterator[str]:
    """Lines to print while it runs; `only` these measurements (none: all), `out` takes the numbers.

    `make_policy`, an import string, is called with the path `policy`; where that is empty, random actions are taken.

    Raises:
        ValueError: there is no such measurement.
        RuntimeError: an episode failed.
    """
    sizes, acting = QUICK if is_quick else FULL, actor(policy, make_policy)
    measurements = {number: wraps(measure)(partial(measure, sizes, acting)) for number, measure in MEASUREMENTS.items()}
    yield from run_measurements(
        measurements, _machine() | {"policy": policy or "random", "is_quick": is_quick}, only, out
    )


def _machine() -> Numbers:
    known, names = versions(), ("mani-skill", "sapien")
    threads = {name: os.environ.get(name, "not set") for name in ("OMP_NUM_THREADS", "LP_NUM_THREADS")}
    return {"processor": processor(), "cores": os.cpu_count()} | {name: known[name] for name in names} | threads
