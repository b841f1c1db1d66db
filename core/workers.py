"""Work shared by several processes, which end with the one that started them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any


class WorkerError(RuntimeError):
    """A worker process that died."""


@contextmanager
def worker_pool(
    workers: int, start: Callable[..., None] | None = None, arguments: tuple[Any, ...] = ()
) -> Iterator[ProcessPoolExecutor]:
    """An executor of `workers` fresh processes with one thread each; `start(*arguments)` runs first in each of them.

    Work that was not begun is dropped when the block ends early.

    Raises:
        WorkerError: a process died, by a signal or for lack of memory.
    """
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, context, _begin, (start, arguments))
    try:
        with interrupts_held():
            for _ in range(workers):
                executor.submit(int)  # each starts a process
        yield executor
    except BrokenProcessPool as error:
        raise WorkerError(
            "a worker process died: it was killed, or memory ran out; the same command goes on where it stopped, "
            "with fewer workers if memory was the reason"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Processes started here do not see Ctrl-C before they let it in: it would end each in a page about its imports."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def left_to_parent() -> None:
    """From here on the parent alone decides when this process ends: Ctrl-C is its to heed, and its end is the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it reaches all of a terminal's processes
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _begin(start: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it at once and silently; what was begun is done again
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Processes fill the cores; threads of libraries in each would only get in their way.
    os.environ |= {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "1"}
    if start is not None:
        start(*arguments)


def _end_with_parent() -> None:
    """A parent that is killed cannot tell its workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
