"""Cameras of the simulator, added ones, and how far any may be off its place."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from eval.cameras import FRONT, CameraJitter, PlacedCamera
from eval.maniskill import ManiSkillBenchmark
from eval.maniskill_options import AddedCamera

ALSO_FRONT = {"eye": FRONT.eye, "target": FRONT.target, "fov_rad": FRONT.fov_rad}
CAMERAS = ("front", "also_front", "base_camera", "hand_camera")


@pytest.fixture(scope="module")
def benchmark():
    made = ManiSkillBenchmark(
        "StackCube-v1", CAMERAS, 64, robot="panda_wristcam", added_cameras={"also_front": ALSO_FRONT}
    )
    yield made
    made.close()


def test_jitter_is_bounded_and_drawn_by_seed_and_camera():
    jitter = CameraJitter(translation_m=0.05, rotation_deg=10)
    drawn = np.array([[jitter.off_place(seed, name) for name in ("front", "random_1")] for seed in range(100)])
    shift = np.linalg.norm(drawn[..., :3, 3], axis=-1)
    angle = np.degrees([Rotation.from_matrix(each).magnitude() for each in drawn[..., :3, :3].reshape(-1, 3, 3)])
    assert 0.04 < shift.max() <= 0.05
    assert 8 < angle.max() <= 10
    assert len(np.unique(shift.round(9))) == 200
    np.testing.assert_array_equal(jitter.off_place(3, "front"), drawn[3, 0])
    np.testing.assert_array_equal(CameraJitter().off_place(3, "front"), np.eye(4))


def test_extrinsics_of_a_placed_camera_are_those_of_the_same_camera_by_eye_and_target():
    placed = PlacedCamera(matrix=FRONT.matrix, fov_rad=FRONT.fov_rad)
    np.testing.assert_allclose(placed.extrinsics, FRONT.extrinsics, atol=1e-12)
    assert AddedCamera(**ALSO_FRONT).pose == FRONT


@pytest.mark.sim
def test_the_simulators_cameras_and_added_ones_see_from_where_they_are_said_to_stand(benchmark):
    benchmark.reset(4)
    pictures = benchmark.render()
    assert {name: picture.shape for name, picture in pictures.items()} == dict.fromkeys(CAMERAS, (64, 64, 3))
    np.testing.assert_array_equal(pictures["front"], pictures["also_front"])
    assert min(picture.std() for picture in pictures.values()) > 5
    for camera in ("base_camera", "hand_camera"):
        own = benchmark._environment._sensors[camera].camera.get_extrinsic_matrix()[0].numpy()
        np.testing.assert_allclose(benchmark.camera_pose(camera).extrinsics, own[:3], atol=1e-5)
    assert benchmark.facts["added_cameras"]["also_front"]["eye"] == list(FRONT.eye)


@pytest.mark.sim
def test_a_camera_on_the_hand_goes_with_it_and_others_stay(benchmark):
    benchmark.reset(4)
    before = {camera: benchmark.camera_pose(camera).extrinsics for camera in CAMERAS}
    hand = benchmark.proprioception()[:3]
    for _ in range(4):
        benchmark.step(np.array([0.0, 0.0, 0.08, 0.0, 0.0, 0.0, 1.0]))
    benchmark.render()
    moved = {c: np.abs(benchmark.camera_pose(c).extrinsics - before[c]).max() for c in CAMERAS}
    assert benchmark.proprioception()[2] - hand[2] > 0.1
    assert moved["hand_camera"] > 0.1
    assert max(moved[camera] for camera in CAMERAS if camera != "hand_camera") == 0


@pytest.mark.sim
def test_jittered_cameras_are_off_by_what_is_drawn_alike_each_time_and_the_scene_stays(benchmark):
    jitter = {"translation_m": 0.05, "rotation_deg": 8.0}
    jittered = ManiSkillBenchmark(
        "StackCube-v1",
        CAMERAS,
        64,
        robot="panda_wristcam",
        added_cameras={"also_front": ALSO_FRONT},
        camera_jitter=jitter,
    )
    assert jittered.facts["camera_jitter"] == jitter
    assert "camera_jitter" not in benchmark.facts
    benchmark.reset(4)
    jittered.reset(4)
    plain, off = benchmark.render(), jittered.render()
    for camera in CAMERAS:
        assert np.abs(plain[camera].astype(int) - off[camera]).mean() > 2
        straight, shifted = (
            np.vstack([each.camera_pose(camera).extrinsics, [0, 0, 0, 1]]) for each in (benchmark, jittered)
        )
        difference = straight @ np.linalg.inv(shifted)
        assert 0 < np.linalg.norm(difference[:3, 3]) <= 0.05 + 1e-5
        assert 0 < np.degrees(Rotation.from_matrix(difference[:3, :3]).magnitude()) <= 8.0 + 1e-3
    np.testing.assert_array_equal(benchmark.get_state(), jittered.get_state())
    jittered.reset(5)
    jittered.render()
    jittered.reset(4)
    for camera, picture in jittered.render().items():
        np.testing.assert_array_equal(picture, off[camera])
    jittered.close()
