"""What a server of a policy costs: time of a call beside a call in this process, and many clients for a while."""

import asyncio
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from core.policy import ActionChunk, Observation
from core.spaces import END_EFFECTOR_DELTA
from eval.remote import RemoteError, RemotePolicy
from eval.serving import PolicyServer
from eval.serving_settings import ServingConfig

WARM_UP_CALLS = 20


class Overhead(NamedTuple):
    """Of single calls, in milliseconds."""

    local_p50_ms: float
    """In this process."""
    remote_p50_ms: float
    """Through a server in another process."""
    p50_ms: float
    """Difference of the medians."""
    p95_ms: float
    """Difference of the 95 % quantiles."""


class Crowd(NamedTuple):
    """What many clients at once came to."""

    answers: int
    errors: tuple[str, ...]
    answers_per_s: float
    p50_ms: float
    """Of the time to an answer."""
    p95_ms: float
    memory_mib: tuple[float, ...]
    """Of the server, once a second after the first."""


class StillPolicy:
    """Answers zeros at once, so that what is measured is the server."""

    cameras, action_space, fingerprint, horizon = ("front",), END_EFFECTOR_DELTA, "still", 16

    def reset(self, instruction: str, seed: int) -> None:
        """Nothing is remembered."""

    def act(self, observation: Observation) -> ActionChunk:
        """Zeros."""
        return ActionChunk(actions=np.zeros((self.horizon, self.action_space.dims)), action_space=self.action_space)

    def start(self, instruction: str, seed: int) -> None:
        """Nothing is remembered."""

    def act_many(self, observations: Sequence[Observation], sessions: Sequence[None]) -> list[ActionChunk]:
        """Zeros for each."""
        return [self.act(observation) for observation in observations]


class Running(NamedTuple):
    """A server in a process of its own."""

    address: str
    pid: int


@contextmanager
def running_server() -> Iterator[Running]:
    """A server of a `StillPolicy`, on a free port of this machine only."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(there,), daemon=True)
    process.start()
    there.close()
    try:
        yield Running(here.recv(), process.pid or 0)
    finally:
        process.terminate()
        process.join()


def overhead(calls: int = 1000, side: int = 224) -> Overhead:
    """What one client waits longer for an answer to one square image than in its own process."""
    observation = image(side)
    with running_server() as server:
        remote = RemotePolicy(server.address)
        far = timed(remote, observation, calls)
        remote.close()
    near = timed(StillPolicy(), observation, calls)
    p50, p95 = (np.percentile(far, q) - np.percentile(near, q) for q in (50, 95))
    return Overhead(float(np.median(near)), float(np.median(far)), float(p50), float(p95))


def crowd(clients: int = 64, seconds: float = 60.0, side: int = 224) -> Crowd:
    """That many clients of one server, each asking again as soon as it is answered."""
    observation, times, errors, memory = image(side), list[float](), list[str](), list[float]()

    def ask(address: str, number: int, until: float) -> None:
        try:
            policy = RemotePolicy(address)
            policy.reset(f"task {number}", number)
            while time.monotonic() < until:
                times.append(1000 * _seconds(lambda: policy.act(observation)))
            policy.close()
        except RemoteError as error:
            errors.append(str(error))

    with running_server() as server:
        until = time.monotonic() + seconds
        threads = [threading.Thread(target=ask, args=(server.address, number, until)) for number in range(clients)]
        for thread in threads:
            thread.start()
        while time.monotonic() < until:
            time.sleep(min(1.0, seconds / 4))
            memory.append(memory_mib(server.pid))
        for thread in threads:
            thread.join()
    p50, p95 = np.percentile(times, [50, 95]) if times else (np.nan, np.nan)
    return Crowd(len(times), tuple(errors), len(times) / seconds, float(p50), float(p95), tuple(memory))


def timed(policy: StillPolicy | RemotePolicy, observation: Observation, calls: int) -> np.ndarray:
    """Milliseconds of each call."""
    policy.reset("push the cube", 0)
    for _ in range(WARM_UP_CALLS):
        policy.act(observation)
    return 1000 * np.array([_seconds(lambda: policy.act(observation)) for _ in range(calls)])


def image(side: int) -> Observation:
    """Noise of one camera."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Observation(images={"front": pixels})


def memory_mib(pid: int) -> float:
    """Memory of a process that is in use now (Linux)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _serve(ready: Connection) -> None:
    server = PolicyServer(StillPolicy(), ServingConfig(port=0))
    asyncio.run(server.run(asyncio.Event(), ready.send))
