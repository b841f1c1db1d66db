"""A policy behind an address: websockets and msgpack, as the clients of openpi speak them (`eval.wire`).

Every connection is a client with an episode of its own. Limits hold for each of them, so that a broken or hostile one
costs a bounded amount of memory and no other client its answer.
"""

import asyncio
import hmac
import http
import logging
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import numpy as np
from websockets.asyncio.server import Server, ServerConnection
from websockets.asyncio.server import serve as listen
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response
from websockets.protocol import State

from core.policy import Policy
from core.run import say
from eval.batching import Answer, Batcher, BatchPolicy, Episode, SinglePolicy
from eval.serving_settings import (
    ServingConfig,
    cannot_listen,
    facts_of,
    introduction,
    is_loopback,
    read_token,
    require_fit,
)
from eval.wire import WireError, pack, read_request, unpack

BEGUN_BYTES = 4096
"""More than the pings that may come while no message does."""
HANDSHAKE_S, FAREWELL_S = 5.0, 2.0


class PolicyServer:
    """Serves one policy."""

    def __init__(self, policy: Policy, config: ServingConfig) -> None:
        """Read the token.

        Raises:
            ServingError: there is none in the file.
        """
        self.can_batch = isinstance(policy, BatchPolicy)
        served: BatchPolicy | SinglePolicy = policy if isinstance(policy, BatchPolicy) else SinglePolicy(policy)
        self.config, self.facts = config, facts_of(policy, config)
        self.max_clients = config.max_clients if self.can_batch else 1
        self._token = read_token(config.token_file)
        self._batcher = Batcher(served, config.max_batch, config.gather_ms / 1000)
        self._seats: set[ServerConnection] = set()

    async def run(self, stop: asyncio.Event, on_ready: Callable[[str], None]) -> None:
        """Serve until `stop` is set; `on_ready` is told the address once clients can come.

        Raises:
            ServingError: the port is taken or the host is none of this machine.
        """
        server = await self._listen()
        port = next(iter(server.sockets)).getsockname()[1]
        on_ready(f"ws://{f'[{self.config.host}]' if ':' in self.config.host else self.config.host}:{port}")
        answering, stopping = asyncio.create_task(self._batcher.run()), asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([answering, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            server.close()
            farewell = asyncio.create_task(server.wait_closed())
            await asyncio.wait([farewell], timeout=FAREWELL_S)
        if answering.done():
            answering.result()  # only ever ends by an error

    async def _listen(self) -> Server:
        config = self.config
        try:
            return await listen(
                self._attend,
                config.host,
                config.port,
                process_request=self._admit,
                create_connection=_Connection,
                # Browsers say where a page comes from: none of them may talk to a server on its visitor's machine.
                origins=[None],
                compression=None,
                max_size=self.facts.max_message_bytes,
                max_queue=1,
                open_timeout=HANDSHAKE_S,
                close_timeout=FAREWELL_S,
                ping_timeout=60.0,
                server_header=None,
                logger=_logger(),
            )
        except OSError as error:
            raise cannot_listen(config, error) from None

    def _admit(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        """Health, token and number of clients, before a connection becomes one."""
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        given = ", ".join(request.headers.get_all("Authorization"))
        if self._token and not hmac.compare_digest(given.encode(errors="replace"), f"Api-Key {self._token}".encode()):
            return connection.respond(
                http.HTTPStatus.UNAUTHORIZED, "this server asks for a token: Authorization: Api-Key TOKEN\n"
            )
        self._seats = {seated for seated in self._seats if seated.state is not State.CLOSED}
        if len(self._seats) >= self.max_clients:
            return connection.respond(
                http.HTTPStatus.SERVICE_UNAVAILABLE,
                f"all {self.max_clients} places are taken; "
                + ("raise max_clients\n" if self.can_batch else "this policy holds one episode at a time\n"),
            )
        self._seats.add(connection)
        return None

    async def _attend(self, connection: ServerConnection) -> None:
        """One client, from greeting to farewell."""
        assert isinstance(connection, _Connection)
        episode = Episode()
        self._batcher.clients += 1
        try:
            await connection.send(pack(self.facts.model_dump(mode="json")))
            while True:
                message = await connection.next_message(self.config.idle_s, self.config.message_s)
                answer = await self._answer(message, episode)
                async with asyncio.timeout(self.config.message_s):
                    await connection.send(answer)
        except ConnectionClosed:
            return
        except TimeoutError:
            await connection.close(CloseCode.POLICY_VIOLATION, "too slow: see idle_s and message_s of the server")
        finally:
            self._batcher.clients -= 1

    async def _answer(self, message: str | bytes, episode: Episode) -> str | bytes:
        """Actions as bytes, or what is wrong as text."""
        if isinstance(message, str):
            return "a request is a msgpack map in a binary frame, this was a text frame"
        try:
            request = read_request(unpack(message))
            require_fit(request.observation, self.facts)
            answer = await self._batcher.ask(request, episode)
            return packed(answer) if answer.problem is None else sentence(answer.problem)
        except WireError as error:
            return str(error)


class _Connection(ServerConnection):
    """Tells a client that says nothing from one that is in the middle of a request, and how long for."""

    _received = 0
    _limit: asyncio.Timeout | None = None
    _message_s = 0.0

    async def next_message(self, idle_s: float, message_s: float) -> str | bytes:
        """The next message.

        Raises:
            TimeoutError: none began within `idle_s`, or it took longer than `message_s`.
        """
        self._message_s = message_s
        async with asyncio.timeout(message_s if self._received > BEGUN_BYTES else idle_s) as self._limit:
            message = await self.recv()
        self._received, self._limit = 0, None
        return message

    def data_received(self, data: bytes) -> None:
        """Some bytes, of a message or a ping."""
        had_begun = self._received > BEGUN_BYTES
        self._received += len(data)
        if self._limit is not None and self._received > BEGUN_BYTES and not had_begun:
            self._limit.reschedule(self.loop.time() + self._message_s)
        super().data_received(data)


def serve(policy: Policy, config: ServingConfig) -> None:
    """Serve until Ctrl-C or SIGTERM; a second one ends the process at once.

    Raises:
        ServingError: the token cannot be read or the port is taken.
    """
    server = PolicyServer(policy, config)
    if not is_loopback(config.host) and not config.token_file:
        say(f"WARNING: everyone who reaches {config.host} can use this policy; give --token_file FILE")

    async def main() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()

        def ask_to_stop() -> None:
            stop.set()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ask_to_stop)
        await server.run(stop, lambda address: say(introduction(server.facts, address)))
        say("serve_policy: stopped")

    asyncio.run(main())


@contextmanager
def served(policy: Policy, config: ServingConfig) -> Iterator[str]:
    """The address of a server in a thread of this process, which ends with the block."""
    server, stop, loop = PolicyServer(policy, config), asyncio.Event(), asyncio.new_event_loop()
    ready: Future[str] = Future()

    def work() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(server.run(stop, ready.set_result))

    with ThreadPoolExecutor(1, thread_name_prefix="server") as thread:
        working = thread.submit(work)
        awaited: list[Future[Any]] = [ready, working]
        wait(awaited, return_when=FIRST_COMPLETED)
        if working.done():
            working.result()
        try:
            yield ready.result()
        finally:
            loop.call_soon_threadsafe(stop.set)


def packed(answer: Answer) -> bytes:
    """Actions and what they took."""
    assert answer.chunk is not None
    timing: dict[str, Any] = {"infer_ms": answer.infer_ms, "batch": answer.batch}
    return pack({"actions": np.asarray(answer.chunk.actions), "server_timing": timing})


def sentence(problem: BaseException) -> str:
    """What went wrong in the policy, for a client; what it was not made to say is also said here."""
    if isinstance(problem, ValueError):
        return str(problem)
    if isinstance(problem, KeyError) and problem.args:
        return str(problem.args[0])
    said = f"{type(problem).__name__}: {problem}"
    say(f"serve_policy: the policy failed: {said}")
    return f"the policy failed: {said}"


def _logger() -> logging.Logger:
    """One that keeps silent about connections that fail before they are clients, of which anyone can make many."""
    logger = logging.getLogger("eval.serving")
    logger.filters = [lambda record: "handshake" not in record.msg]
    return logger
