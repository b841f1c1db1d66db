"""Whatever clients send, or leave half sent, the server answers the others, and its memory stays what it was."""

import os
import socket
import struct
import time
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
from stand_in_server import StandIn, picture, server_process
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from eval.remote import RemoteError, RemotePolicy
from eval.serving import served
from eval.serving_settings import ServingConfig
from eval.speed.server import memory_mib
from eval.wire import pack, unpack

MESSAGES, TOKEN = 1200, "s3cret"
LIMIT_MIB, PATIENCE_S = 0.25, 60.0
VALID = {"images": picture(7, 16).images, "proprioception": np.zeros(3), "instruction": "push", "seed": 1}
WRONG = (None, True, -1, 2**63, 1.5, float("nan"), "text", b"bytes", [], [[1]], {}, {"a": {}}, np.zeros(0), np.zeros(2))
HUGE = (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc9\xff")


@contextmanager
def client(address: str, token: str = TOKEN):
    """A connection after its greeting."""
    headers = {"Authorization": f"Api-Key {token}"}
    with connect(address, additional_headers=headers, compression=None, close_timeout=1) as connection:
        connection.recv(PATIENCE_S)
        yield connection


def frame(payload: bytes, opcode: int = 2, is_last: bool = True, length: int | None = None) -> bytes:
    """A masked frame, which may lie about its length."""
    head = bytes([opcode | (0x80 if is_last else 0), 0xFF])
    return head + struct.pack("!Q", len(payload) if length is None else length) + b"\0\0\0\0" + payload


def damaged(draws: np.random.Generator) -> bytes:
    """A valid request with some bytes changed, taken away or put in."""
    data = bytearray(pack(VALID))
    for _ in range(int(draws.integers(1, 6))):
        place, kind = int(draws.integers(len(data))), draws.integers(3)
        if kind == 0:
            data[place] = int(draws.integers(256))
        elif kind == 1:
            del data[place : place + int(draws.integers(1, 9))]
        else:
            data[place:place] = draws.bytes(int(draws.integers(1, 9)))
    return bytes(data)


def wrong(draws: np.random.Generator) -> bytes:
    """A valid request but for one value, or with one more."""
    key = [*VALID, "prompt", "observation/front", "reset", "else"][int(draws.integers(8))]
    return pack(VALID | {key: WRONG[int(draws.integers(len(WRONG)))]})


def text(draws: np.random.Generator) -> str:
    return "".join(map(chr, draws.integers(32, 0xD000, int(draws.integers(50)))))


def bombs(draws: np.random.Generator) -> bytes:
    """Declares more than there is, or nests it deep."""
    huge = HUGE[int(draws.integers(len(HUGE)))]
    deep = (b"\x91", b"\x81\xa1a", b"\xdc\x01\x00")[int(draws.integers(3))] * int(draws.integers(1, 20_000))
    return (b"\x81\xa1a", b"")[int(draws.integers(2))] + (huge, deep)[int(draws.integers(2))]


MESSAGES_OF = {
    "damaged": damaged,
    "wrong": wrong,
    "text": text,
    "bombs": bombs,
    "noise": lambda draws: draws.bytes(int(draws.integers(400))),
    "oversized": lambda draws: bytes(int(LIMIT_MIB * 2**20) + int(draws.integers(1, 9))),
}


def out_of_order(draws: np.random.Generator) -> bytes:
    """Frames that the protocol of websockets does not allow, or that come when they should not."""
    whole = pack(VALID)
    choices = (
        frame(whole, opcode=0),
        frame(whole[:50], is_last=False) + frame(whole[50:]),
        frame(whole, opcode=int(draws.integers(3, 8))),
        frame(b"x" * 200, opcode=9),
        frame(b"\x03", opcode=8),
        frame(b"\xff\xfe", opcode=1),
        frame(whole, length=2**63 + 1),
        bytes([0x82, 5]) + b"naked",
        draws.bytes(100),
        frame(whole) * 6,
    )
    return choices[int(draws.integers(len(choices)))]


def stalled(draws: np.random.Generator) -> bytes:
    """The beginning of a frame."""
    whole = frame(bytes(int(LIMIT_MIB * 2**20) - 20))
    return whole[: int(draws.integers(1, len(whole)))]


def send_all(address: str, kind: str, draws: np.random.Generator, number: int) -> int:
    """Send that many messages of a kind, on new connections where one is closed; answers how many were answered."""
    sent = answered = 0
    while sent < number:
        with client(address) as connection:
            try:
                while sent < number:
                    sent += 1
                    connection.send(MESSAGES_OF[kind](draws))
                    assert isinstance(connection.recv(PATIENCE_S), bytes | str)
                    answered += 1
            except ConnectionClosed:
                continue
    return answered


def below_websockets(address: str) -> socket.socket:
    """A connection that the server takes for a client, on which any bytes can be sent."""
    opened = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), PATIENCE_S)
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nHost: a\r\n"
    key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    opened.sendall(f"GET / HTTP/1.1\r\n{upgrade}{key}Authorization: Api-Key {TOKEN}\r\n\r\n".encode())
    assert opened.recv(4096).startswith(b"HTTP/1.1 101 ")
    return opened


def send_raw(address: str, make, draws: np.random.Generator, number: int, kept: ExitStack) -> None:
    """Send bytes below the websocket, each on a connection of its own; some are left open."""
    for place in range(number):
        opened = below_websockets(address)
        opened.sendall(make(draws))
        if place % 4:
            opened.close()
        else:
            kept.enter_context(opened)


