"""One policy in a process of its own, which all workers ask; it is begun anew when it is lost."""

import asyncio
import multiprocessing
import pkgutil
import signal
import threading
from multiprocessing.connection import Connection, wait
from types import TracebackType

from core.run import say
from core.workers import interrupts_held, left_to_parent
from eval.serving import PolicyServer
from eval.serving_settings import ServingConfig

STARTS_IN_A_ROW = 5
"""How often a process that is killed before it is ready is begun anew."""
LOOK_EVERY_S = 0.2


class PolicyProcessError(RuntimeError):
    """A policy that cannot be served."""


class PolicyProcess:
    """Serves `make_policy(path)` as long as the `with` block lasts; `address` stays the same when it is begun anew."""

    def __init__(self, make_policy: str, path: str, config: ServingConfig) -> None:
        """Load the policy and wait until it can be asked.

        Raises:
            PolicyProcessError: its process ended before that; why, it has said itself.
        """
        self._make_policy, self._path, self._config = make_policy, path, config
        self._stopping = threading.Event()
        self._problem: PolicyProcessError | None = None
        self.address = self._start()
        self._config = config.model_copy(update={"port": int(self.address.rsplit(":", 1)[1])})
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    @property
    def pid(self) -> int:
        """Of the process that serves it now."""
        assert self._process.pid is not None
        return self._process.pid

    def __enter__(self) -> "PolicyProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        while self._keeper.is_alive():
            self._process.kill()  # also one that is being started right now
            self._keeper.join(LOOK_EVERY_S)
        self._process.kill()
        self._process.join()

    def require_hope(self) -> None:
        """Nothing as long as the policy is served, or about to be again.

        Raises:
            PolicyProcessError: it could not be started again.
        """
        if self._problem is not None:
            raise self._problem

    def _start(self) -> str:
        """The address of a process that can be asked."""
        for _ in range(STARTS_IN_A_ROW):
            address = self._begin()
            if address:
                return address
            if self._stopping.is_set() or self._process.exitcode not in range(-signal.NSIG, 0):
                break
        raise PolicyProcessError(
            f"the server of {self._path} ended before it was ready (status {self._process.exitcode}); its own lines "
            "above say why"
        )

    def _begin(self) -> str:
        """The address of a new process; empty: it ended before it was ready."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        arguments = (self._make_policy, self._path, self._config, theirs)
        process = context.Process(target=_serve, args=arguments, name="policy", daemon=True)
        with interrupts_held():
            process.start()
        self._process = process
        theirs.close()
        with ours:
            try:
                wait([ours, self._process.sentinel])
                return str(ours.recv())
            except EOFError:
                self._process.join()
                return ""

    def _keep(self) -> None:
        while not self._stopping.wait(LOOK_EVERY_S):
            if self._process.is_alive():
                continue
            say(f"evaluate: the server of {self._path} was lost (status {self._process.exitcode}); starting it again")
            try:
                self._start()
            except PolicyProcessError as error:
                self._problem = error
                return


def _serve(make_policy: str, path: str, config: ServingConfig, ready: Connection) -> None:
    """The life of the policy's process."""
    left_to_parent()
    server = PolicyServer(pkgutil.resolve_name(make_policy)(path), config)
    asyncio.run(server.run(asyncio.Event(), ready.send))
