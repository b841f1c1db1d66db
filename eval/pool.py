"""Work in processes of their own: one that crashes, hangs or is killed costs the item it was at, and no other."""

import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from core.workers import interrupts_held, left_to_parent

STARTS_WITHIN_S, ENDS_WITHIN_S = 600.0, 10.0


class Done(NamedTuple):
    """An item and what the work made of it."""

    item: Any
    value: Any


class Lost(NamedTuple):
    """An item whose process came to nothing."""

    item: Any
    reason: str


def run_in_processes(
    work: Callable[[Any], Any], items: deque[Any], workers: int, timeout_s: float
) -> Generator[Done | Lost, None, None]:
    """What becomes of each item, in the order in which that is known; items may be added while this goes on.

    Up to `workers` fresh processes call `work`, a function of a module, with one item after the other. A process that
    needs longer than `timeout_s` for one is killed; one that is gone is replaced. All of them end when the generator is
    closed, and with this process, however it ends.
    """
    pool: list[_Worker] = []
    try:
        while True:
            while items and (worker := _idle(pool, workers, work, timeout_s)) is not None:
                worker.begin(items.popleft())
            busy = [worker for worker in pool if worker.is_busy]
            if not busy:
                return
            _wait_for_any(busy)
            for worker in busy:
                outcome = worker.outcome()
                if isinstance(outcome, Lost):
                    pool.remove(worker)
                if outcome is not None:
                    yield outcome
    finally:
        for worker in pool:
            worker.kill()


class _Worker:
    """One process and the item it is at."""

    def __init__(self, work: Callable[[Any], Any], timeout_s: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(work, theirs), daemon=True)
        with interrupts_held():
            self.process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        self.is_busy = False
        self._has_started = False
        self._item: Any = None
        self._timeout_s = timeout_s
        self._deadline = 0.0

    def begin(self, item: Any) -> None:
        """Hand over an item."""
        self._item, self.is_busy = item, True
        self._allow(self._timeout_s if self._has_started else STARTS_WITHIN_S)
        with suppress(OSError):  # it has just ended, as `outcome` will find
            self.pipe.send(item)

    @property
    def seconds_left(self) -> float:
        """Until the item has taken too long."""
        return max(0.0, self._deadline - time.monotonic())

    def outcome(self) -> Done | Lost | None:
        """What became of the item; None as long as it goes on. A worker that lost its item is at an end."""
        try:
            if self.pipe.poll():
                value = self.pipe.recv()
                if not self._has_started:
                    self._has_started = True
                    self._allow(self._timeout_s)
                    return None
                self.is_busy = False
                return Done(self._item, value)
            if self.process.is_alive() and self.seconds_left > 0:
                return None
        except (EOFError, OSError):
            self.process.join(ENDS_WITHIN_S)
        reason = _how_it_ended(self.process.exitcode)
        if self.process.is_alive():
            seconds = self._timeout_s if self._has_started else STARTS_WITHIN_S
            reason = f"there was no result after {seconds:g} s, so its process was killed"
        self.kill()
        return Lost(self._item, reason)

    def _allow(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds

    def kill(self) -> None:
        """End the process at once: nothing that it holds needs care."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _idle(pool: list[_Worker], workers: int, work: Callable[[Any], Any], timeout_s: float) -> _Worker | None:
    """A worker that waits, a new one where there is room, None where all are busy."""
    pool[:] = [worker for worker in pool if worker.is_busy or worker.process.is_alive()]
    idle = next((worker for worker in pool if not worker.is_busy), None)
    if idle is None and len(pool) < workers:
        idle = _Worker(work, timeout_s)
        pool.append(idle)
    return idle


def _wait_for_any(busy: list[_Worker]) -> None:
    ends = [end for worker in busy for end in (worker.pipe, worker.process.sentinel)]
    wait(ends, timeout=min(worker.seconds_left for worker in busy))


def _how_it_ended(code: int | None) -> str:
    if code is None or code >= 0:
        return f"its process ended with status {code}"
    memory = ", often by the system, for lack of memory" if -code == signal.SIGKILL else ""
    return f"its process was killed by signal {-code}{memory}"


def _serve(work: Callable[[Any], Any], pipe: Connection) -> None:
    """The life of a worker."""
    left_to_parent()
    pipe.send("started")  # what an item may take is counted from here
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        pipe.send(work(item))
