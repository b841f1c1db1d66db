import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from core.config import ConfigError, load_config
from core.store import ActionsHiddenError, Store, finish_store
from eval.cameras import RandomCameras
from eval.collection import collect, parts_of, render_part, simulate_part
from eval.collection_settings import CollectionSettings, plan_episodes
from eval.demonstrations import ExpertSettings, render_episode, simulate
from eval.maniskill import ManiSkillBenchmark
from eval.recordings import read_recordings
from eval.tasks import EVALUATION_SEEDS_FROM, TASKS

SCRIPT = Path(__file__).resolve().parents[1] / "scripts/collect_maniskill.py"
GROUPS = [
    {"task": "PushCubeDirections", "episodes": 4, "views": ["front", "random_1"], "labelled": False},
    {"task": "PickCube-v1", "episodes": 2, "views": ["front"], "labelled": True},
]
SETTINGS = {"groups": GROUPS, "frame_stride": 4, "held_out_every": 2, "episodes_per_part": 3, "image_size": 64}


def settings(out, **changes):
    return load_config(CollectionSettings, overrides=SETTINGS | {"out": str(out), "workers": 1} | changes)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A small store, made in this process."""
    out = tmp_path_factory.mktemp("collected") / "store"
    parts = parts_of(settings(out))
    for part in parts:
        simulate_part(part)
    for part in reversed(parts):
        render_part(part)
    finish_store(out, settings(out).info, len(parts))
    return Store.open(out)


@pytest.mark.sim
@pytest.mark.parametrize("task", [name for name, task in TASKS.items() if not task.is_free])
def test_experts_succeed_on_unseen_seeds_and_record_clean_actions(task):
    benchmark = ManiSkillBenchmark(task, cameras=())
    disturbed = [simulate(benchmark, seed, ExpertSettings()) for seed in range(500_000, 500_008)]
    assert sum(recording.is_success for recording in disturbed) >= 7
    assert min(len(recording.actions) for recording in disturbed) < benchmark.max_steps
    clean = simulate(benchmark, 500_000, ExpertSettings(noise_m=0.0))
    assert clean.is_success
    np.testing.assert_array_equal(clean.actions[0], disturbed[0].actions[0])
    assert not np.array_equal(clean.states[1], disturbed[0].states[1])
    benchmark.close()


@pytest.mark.sim
def test_an_episode_does_not_depend_on_those_before_it():
    benchmark = ManiSkillBenchmark("PushCubeDirections", cameras=())
    seeds = range(1, 8)
    forwards = {seed: simulate(benchmark, seed, ExpertSettings()) for seed in seeds}
    backwards = {seed: simulate(benchmark, seed, ExpertSettings()) for seed in reversed(seeds)}
    for seed in seeds:
        np.testing.assert_array_equal(forwards[seed].states, backwards[seed].states)
    benchmark.close()


@pytest.mark.sim
def test_an_episode_at_a_stride_shows_every_nth_instant_and_sums_the_actions_between():
    moving = RandomCameras(camera_motion_m=0.05)
    benchmark = ManiSkillBenchmark("PushCubeDirections", ("front", "random_1"), 64, moving)
    recording = simulate(benchmark, 21, ExpertSettings())
    fine = render_episode(benchmark, recording)
    coarse = render_episode(benchmark, recording, frame_stride=4, is_labelled=False, split="held_out")
    assert (fine.control_hz, coarse.control_hz) == (20.0, 5.0)
    assert (coarse.is_labelled, coarse.split, coarse.extra["seed"]) == (False, "held_out", 21)
    for view in ("front", "random_1"):
        np.testing.assert_array_equal(coarse.views[view].frames, fine.views[view].frames[::4])
        np.testing.assert_array_equal(coarse.views[view].extrinsics, fine.views[view].extrinsics[::4])
    assert np.ptp(fine.views["random_1"].extrinsics[:, :, 3], axis=0).max() > 0.01
    np.testing.assert_array_equal(coarse.proprioception, fine.proprioception[::4])
    np.testing.assert_allclose(coarse.actions[1, :6], fine.actions[4:8, :6].sum(axis=0), rtol=1e-5)
    assert coarse.actions[1, 6] == fine.actions[7, 6]
    for episode in (fine, coarse):
        episode.validate()
    benchmark.close()


def test_plans_are_interleaved_balanced_and_keep_away_from_seeds_of_evaluation():
    groups = [{"task": "PushCubeDirections", "episodes": 640}, {"task": "PullCube-v1", "episodes": 60}]
    plans = plan_episodes(settings("out", groups=groups, held_out_every=8, first_seed=50_000))
    seeds = [plan.seed for plan in plans]
    assert len(set(seeds)) == 700
    assert min(seeds) == 50_000
    assert max(seeds) + 19 * 100_000 < EVALUATION_SEEDS_FROM
    pushes = [plan for plan in plans if plan.task == "PushCubeDirections"]
    told = [TASKS[plan.task].instruction(plan.seed) for plan in pushes]
    assert all(len(set(told[start : start + 4])) == 4 for start in range(0, 640, 4))
    assert 4 <= sum(plan.task == "PullCube-v1" for plan in plans[:70]) <= 8
    held_out = [words for plan, words in zip(pushes, told, strict=True) if plan.split == "held_out"]
    assert {words: held_out.count(words) for words in held_out} == dict.fromkeys(set(told), 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": [{"task": "PushCub-v1", "episodes": 2}]}, "unknown task 'PushCub-v1'; did you mean PushCube-v1"),
        ({"groups": [{"task": "PushCube-v1", "episodes": 2, "views": ["left"]}]}, "unknown view 'left'"),
        ({"groups": [{"task": "PushCube-v1", "episodes": 2, "views": []}]}, "at least one camera"),
        ({"groups": [{"task": "PushCube-v1", "episodes": 2, "views": ["front", "front"]}]}, "each only once"),
        ({"groups": []}, "at least 1 item"),
        ({"first_seed": 99_999}, "first_seed 99999 and 6 episodes pass seed 100000"),
        ({"episodes": 3}, "unknown key episodes"),
    ],
)
def test_what_cannot_be_collected_is_said_in_one_sentence(changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        settings("out", **changes)
    assert "\n" not in str(error.value)


@pytest.mark.sim
def test_a_collected_store_shows_what_the_simulator_shows(store):
    assert [record.task for record in store.episodes].count("PickCube-v1") == 2
    assert {record.split for record in store.episodes} == {"train", "held_out"}
    recordings = [recording for part in (0, 1) for recording in read_recordings(store.path, part)]
    for record, recording in zip(store.episodes, recordings, strict=True):
        assert record.instruction == TASKS[record.task].instruction(recording.seed)
        live = ManiSkillBenchmark(record.task, record.views, image_size=64)
        last = 4 * (record.length - 1)
        live.set_state(recording.states[last], recording.seed, last)
        for view, image in live.render().items():
            stored = store.frames(record.index, view)[-1]
            assert np.abs(stored.astype(int) - image).mean() < 3
            extrinsics = store.extrinsics(record.index, view)
            np.testing.assert_allclose(extrinsics[-1], live.camera_pose(view).extrinsics, atol=1e-6)
        np.testing.assert_array_equal(store.proprioception(record.index)[-1], recording.proprioception[last])
        live.close()


@pytest.mark.sim
def test_actions_of_unlabelled_episodes_are_there_for_an_audit_only(store):
    hidden = store.select(is_labelled=False)
    assert [record.task for record in hidden] == ["PushCubeDirections"] * 4
    with pytest.raises(ActionsHiddenError):
        store.actions(hidden[0].index)
    assert store.actions(hidden[0].index, for_audit=True).shape == (hidden[0].length, 7)
    shown = store.select(is_labelled=True)[0]
    assert store.actions(shown.index).shape == (shown.length, 7)


@pytest.mark.sim
def test_a_killed_collection_goes_on_and_ends_with_the_same_content(store, tmp_path, capsys):
    out, config = tmp_path / "store", tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(SETTINGS))
    command = [sys.executable, str(SCRIPT), "--config", str(config), "--out", str(out), "--workers", "1"]
    killed = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    first_part = out / "parts/part-00000"
    while not first_part.exists() and killed.poll() is None:
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (out / "manifest.json").exists()
    written = (first_part / "front.mp4").stat().st_mtime_ns
    collect(settings(out))
    assert (out / "videos/observation.images.front/chunk-000/file-000.mp4").stat().st_mtime_ns == written
    assert Store.open(out).fingerprint == store.fingerprint
    assert (out / "contact_sheet.png").stat().st_size > 5_000
    finished = (out / "manifest.json").read_text()
    collect(settings(out, workers=2))
    assert "already done" in capsys.readouterr().err
    assert (out / "manifest.json").read_text() == finished


@pytest.mark.sim
def test_a_folder_that_is_no_collection_is_left_alone(store):
    with pytest.raises(ValueError, match="not a run of this project"):
        collect(settings(store.path))
    assert Store.open(store.path).fingerprint == store.fingerprint
