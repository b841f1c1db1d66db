"""What a server of a policy costs: time of a call beside a call in this process, and many clients for a while."""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from core.benchmark.running import Numbers
from core.benchmark.timing import Timing, in_turn, seconds_of
from core.policy import ActionChunk, Observation
from core.spaces import END_EFFECTOR_DELTA
from eval.policy_process import PolicyProcess
from eval.remote import RemoteError, RemotePolicy
from eval.serving_settings import ServingConfig
from eval.speed.sizes import Actor, Sizes

HERE, THERE = "in this process", "through a server"
WARM_UP_CALLS, SHARES, TARGET_MS = 20, (0.5, 0.95, 0.99), 2.0


class Overhead(NamedTuple):
    """Of single calls, taken in turn."""

    here: Timing
    """In this process."""
    there: Timing
    """Through a server in another process."""

    def ms(self, share: float) -> float:
        """How much later so large a share of the calls is answered through the server, in milliseconds."""
        return 1000 * (self.there.quantile_s(share) - self.here.quantile_s(share))


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

    @property
    def settled_and_late_mib(self) -> tuple[float, float]:
        """The most memory in the first quarter and in the last sixth of the time; much more late: it grows."""
        seen = len(self.memory_mib)
        return max(self.memory_mib[: max(1, seen // 4)]), max(self.memory_mib[-max(1, seen // 6) :])


class StillPolicy:
    """Answers zeros at once, so that what is measured is the server."""

    cameras, action_space, fingerprint, horizon = ("front",), END_EFFECTOR_DELTA, "still", 16

    def __init__(self, path: str = "") -> None:
        """There is nothing to load."""

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


def running_server() -> PolicyProcess:
    """A server of a `StillPolicy`, on a free port of this machine only."""
    return PolicyProcess(f"{__name__}:StillPolicy", "still", ServingConfig(port=0))


def server_overhead(sizes: Sizes, actor: Actor, numbers: Numbers) -> Iterator[str]:
    """A call of a policy that answers at once, through a server and in this process; one picture of 224 x 224."""
    found = overhead(sizes.calls, max(2, sizes.rounds))
    yield f"  milliseconds{'':29}{'p50':>9}{'p95':>9}{'p99':>9}{'calls':>7}"
    for name, timing in ((HERE, found.here), (THERE, found.there)):
        row = [1000 * timing.quantile_s(share) for share in SHARES]
        numbers[name] = dict(zip(("p50", "p95", "p99"), row, strict=True)) | {"calls": len(timing.calls)}
        yield f"  {name:39}" + "".join(f"{each:9.3f}" for each in row) + f"{len(timing.calls):7d}"
    row = [found.ms(share) for share in SHARES]
    numbers["difference"] = dict(zip(("p50", "p95", "p99"), row, strict=True))
    yield f"  {'difference':39}" + "".join(f"{each:9.3f}" for each in row) + f"  (target: p50 below {TARGET_MS:g})"


def crowded_server(sizes: Sizes, actor: Actor, numbers: Numbers) -> Iterator[str]:
    """Many clients of one server at once, each asking again as soon as it is answered; one picture of 224 x 224."""
    found = crowd(sizes.clients, sizes.crowd_s)
    numbers |= found._asdict()
    yield f"  {sizes.clients} clients for {sizes.crowd_s:g} s"
    yield f"  answers: {found.answers}, {found.answers_per_s:.0f} a second"
    yield f"  until an answer: p50 {found.p50_ms:.1f} ms, p95 {found.p95_ms:.1f} ms"
    yield f"  errors: {len(found.errors)}" + "".join(f"\n    {error}" for error in found.errors[:3])
    settled, late = found.settled_and_late_mib
    numbers["settled and late memory"] = settled, late
    yield f"  memory of the server, highest: {settled:.0f} MiB while it settled, {late:.0f} MiB at the end"


def overhead(calls: int = 500, rounds: int = 3, side: int = 224) -> Overhead:
    """What one client waits longer for an answer to one square image than in its own process."""
    observation = image(side)
    with running_server() as server:
        near, far = StillPolicy(), RemotePolicy(server.address)
        far.reset("push the cube", 0)
        for _ in range(WARM_UP_CALLS):
            far.act(observation)
        ways = {HERE: partial(near.act, observation), THERE: partial(far.act, observation)}
        found = in_turn(ways, time.perf_counter, rounds, dict.fromkeys(ways, calls))
        far.close()
    return Overhead(found[HERE], found[THERE])


def crowd(clients: int = 64, seconds: float = 60.0, side: int = 224) -> Crowd:
    """That many clients of one server, each asking again as soon as it is answered."""
    observation, times, errors, memory = image(side), list[float](), list[str](), list[float]()

    def ask(address: str, number: int, until: float) -> None:
        try:
            policy = RemotePolicy(address)
            policy.reset(f"task {number}", number)
            while time.monotonic() < until:
                times.append(1000 * seconds_of(lambda: policy.act(observation), time.perf_counter))
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


def image(side: int) -> Observation:
    """Noise of one camera."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Observation(images={"front": pixels})


def memory_mib(pid: int) -> float:
    """Memory of a process that is in use now (Linux)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