def handshakes(address: str, draws: np.random.Generator, number: int, kept: ExitStack) -> None:
    """Connections that never become clients: a wrong token, no HTTP, too much of it, silence."""
    port = int(address.rpartition(":")[2])
    for place in range(number):
        if place % 4 == 0:
            with pytest.raises(InvalidStatus, match="401"), client(address, draws.bytes(8).hex()):
                pass
            continue
        opened = kept.enter_context(socket.create_connection(("127.0.0.1", port)))
        opened.sendall((draws.bytes(200), b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 500, b"")[place % 3])


def fuzz(address: str, draws: np.random.Generator, number: int) -> dict[str, int]:
    """Send about so many messages of all kinds; answers how many of each were answered."""
    share = number // (len(MESSAGES_OF) + 3)
    with ExitStack() as kept:
        send_raw(address, stalled, draws, share, kept)
        handshakes(address, draws, share, kept)
        send_raw(address, out_of_order, draws, share, kept)
        answered = {kind: send_all(address, kind, draws, share) for kind in MESSAGES_OF}
        require_alive(address)
    return answered


def require_alive(address: str) -> None:
    """A valid client is answered rightly."""
    policy, here = RemotePolicy(address, TOKEN), StandIn()
    for one in (policy, here):
        one.reset("push", 5)
    for _ in range(3):
        np.testing.assert_array_equal(policy.act(picture(9)).actions, here.act(picture(9)).actions)
    policy.close()


def test_a_server_outlives_a_thousand_bad_messages_and_takes_no_more_memory(tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    limits = {"max_message_mib": LIMIT_MIB, "message_s": 2.0, "max_clients": 200, "token_file": str(tmp_path / "token")}
    draws = np.random.default_rng(0)
    with server_process(**limits) as (process, address):
        fuzz(address, draws, MESSAGES // 4)
        before = memory_mib(process.pid)
        answered = fuzz(address, draws, MESSAGES)
        after = memory_mib(process.pid)
        assert process.poll() is None
        process.terminate()
        process.wait(timeout=60)
        said = process.stderr.read()
    share = MESSAGES // (len(MESSAGES_OF) + 3)
    # One message too large ends its connection; what is merely wrong never does.
    assert answered == dict.fromkeys(MESSAGES_OF, share) | {"oversized": 0}
    assert after < before + 8
    assert "Traceback" not in said


def limits(**changes) -> ServingConfig:
    return ServingConfig(**{"port": 0, "gather_ms": 0.0} | changes)


def test_a_message_that_is_too_large_ends_its_connection_alone():
    with served(StandIn(), limits(max_message_mib=0.01)) as address, client(address) as other:
        with client(address) as connection:
            connection.send(bytes(20_000))
            with pytest.raises(ConnectionClosed, match="1009"):
                connection.recv(PATIENCE_S)
        other.send(pack(VALID))
        assert unpack(other.recv(PATIENCE_S))["actions"].shape == (2, 3)


def test_places_are_limited_and_given_again():
    with served(StandIn(), limits(max_clients=3)) as address:
        for _ in range(3):
            with ExitStack() as held:
                for _ in range(3):
                    held.enter_context(client(address))
                with pytest.raises(RemoteError, match="all 3 places are taken; raise max_clients"):
                    RemotePolicy(address)
        require_alive(address)


def test_a_client_that_says_nothing_is_sent_away():
    sent_away = pytest.raises(ConnectionClosed, match="too slow: see idle_s and message_s")
    with served(StandIn(), limits(idle_s=0.3)) as address, client(address) as connection, sent_away:
        connection.recv(PATIENCE_S)


def test_a_client_that_asks_now_and_then_stays():
    with served(StandIn(), limits(idle_s=8.0)) as address, client(address) as connection:
        for _ in range(6):  # together longer than a silence may be; each with seconds to spare on a busy machine
            time.sleep(1.5)
            connection.send(pack(VALID))
            assert unpack(connection.recv(PATIENCE_S))["actions"][0, 0] == 7


def wait_for_the_end(connection, meanwhile: bytes) -> None:
    """Send some bytes ten times a second until the connection is closed."""
    for _ in range(int(PATIENCE_S / 0.1)):
        try:
            connection.recv(0.1)
        except TimeoutError:
            connection.socket.sendall(meanwhile)


@pytest.mark.parametrize("is_trickling", [False, True])
def test_a_request_that_takes_too_long_to_arrive_ends_its_connection(is_trickling):
    with served(StandIn(), limits(idle_s=600.0, message_s=1.0)) as address, client(address) as connection:
        connection.socket.sendall(frame(bytes(9_000), length=100_000))
        with pytest.raises(ConnectionClosed, match=r"too slow|no close frame"):
            wait_for_the_end(connection, b"x" * is_trickling)


def test_a_request_in_pieces_is_read_whole():
    with served(StandIn(), limits()) as address, client(address) as connection:
        whole = pack(VALID)
        connection.send([whole[:10], whole[10:700], whole[700:]])
        assert unpack(connection.recv(PATIENCE_S))["actions"][0, 0] == 7


def test_requests_sent_ahead_are_answered_in_their_order():
    with served(StandIn(), limits()) as address, client(address) as connection:
        for _ in range(20):
            connection.send(pack(VALID))
        steps = [unpack(connection.recv(PATIENCE_S))["actions"][0, 1] for _ in range(20)]
    assert steps == list(range(1, 21))


def test_half_sent_requests_are_dropped_from_memory():
    with server_process(message_s=1.0, max_message_mib=8.0) as (process, address), ExitStack() as kept:
        require_alive(address)
        before = memory_mib(process.pid)
        for _ in range(12):
            kept.enter_context(below_websockets(address)).sendall(frame(os.urandom(4 * 2**20), length=5 * 2**20))
        until = time.monotonic() + PATIENCE_S
        while memory_mib(process.pid) > before + 24 and time.monotonic() < until:
            time.sleep(0.2)
        assert memory_mib(process.pid) <= before + 24
        require_alive(address)
