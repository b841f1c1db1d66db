"""A policy answers many episodes in one pass as it answers each alone, here and behind an address."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import SENTENCES, SMALL, nano

from core.device import default_device
from core.policy import Observation
from core.spaces import END_EFFECTOR_DELTA
from core.statistics import Statistics
from core.vision import EncoderConfig, load_encoder
from eval.batching import BatchPolicy
from eval.remote import RemoteError, RemotePolicy
from eval.serving import served
from eval.serving_settings import ServingConfig
from vla.backbones.interface import Setting
from vla.checkpoint import VlaDescription, make_head, save
from vla.heads.interface import TokenHead
from vla.images import ImageForm
from vla.model import VisionLanguageActionModel
from vla.parts import HEADS, Part, find
from vla.policy import VlaPolicy

ROOT = Path(__file__).resolve().parents[1]
TOWER = EncoderConfig(name="vit_tiny_patch16_224", image_size=32, weights="random", dtype="float32")
OPTIONS = {
    "l1_chunk": {"hidden": 64},
    "l1_pool": {"hidden": 32, "heads": 4},
    "flow": {"hidden": 64},
    "bins": {"bins": 32},
    "fast": {"words": 200},
}
HORIZON, SENSES, STEPS = 4, 2, 3


def saved_policy(name: str, folder: Path) -> Path:
    """A checkpoint with random weights, two cameras and a history."""
    torch.manual_seed(0)
    tower = load_encoder(TOWER, default_device())
    features = {"feature_dim": tower.dim, "grid": tuple(tower.grid)}
    setting = Setting(num_codes=16, num_tokens=4, views=2, **features)
    backbone = nano(setting)
    form = VlaDescription(
        images=ImageForm(encoder=TOWER, encoder_fingerprint=tower.fingerprint, **features),
        views=("front", "side"),
        backbone=Part(name="nano", options=SMALL.model_dump()),
        setting=setting,
        history=2,
        head=Part(name=name, options=OPTIONS[name]),
        horizon=HORIZON,
        action_dims=END_EFFECTOR_DELTA.dims,
        proprioception_dims=SENSES if find(Part(name=name), HEADS).kind.reads_senses else 0,
    )
    draws = np.random.default_rng(0)
    head = make_head(form, backbone)
    if isinstance(head, TokenHead):
        head.fit(draws.uniform(-1, 1, (64, HORIZON, END_EFFECTOR_DELTA.dims)).astype(np.float32))
        head.first_id = backbone.add_tokens(head.names)[0]
    for weights in backbone.language.parameters():
        if weights.ndim == 2:
            weights.data.normal_(std=0.3)  # with fresh ones every episode has the same latent actions
    statistics = {
        "actions": Statistics.of([draws.normal(size=(50, END_EFFECTOR_DELTA.dims)).astype(np.float32)]).to_json(),
        "proprioception": Statistics.of([draws.normal(size=(50, SENSES)).astype(np.float32)]).to_json(),
    }
    facts = {"statistics": statistics, "action_space": END_EFFECTOR_DELTA.model_dump(mode="json"), "control_hz": 10.0}
    save(folder, VisionLanguageActionModel(backbone, head), form, facts)
    return folder


def exact(policy: VlaPolicy) -> VlaPolicy:
    """In float32, where only the last bits depend on the size of a batch."""
    policy.use_bf16 = False
    policy.model.float()
    return policy


@pytest.fixture(scope="module", params=HEADS)
def policy(request, tmp_path_factory) -> VlaPolicy:
    return exact(VlaPolicy(saved_policy(request.param, tmp_path_factory.mktemp(request.param))))


@pytest.fixture(scope="module")
def drawing(tmp_path_factory) -> VlaPolicy:
    """With the head that draws at random."""
    return exact(VlaPolicy(saved_policy("flow", tmp_path_factory.mktemp("drawing"))))


def seen(number: int, step: int) -> Observation:
    draws = np.random.default_rng([number, step])
    images = {view: draws.integers(0, 256, (32, 32, 3), dtype=np.uint8) for view in ("front", "side")}
    return Observation(images=images, proprioception=draws.normal(size=SENSES).astype(np.float32))


def alone(policy: VlaPolicy, number: int) -> tuple[np.ndarray, list]:
    """Actions and last codes of an episode by itself."""
    policy.reset(SENTENCES[number % 3], number)
    actions = np.stack([policy.act(seen(number, step)).actions for step in range(STEPS)])
    return actions, list(policy.session.history)


def test_episodes_answered_together_are_those_answered_alone(policy):
    assert isinstance(policy, BatchPolicy)
    expected = [alone(policy, number) for number in range(3)]
    sessions = [policy.start(SENTENCES[number % 3], number) for number in range(3)]
    for step, groups in enumerate(([[0, 1, 2]], [[2, 1], [0]], [[1, 0, 2]])):
        for group in groups:
            chunks = policy.act_many([seen(number, step) for number in group], [sessions[number] for number in group])
            for number, chunk in zip(group, chunks, strict=True):
                np.testing.assert_allclose(chunk.actions, expected[number][0][step], atol=2e-4)
                assert chunk.action_space == END_EFFECTOR_DELTA
    assert [list(session.history) for session in sessions] == [codes for _, codes in expected]
    assert len({str(codes) for _, codes in expected}) > 1, "the episodes must differ for this to say something"


def test_each_episode_draws_from_its_own_seed(drawing):
    def first(seeds):
        sessions = [drawing.start(SENTENCES[0], seed) for seed in seeds]
        return [chunk.actions for chunk in drawing.act_many([seen(0, 0)] * len(seeds), sessions)]

    one, two, other = first([5, 5, 6])
    np.testing.assert_allclose(one, two, atol=2e-4)
    assert np.abs(one - other).max() > 0.1
    np.testing.assert_allclose(first([6, 5])[1], one, atol=2e-4)


def test_an_observation_that_is_refused_changes_no_episode(drawing):
    sessions = [drawing.start(SENTENCES[0], seed) for seed in (1, 2)]
    without = Observation(images=seen(0, 0).images)
    with pytest.raises(ValueError, match="the observation has none"):
        drawing.act_many([seen(1, 0), without], sessions)
    assert not sessions[0].history
    first = drawing.act_many([seen(1, 0)], sessions[:1])[0].actions
    np.testing.assert_array_equal(first, drawing.act_many([seen(1, 0)], [drawing.start(SENTENCES[0], 1)])[0].actions)


def remote_episodes(address: str, numbers: range) -> list[np.ndarray]:
    """Actions of clients that act at the same time."""
    policies = [RemotePolicy(address) for _ in numbers]
    found: list = [None] * len(numbers)

    def act(number):
        policies[number].reset(SENTENCES[number % 3], number)
        found[number] = np.stack([policies[number].act(seen(number, step)).actions for step in range(STEPS)])

    threads = [threading.Thread(target=act, args=[number]) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for remote in policies:
        remote.close()
    return found


def test_clients_of_a_served_policy_are_answered_as_the_policy_itself_would(drawing):
    expected = [alone(drawing, number)[0] for number in range(3)]
    with served(drawing, ServingConfig(port=0, gather_ms=60_000, max_batch=3)) as address:
        for own, remote in zip(expected, remote_episodes(address, range(3)), strict=True):
            np.testing.assert_allclose(remote, own, atol=2e-4)
    with served(drawing, ServingConfig(port=0, max_batch=1)) as address:
        np.testing.assert_array_equal(remote_episodes(address, range(3)), expected)


@pytest.mark.slow
def test_the_script_serves_a_checkpoint_until_it_is_asked_to_stop(tmp_path):
    folder = saved_policy("flow", tmp_path)
    policy = VlaPolicy(folder)
    command = [sys.executable, "scripts/serve_policy.py", "--policy", str(folder), "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        said = ""
        while "ws://" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        assert f"answers {HORIZON} actions of x, y, z, rx, ry, rz, gripper (delta_end_effector) at 10 Hz" in said
        assert f"it sees front, side (32 px) and 2 numbers of proprioception; policy {policy.fingerprint}" in said
        found = remote_episodes(re.search(r"ws://\S+", said)[0], range(1))
        np.testing.assert_array_equal(found[0], alone(policy, 0)[0])
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1].endswith("serve_policy: stopped\n")
        assert process.returncode == 0
    finally:
        process.kill()


def test_the_script_says_that_a_port_is_taken_before_it_loads_anything():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "scripts/serve_policy.py", "--policy", "nowhere", "--port", str(port)]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
    assert done.returncode == 1
    assert f"cannot listen at port {port} of 127.0.0.1 (Address already in use); stop what listens there" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_policy_s_own_words_reach_the_client(drawing):
    with served(drawing, ServingConfig(port=0)) as address:
        policy = RemotePolicy(address)
        policy.reset(" ", 0)
        with pytest.raises(RemoteError, match="the instruction is empty; say what the robot is to do"):
            policy.act(seen(0, 0))
        policy.reset("a" * 2000, 0)
        with pytest.raises(RemoteError, match="the instruction has 2000 characters"):
            policy.act(seen(0, 0))
        policy.close()
