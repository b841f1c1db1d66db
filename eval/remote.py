"""A policy behind an address, as if it were here; needs neither torch nor the policy's weights."""

import time
from contextlib import ExitStack
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus, InvalidURI, WebSocketException
from websockets.sync.client import ClientConnection, connect

from core.policy import ActionChunk, Observation
from eval.wire import OPTIONAL_FACTS, ServerFacts, WireError, pack, unpack

OPEN_S, RETRY_S, FAREWELL_S = 10.0, 0.2, 2.0
MAX_ANSWER_BYTES = 64 * 2**20


class RemoteError(RuntimeError):
    """A server that cannot be reached, is gone, or does not answer what it was asked."""


class _NotYetError(RemoteError):
    """There may be a server in a moment."""


class RemotePolicy:
    """A `core.policy.Policy` that scripts/serve_policy.py serves, on a connection and with an episode of its own.

    A connection that is lost ends the episode with an error, because the server forgets what it remembered of it; the
    next `reset` connects again.
    """

    control_hz: float
    """Control steps a second that it was trained at; only there where the server says so."""
    image_size: int
    """Pixels along a side of the images that it sees; only there where the server says so."""
    horizon: int
    """Actions of a chunk; only there where the server says so."""
    proprioception_dims: int
    """Numbers of the proprioception that it reads; only there where the server says so."""
    temperature: float
    """Of what it draws its tokens at; only there where the server says so."""

    def __init__(self, address: str, token: str | None = None, timeout_s: float = 60.0, wait_s: float = 0.0) -> None:
        """Connect.

        Args:
            address: ws://HOST:PORT, or HOST:PORT.
            token: the server's secret, where it asks for one.
            timeout_s: for an answer.
            wait_s: how long to try again where nobody answers yet, here and in `reset`.

        Raises:
            RemoteError: there is no server, or it does not let us in.
        """
        self.address = address if "://" in address else f"ws://{address}"
        self._token, self._timeout_s, self._wait_s = token, timeout_s, wait_s
        self._start: dict[str, Any] | None = None
        self._open = ExitStack()
        self.facts = self._connect()
        self.fingerprint, self.cameras = self.facts.fingerprint, self.facts.cameras
        self.action_space = self.facts.action_space
        for name in OPTIONAL_FACTS:
            if (value := getattr(self.facts, name)) is not None:
                setattr(self, name, value)

    def reset(self, instruction: str, seed: int) -> None:
        """Start an episode, on a new connection where the last was lost; the server hears of it with the first `act`.

        Raises:
            RemoteError: there is no server, or another policy than before.
        """
        if self._connection.close_code is not None:
            before, limit = self.facts, "max_message_bytes"
            facts = self._connect()
            if changed := [line for line in facts.changed_from(before) if not line.startswith(limit)]:
                self.close()
                raise RemoteError(f"{self.address} serves another policy than before: {'; '.join(changed)}")
            self.facts = facts
        self._start = {"instruction": instruction, "seed": seed, "reset": True}

    def act(self, observation: Observation) -> ActionChunk:
        """The next chunk of actions.

        Raises:
            RemoteError: the connection was lost, no answer came in time, or the policy refused; the message says why.
        """
        message: dict[str, Any] = {"images": dict(observation.images)} | (self._start or {})
        if observation.proprioception is not None:
            message["proprioception"] = observation.proprioception
        data = pack(message)
        if len(data) > self.facts.max_message_bytes:
            raise RemoteError(
                f"the observation has {len(data)} bytes, {self.address} takes {self.facts.max_message_bytes}; send "
                "smaller images or start the server with a larger --max_message_mib"
            )
        answer = self._ask(data)
        self._start = None
        return ActionChunk(actions=self._actions(answer), action_space=self.action_space)

    def close(self) -> None:
        """Leave the server."""
        self._open.close()

    def _ask(self, data: bytes) -> dict[str, Any]:
        try:
            self._connection.send(data)
            answer = self._connection.recv(self._timeout_s)
        except TimeoutError:
            self.close()  # its late answer would be taken for that to another question
            raise RemoteError(f"{self.address} did not answer within {self._timeout_s:g} s") from None
        except ConnectionClosed as error:
            raise RemoteError(
                f"the connection to {self.address} was lost ({error}); the episode cannot go on, `reset` starts another"
            ) from None
        if isinstance(answer, str):
            raise RemoteError(f"{self.address} answers: {answer}")
        try:
            return unpack(answer)
        except WireError as error:
            raise RemoteError(f"{self.address} answered what is no message: {error}") from None

    def _actions(self, answer: dict[str, Any]) -> np.ndarray:
        actions = answer.get("actions")
        if not isinstance(actions, np.ndarray) or actions.ndim != 2 or actions.shape[1] != self.action_space.dims:
            shape = actions.shape if isinstance(actions, np.ndarray) else type(actions).__name__
            raise RemoteError(f"{self.address} answered actions {shape}, not (horizon, {self.action_space.dims})")
        return actions

    def _connect(self) -> ServerFacts:
        until = time.monotonic() + self._wait_s
        while True:
            try:
                return self._greeted()
            except _NotYetError as error:
                if time.monotonic() > until:
                    raise RemoteError(str(error)) from None
                time.sleep(RETRY_S)

    def _greeted(self) -> ServerFacts:
        """Connect once, and hear what the policy is."""
        self._open.close()
        try:
            self._connection: ClientConnection = self._open.enter_context(
                connect(
                    self.address,
                    additional_headers={"Authorization": f"Api-Key {self._token}"} if self._token else None,
                    compression=None,
                    open_timeout=OPEN_S,
                    ping_interval=None,  # `timeout_s` sees to it
                    close_timeout=FAREWELL_S,
                    max_size=MAX_ANSWER_BYTES,
                    proxy=None,
                )
            )
            greeting = self._connection.recv(OPEN_S)
            if isinstance(greeting, str):
                raise RemoteError(f"{self.address} answers: {greeting}")
            return ServerFacts.read(unpack(greeting))
        except ConnectionRefusedError:
            raise _NotYetError(
                f"nobody listens at {self.address}; start scripts/serve_policy.py there, or correct the address"
            ) from None
        except (ConnectionResetError, InvalidMessage) as error:  # also one that is just being killed
            raise _NotYetError(f"cannot reach a policy server at {self.address}: {error}") from None
        except InvalidStatus as error:
            said = (error.response.body or b"").decode(errors="replace").strip()
            raise RemoteError(f"{self.address} lets nobody in: {error.response.status_code} {said}") from None
        except InvalidURI:
            raise RemoteError(f"{self.address} is no address; it looks like ws://127.0.0.1:8000") from None
        except (OSError, WebSocketException, WireError) as error:
            raise RemoteError(f"cannot reach a policy server at {self.address}: {error}") from None
