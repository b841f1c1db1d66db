"""Nuisances: off they change nothing, on they change what they are named after, and the same instant looks the same."""

import numpy as np
import pytest

from core.config import load_config
from core.store import Store
from eval.cameras import RandomCameras, place_camera, view_name
from eval.collection import collect
from eval.collection_settings import CollectionSettings
from eval.demonstrations import OBJECT_POSE, ExpertSettings, render_episode, simulate
from eval.maniskill import ManiSkillBenchmark
from eval.nuisances import Nuisances, augmented_copy, distractor_position, overlaid

POSE = place_camera("random_1", 3, 0.0, RandomCameras())
VIEWS = ("random_1", "random_2")


def test_without_nuisances_a_camera_stands_where_it_stood():
    assert Nuisances().shaken(POSE, 1, 3, 8) == POSE
    assert Nuisances().brightness(3, 8) == 1.0
    assert Nuisances().columns(3, range(0, 8, 4)) == {}


def test_independent_shake_differs_between_cameras_and_shared_shake_does_not():
    def offsets(nuisances):
        return [np.subtract(nuisances.shaken(POSE, camera, 3, 8).eye, POSE.eye) for camera in (1, 2)]

    own, shared = offsets(Nuisances(camera_shake_m=0.02)), offsets(Nuisances(shared_camera_shake_m=0.02))
    assert np.abs(own).max() <= 0.02
    assert not np.allclose(own[0], own[1])
    assert np.abs(shared).max() <= 0.02
    assert np.allclose(shared[0], shared[1])
    assert np.abs(shared).max() > 0
    moved = Nuisances(camera_shake_m=0.02).shaken(POSE, 1, 3, 12)
    assert moved != Nuisances(camera_shake_m=0.02).shaken(POSE, 1, 3, 8)


def test_an_overlay_covers_a_rectangle_that_differs_between_cameras_and_instants():
    picture = np.full((60, 80, 3), 7, np.uint8)
    covered = [overlaid(picture, camera, 3, step) != picture for camera, step in ((1, 0), (2, 0), (1, 4))]
    for mask in covered:
        assert 0.12**2 * 0.7 < mask.any(axis=2).mean() <= 0.25**2
    assert not np.array_equal(covered[0], covered[1])
    assert not np.array_equal(covered[0], covered[2])
    assert (picture == 7).all()


def test_a_copy_is_cut_and_coloured_alike_over_an_episode():
    pictures = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    first = augmented_copy(pictures[0], 1, 5)
    assert np.array_equal(first, augmented_copy(pictures[0], 1, 5))
    assert not np.array_equal(first, augmented_copy(pictures[0], 1, 6))
    assert first.shape == pictures[0].shape
    assert not np.array_equal(first, pictures[0])


def test_fixed_cameras_have_one_place_for_all_episodes():
    fixed = RandomCameras(is_fixed=True)
    assert place_camera("random_1", 3, 0.0, fixed) == place_camera("random_1", 4, 0.0, fixed)
    assert place_camera("random_1", 3, 0.0, fixed) != place_camera("random_2", 3, 0.0, fixed)
    assert place_camera("random_1", 3, 0.0, RandomCameras()) != place_camera("random_1", 4, 0.0, RandomCameras())
    assert place_camera("late_2", 3, 0.0, RandomCameras()) == place_camera("random_2", 3, 0.0, RandomCameras())
    with pytest.raises(ValueError, match="copy_1"):
        view_name("copy_0")


@pytest.fixture(scope="module")
def recording():
    benchmark = ManiSkillBenchmark("RandomMotion", ())
    found = simulate(benchmark, 11, ExpertSettings())
    benchmark.close()
    return found


def rendered(recording, views=VIEWS, **nuisances):
    benchmark = ManiSkillBenchmark("RandomMotion", views, 48, nuisances=Nuisances(**nuisances))
    episode = render_episode(benchmark, recording, frame_stride=4)
    benchmark.close()
    return episode


@pytest.mark.sim
@pytest.mark.parametrize(
    ("nuisance", "column"),
    [
        ({"camera_shake_m": 0.02}, None),
        ({"shared_camera_shake_m": 0.02}, None),
        ({"distractor": True}, "distractor_position"),
        ({"light": 0.5}, "brightness"),
        ({"overlay": True}, None),
    ],
)
def test_each_nuisance_changes_the_pictures_but_not_what_happened(recording, nuisance, column):
    plain, disturbed = rendered(recording), rendered(recording, **nuisance)
    np.testing.assert_array_equal(plain.actions, disturbed.actions)
    for view in VIEWS:
        differs = (plain.views[view].frames != disturbed.views[view].frames).any(axis=(1, 2, 3))
        assert differs.mean() > 0.7  # the hand may hide the distractor
    is_moved = not np.array_equal(plain.views["random_1"].extrinsics, disturbed.views["random_1"].extrinsics)
    assert is_moved == ("shake" in next(iter(nuisance)))
    assert set(disturbed.columns) == {OBJECT_POSE} | ({column} if column else set())
    if column == "distractor_position":
        np.testing.assert_allclose(disturbed.columns[column][1], distractor_position(recording.seed, 4), rtol=1e-6)


@pytest.mark.sim
def test_random_motion_has_equal_movements_within_a_kept_frame_and_lasts(recording):
    assert recording.is_success
    assert len(recording.actions) == 35
    np.testing.assert_array_equal(recording.actions[0], recording.actions[3])
    assert not np.array_equal(recording.actions[3], recording.actions[4])


@pytest.mark.sim
def test_a_late_camera_sees_what_its_camera_sees_half_a_kept_frame_later(recording):
    episode = rendered(recording, views=("random_2", "late_2"))
    shifted = ManiSkillBenchmark("RandomMotion", ("random_2",), 48)
    shifted.set_state(recording.states[6], recording.seed, 6)
    np.testing.assert_array_equal(shifted.render()["random_2"], episode.views["late_2"].frames[1])
    assert episode.length == 9
    assert len(episode.actions) == 9
    shifted.close()


@pytest.mark.sim
def test_recordings_of_another_store_are_rendered_and_wrong_ones_refused(tmp_path):
    group = {"task": "RandomMotion", "episodes": 2, "views": ["random_1"], "labelled": False}

    def settings(name, **changes):
        values = {"groups": [group], "frame_stride": 4, "image_size": 32, "workers": 1, "held_out_every": 2}
        return load_config(CollectionSettings, overrides=values | {"out": str(tmp_path / name)} | changes)

    collect(settings("plain"))
    collect(settings("dark", recordings=str(tmp_path / "plain"), nuisances={"light": 0.5}))
    plain, dark = Store.open(tmp_path / "plain"), Store.open(tmp_path / "dark")
    np.testing.assert_array_equal(plain.actions(1, for_audit=True), dark.actions(1, for_audit=True))
    assert dark.columns(0)["brightness"].shape == (9,)
    with pytest.raises(ValueError, match="holds other episodes"):
        collect(settings("other", recordings=str(tmp_path / "plain"), first_seed=5))
    with pytest.raises(ValueError, match="no finished collection"):
        collect(settings("none", recordings=str(tmp_path / "nowhere")))
