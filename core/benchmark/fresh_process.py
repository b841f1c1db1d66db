"""Measuring in a process of its own: a peak of memory cannot be taken back, and what ran before shall not count."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

Answer = TypeVar("Answer")


def in_fresh_process(what: str, work: Callable[..., Answer], *arguments: Any) -> Answer:
    """What `work`, a function of a module, answers to the arguments in a new process; `what` names it in errors.

    The process is forked from a small one, since one that is started afresh inherits the peak of whoever started it.

    Raises:
        RuntimeError: it ended without an answer.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, work, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError(f"measuring {what} ended without an answer; is there enough memory?") from None
    finally:
        process.join()


def _answer(sender: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    sender.send(work(*arguments))
