"""A policy behind an address acts as it would here, for one client and for many, and says what is wrong otherwise."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from stand_in_server import OneEpisode, StandIn, picture, server_process
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from core.policy import Observation, Policy
from eval.batching import BatchPolicy
from eval.remote import RemoteError, RemotePolicy
from eval.serving import served
from eval.serving_settings import ServingConfig, ServingError, is_loopback, read_token, require_startable
from eval.wire import pack, unpack

ROOT = Path(__file__).resolve().parents[1]
OPENPI = os.environ.get("MVP_LAM_OPENPI_PYTHON")
SOON = 60_000.0
"""Milliseconds: longer than any client of these tests takes to come."""


def config(**changes) -> ServingConfig:
    return ServingConfig(**{"port": 0, "gather_ms": 0.0} | changes)


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def together(works) -> list:
    """What each answers, all of them run at once."""
    answers = [None] * len(works)

    def run(place, work):
        answers[place] = work()

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


@pytest.fixture(scope="module")
def address():
    with served(StandIn(), config()) as where:
        yield where


def test_a_remote_policy_acts_as_the_policy_itself(address):
    here, there = StandIn(), RemotePolicy(f"127.0.0.1:{port_of(address)}")
    assert isinstance(there, Policy)
    assert isinstance(here, BatchPolicy)
    for name in ("fingerprint", "cameras", "action_space", "horizon", "control_hz", "image_size"):
        assert getattr(there, name) == getattr(here, name)
    for seed in (3, 4):
        for policy in (here, there):
            policy.reset("push the cube", seed)
        for level in (1, 2, 3):
            acted = [policy.act(picture(level, 224)) for policy in (here, there)]
            np.testing.assert_array_equal(acted[0].actions, acted[1].actions)
            assert acted[0].action_space == acted[1].action_space
    there.close()


def test_what_a_policy_does_not_say_a_remote_policy_does_not_say_either():
    with served(OneEpisode(), config()) as where:
        policy = RemotePolicy(where)
        assert not any(hasattr(policy, name) for name in ("control_hz", "image_size", "horizon"))
        assert isinstance(policy, Policy)
        policy.close()


def test_an_episode_goes_on_until_instruction_seed_or_reset_start_another(address):
    image = {"images": picture(1).images, "state": np.zeros(3)}
    steps = []
    with connect(address) as client:
        client.recv()
        for more in (
            {"prompt": "push", "seed": 1},
            {},
            {"prompt": "push"},
            {"seed": 1},
            {"prompt": "pull"},
            {},
            {"seed": 2},
            {"reset": True},
            {"reset": False},
        ):
            client.send(pack(image | more))
            steps.append(unpack(client.recv())["actions"][0, 1])
    assert steps == [1, 2, 3, 4, 1, 2, 1, 1, 2]


def test_an_episode_that_could_not_start_is_forgotten(address):
    policy = RemotePolicy(address)
    policy.reset("push", 1)
    policy.act(picture(1))
    policy.reset("", 2)
    with pytest.raises(RemoteError, match="answers: the instruction is empty"):
        policy.act(picture(1))
    policy._start = None
    with pytest.raises(RemoteError, match="there is no instruction; the first request needs one"):
        policy.act(picture(1))
    policy.reset("push", 1)
    assert policy.act(picture(1)).actions[0, 1] == 1
    policy.close()


def episode(address: str, number: int, steps: int = 4) -> np.ndarray:
    """All actions of an episode that only this number has."""
    policy = RemotePolicy(address)
    policy.reset(f"task {number}", number)
    acted = np.stack([policy.act(picture(number)).actions for _ in range(steps)])
    policy.close()
    return acted


def test_clients_are_answered_together_and_each_as_if_it_were_alone():
    policy = StandIn()
    with served(policy, config(gather_ms=SOON, max_batch=8)) as where:
        clients = [RemotePolicy(where) for _ in range(8)]

        def act(number):
            clients[number].reset(f"task {number}", number)
            return np.stack([clients[number].act(picture(number)).actions for _ in range(4)])

        found = together([lambda number=number: act(number) for number in range(8)])
        for client in clients:
            client.close()
    assert policy.batches == [8] * 4
    with served(StandIn(), config(max_batch=1)) as where:
        for number, actions in enumerate(found):
            np.testing.assert_array_equal(actions, episode(where, number))


def test_more_clients_than_a_batch_holds_are_answered_in_several():
    policy = StandIn()
    with served(policy, config(max_batch=3)) as where:
        found = together([lambda number=number: episode(where, number) for number in range(7)])
    assert max(policy.batches) <= 3
    assert sum(policy.batches) == 7 * 4
    for number, actions in enumerate(found):
        assert actions[:, 0, :2].tolist() == [[number, step] for step in (1, 2, 3, 4)]


class Choosy(StandIn):
    """Fails at images of one level, before any session has changed."""

    def act_many(self, observations, sessions):
        if any(observation.images["front"].mean() == 13 for observation in observations):
            raise ZeroDivisionError("thirteen")
        return super().act_many(observations, sessions)


def test_one_observation_that_fails_in_the_policy_fails_no_other_of_its_batch(capsys):
    with served(Choosy(), config(gather_ms=SOON, max_batch=4)) as where:
        clients = [RemotePolicy(where) for _ in range(4)]

        def act(number):
            clients[number].reset("push", number)
            try:
                return clients[number].act(picture(10 + number)).actions[0].tolist()
            except RemoteError as error:
                return str(error)

        found = together([lambda number=number: act(number) for number in range(4)])
        for client in clients:
            client.close()
    draws = [np.random.default_rng(number).random() for number in range(3)]
    assert found[:3] == [[10 + number, 1, draw] for number, draw in enumerate(draws)]
    assert found[3] == f"{where} answers: the policy failed: ZeroDivisionError: thirteen"
    assert "serve_policy: the policy failed: ZeroDivisionError: thirteen" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("observation", "said"),
    [
        (Observation(images={}), r"sees the cameras \['front'\]; the observation lacks \['front'\]"),
        (Observation(images=picture(1).images), "reads 3 numbers of proprioception, not 0"),
        (Observation(images=picture(1).images, proprioception=np.zeros(4)), "reads 3 numbers of proprioception, not 4"),
        (Observation(images=picture(1).images, proprioception=np.full(3, np.inf)), "holds inf at place 0"),
    ],
)
def test_a_wrong_observation_is_refused_and_the_episode_goes_on(address, observation, said):
    policy = RemotePolicy(address)
    policy.reset("push", 1)
    policy.act(picture(1))
    with pytest.raises(RemoteError, match=said):
        policy.act(observation)
    assert policy.act(picture(1)).actions[0, 1] == 2
    policy.close()


def test_a_policy_that_holds_one_episode_has_one_client_at_a_time():
    with served(OneEpisode(), config()) as where:
        first = RemotePolicy(where)
        with pytest.raises(RemoteError, match="503 all 1 places are taken; this policy holds one episode at a time"):
            RemotePolicy(where)
        first.reset("push", 1)
        assert first.act(picture(5)).actions[0, :2].tolist() == [5, 1]
        first.close()
        episode(where, 3)


def test_a_token_is_asked_for_and_health_is_not(tmp_path):
    (tmp_path / "token").write_text("s3cret\n")
    with served(StandIn(), config(token_file=str(tmp_path / "token"))) as where:
        for token in (None, "s3cre", "s3cret2", "é"):
            with pytest.raises(RemoteError, match="lets nobody in: 401 this server asks for a token"):
                RemotePolicy(where, token)
        RemotePolicy(where, "s3cret").close()
        for path, status in (("healthz", 200), ("", 401)):
            request = socket.create_connection(("127.0.0.1", port_of(where)))
            upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            request.sendall(f"GET /{path} HTTP/1.1\r\nHost: a\r\n{upgrade}{key}\r\n".encode())
            assert request.recv(100).startswith(f"HTTP/1.1 {status} ".encode())
            request.close()


def test_health_answers_a_plain_request_and_pages_of_browsers_are_kept_out(address):
    port = port_of(address)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=30) as page:
        assert page.read() == b"OK\n"
    with pytest.raises(InvalidStatus, match="403"), connect(address, origin="http://127.0.0.1"):
        pass


def test_an_address_that_cannot_be_had_says_which_and_what_to_do(address, tmp_path):
    port = port_of(address)
    for start in (require_startable, lambda asked: served(StandIn(), asked).__enter__()):
        with pytest.raises(ServingError, match=f"port {port} of 127.0.0.1 .[Aa]ddress already in use.*another --port"):
            start(config(port=port))
        with pytest.raises(ServingError, match=r"port 0 of 192\.0\.2\.1"):
            start(config(host="192.0.2.1"))
        with pytest.raises(ServingError, match="there is no token file"):
            start(config(token_file=str(tmp_path / "none")))
    require_startable(config())
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ServingError, match="holds no token"):
        read_token(str(tmp_path / "empty"))


def test_only_loopback_needs_no_token():
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.2", "robot.local", "")))


def test_a_server_that_is_not_there_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(RemoteError, match=f"nobody listens at ws://127.0.0.1:{port}; start scripts/serve_policy"):
        RemotePolicy(f"127.0.0.1:{port}")
    with pytest.raises(RemoteError, match="is no address; it looks like ws://"):
        RemotePolicy("http://127.0.0.1:1")


def test_a_server_that_thinks_for_too_long_is_given_up_and_asked_anew():
    with served(StandIn(seconds=1.0), config()) as where:
        policy = RemotePolicy(where, timeout_s=0.1)
        policy.reset("push", 1)
        with pytest.raises(RemoteError, match=r"did not answer within 0\.1 s"):
            policy.act(picture(1))
        with pytest.raises(RemoteError, match="was lost"):
            policy.act(picture(1))
        policy._timeout_s = 60.0
        policy.reset("push", 1)
        assert policy.act(picture(9)).actions[0, :2].tolist() == [9, 1]
        policy.close()


def test_a_server_that_dies_ends_the_episode_and_the_next_one_finds_its_successor():
    with server_process() as (process, where):
        policy = RemotePolicy(where, wait_s=60.0)
        policy.reset("push", 1)
        policy.act(picture(1))
        process.kill()
        with pytest.raises(RemoteError, match=r"was lost .*; the episode cannot go on, `reset` starts another"):
            policy.act(picture(1))
    with server_process(port=port_of(where)):
        policy.reset("push", 1)
        assert policy.act(picture(2)).actions[0, :2].tolist() == [2, 1]
    another = pytest.raises(RemoteError, match=r"serves another policy than before: .*horizon: 2 -> None")
    with served(OneEpisode(), config(port=port_of(where))), another:
        policy.reset("push", 1)


def act_for_ever(policy: RemotePolicy) -> None:
    while True:
        policy.act(picture(1))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_that_is_asked_to_stop_sends_its_clients_away(number):
    with server_process(seconds=0.5, host="localhost") as (process, where):
        policy = RemotePolicy(where)
        policy.reset("push", 1)
        threading.Timer(0.2, process.send_signal, [number]).start()
        with pytest.raises(RemoteError, match=r"was lost .*going away"):
            act_for_ever(policy)
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == "serve_policy: stopped\n"


def test_a_server_for_other_machines_without_a_token_warns(tmp_path):
    (tmp_path / "token").write_text("s3cret")
    warnings = []
    for settings in ({}, {"token_file": str(tmp_path / "token")}):
        command = [sys.executable, "tests/stand_in_server.py", json.dumps({"port": 0, "host": "0.0.0.0"} | settings)]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        warnings.append(process.stderr.readline().startswith("WARNING: everyone who reaches 0.0.0.0"))
        process.kill()
        process.communicate()
    assert warnings == [True, False]


def test_an_observation_that_the_server_would_not_take_is_not_sent():
    with served(StandIn(), config(max_message_mib=0.01)) as where:
        policy = RemotePolicy(where)
        policy.reset("push", 1)
        with pytest.raises(RemoteError, match=r"has \d+ bytes, .* takes 10485; send smaller images"):
            policy.act(picture(1, side=100))
        assert policy.act(picture(1, side=10)).actions[0, 1] == 1
        policy.close()


@pytest.mark.skipif(not OPENPI, reason="MVP_LAM_OPENPI_PYTHON names no Python with openpi-client 0.1.2")
def test_openpi_s_own_client_is_answered(tmp_path):
    (tmp_path / "token").write_text("s3cret")
    script = Path(__file__).with_name("openpi_compatibility.py")
    with served(StandIn(), config(token_file=str(tmp_path / "token"))) as where:
        command = [OPENPI, script, "127.0.0.1", str(port_of(where)), "s3cret"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["metadata"]["action_space"]["names"] == ["level", "step", "draw"]
    assert [answer[0][:2] for answer in found["actions"]] == [[7, 1], [7, 2], [7, 1]]
    assert [step[:2] for step in found["steps"]] == [[7, 1], [7, 1], [7, 2]]
    assert "Error in inference server:\nthe policy sees the cameras ['front']" in found["error"]
    assert found["after"][0][:2] == [7, 3]
