import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from core.spaces import END_EFFECTOR_DELTA
from eval.cameras import FRONT, RandomCameras, place_camera
from eval.maniskill import ManiSkillBenchmark
from eval.robot_meshes import lighter_panda
from eval.tasks import EVALUATION_SEEDS_FROM, TASKS, find_task, is_pushed

LEFT, AWAY = (0.0, 1.0), (1.0, 0.0)
VIEWS = ("front", "random_1", "random_2")


@pytest.fixture(scope="module")
def directions():
    benchmark = ManiSkillBenchmark("PushCubeDirections", VIEWS, image_size=96)
    yield benchmark
    benchmark.close()


def gripper_open(**changes):
    action = np.zeros(7)
    action[6] = 1.0
    for name, value in changes.items():
        action[END_EFFECTOR_DELTA.names.index(name)] = value
    return action


@pytest.mark.parametrize(
    ("displacement", "direction", "expected"),
    [
        ((0.0, 0.1001), LEFT, True),
        ((0.0, 0.0999), LEFT, False),
        ((0.0499, 0.12), LEFT, True),
        ((0.0501, 0.12), LEFT, False),
        ((-0.0501, 0.12), LEFT, False),
        ((0.0, -0.12), LEFT, False),
        ((0.12, 0.0), AWAY, True),
        ((0.12, 0.0), LEFT, False),
    ],
)
def test_a_push_succeeds_exactly_from_ten_centimetres_along_and_below_five_aside(displacement, direction, expected):
    assert is_pushed(np.array(displacement), direction) is expected


def test_the_seed_alone_decides_the_instruction_and_all_four_come_equally_often():
    task = find_task("PushCubeDirections")
    told = [task.instruction(seed) for seed in range(EVALUATION_SEEDS_FROM, EVALUATION_SEEDS_FROM + 40)]
    assert {words: told.count(words) for words in told} == dict.fromkeys(task.instructions, 10)
    assert [task.direction(seed) for seed in range(4)] == [(0, 1), (0, -1), (1, 0), (-1, 0)]
    assert [word in task.instruction(i) for i, word in enumerate(("left", "right", "away", "towards"))] == [True] * 4


def test_unknown_tasks_and_views_end_in_one_sentence_with_what_there_is():
    with pytest.raises(ValueError, match=r"unknown task 'PushCube-v2'; did you mean PushCube-v1"):
        find_task("PushCube-v2")
    with pytest.raises(ValueError, match=r"unknown view 'fornt'; there are 'front', 'random_1'"):
        place_camera("fornt", 0, 0.0, RandomCameras())
    with pytest.raises(ValueError, match="range from small to large"):
        RandomCameras(azimuth_deg=(10.0, -10.0))


def test_random_cameras_stay_in_their_ranges_and_differ_between_episodes_and_cameras():
    ranges = RandomCameras(azimuth_deg=(-30, 30), elevation_deg=(40, 50), distance_m=(0.6, 0.7))
    eyes = np.array([[place_camera(f"random_{n}", seed, 0.0, ranges).eye for n in (1, 2)] for seed in range(50)])
    relative = eyes.reshape(-1, 3) - FRONT.target
    distance = np.linalg.norm(relative, axis=1)
    elevation = np.degrees(np.arcsin(relative[:, 2] / distance))
    azimuth = np.degrees(np.arctan2(relative[:, 1], relative[:, 0]))
    for values, (low, high) in ((distance, (0.6, 0.7)), (elevation, (40, 50)), (azimuth, (-30, 30))):
        assert low <= values.min() < low + 0.2 * (high - low)
        assert high - 0.2 * (high - low) < values.max() <= high
    assert len(np.unique(relative.round(6), axis=0)) == 100


def test_cameras_stand_still_unless_told_to_move_and_then_sway_smoothly():
    def path(**settings):
        ranges = RandomCameras(**settings)
        return np.array([place_camera("random_1", 5, step / 20, ranges).eye for step in range(40)])

    still, moving = path(), path(camera_motion_m=0.05)
    assert np.ptp(still, axis=0).max() == 0
    assert np.linalg.norm(moving - still, axis=1).max() == pytest.approx(0.05, rel=0.01)
    assert np.linalg.norm(np.diff(moving, axis=0), axis=1).max() < 0.05 * 2 * np.pi / 40 * 1.01
    assert place_camera("front", 5, 1.0, RandomCameras(camera_motion_m=0.05)) == FRONT


@pytest.mark.sim
def test_the_same_seed_gives_the_same_images_whatever_happened_before(directions):
    def look(seed):
        directions.reset(seed)
        for _ in range(3):
            directions.step(gripper_open(x=0.1, z=-0.1))
        return directions.observe()

    first, other, again = look(7), look(8), look(7)
    for view in VIEWS:
        np.testing.assert_array_equal(first.images[view], again.images[view])
        assert np.abs(first.images[view].astype(int) - other.images[view]).max() > 50
    np.testing.assert_array_equal(first.proprioception, again.proprioception)


@pytest.mark.sim
def test_a_restored_state_looks_like_the_live_one_from_every_camera(directions):
    directions.reset(3)
    for _ in range(4):
        directions.step(gripper_open(x=0.1, z=-0.1, rz=0.05))
    live, state = directions.observe(), directions.get_state()
    directions.reset(4)
    directions.step(gripper_open(y=0.1, z=0.1, gripper=-1.0))
    assert np.abs(directions.render()["front"].astype(int) - live.images["front"]).max() > 50
    directions.set_state(state, seed=3, step=4)
    restored = directions.observe()
    for view in VIEWS:
        np.testing.assert_array_equal(restored.images[view], live.images[view])
    np.testing.assert_allclose(restored.proprioception, live.proprioception, atol=1e-6)


@pytest.mark.sim
@pytest.mark.parametrize("name", ["x", "y", "z", "rx", "ry", "rz", "gripper"])
def test_an_action_moves_the_hand_the_way_its_name_says(directions, name):
    index = END_EFFECTOR_DELTA.names.index(name)
    directions.reset(1)
    for _ in range(3):
        directions.step(gripper_open(z=0.05))
    before = directions.proprioception()
    for _ in range(3):
        directions.step(gripper_open(**{name: -1.0 if name == "gripper" else 0.05}))
    after = directions.proprioception()
    moved = (after - before)[:3]
    rotation = Rotation.from_quat(np.roll(after[3:7], -1)) * Rotation.from_quat(np.roll(before[3:7], -1)).inv()
    motion = np.concatenate([moved, rotation.as_rotvec(), [(after - before)[7:].sum()]])
    if name == "gripper":
        assert motion[6] < -0.01
    else:
        assert 0.03 < motion[index] < 0.16  # of 0.15: the arm lags behind its command
        assert np.argmax(np.abs(motion[:6])) == index
        assert motion[6] == pytest.approx(0, abs=1e-3)


@pytest.mark.sim
def test_extrinsics_say_where_in_the_image_the_cube_is(directions):
    directions.reset(11)
    cube = directions.object_pose("obj")[:3]
    for view, image in directions.render().items():
        pose = directions.camera_pose(view)
        x, y, depth = pose.extrinsics @ [*cube, 1.0]
        focal = 96 / 2 / np.tan(pose.fov_rad / 2)
        expected = np.array([x, y]) / depth * focal + 48
        is_blue = (image[..., 2].astype(int) - image[..., 0]) > 40
        found = np.argwhere(is_blue)[:, ::-1].mean(axis=0) + 0.5
        np.testing.assert_allclose(found, expected, atol=2.0)


@pytest.mark.sim
def test_the_goal_is_hidden_where_only_the_instruction_tells_it_and_visible_where_it_must_be_seen(directions):
    def red(image):
        r, g, b = np.moveaxis(image.astype(int), -1, 0)
        return int(((r - g > 80) & (g - b < 20)).sum())  # unlike wood, whose green exceeds its blue

    stock = ManiSkillBenchmark("PushCube-v1", image_size=96)
    pick = ManiSkillBenchmark("PickCube-v1", image_size=96)
    seeds = (1, 2)
    for seed in seeds:
        for benchmark in (stock, directions):
            benchmark.reset(seed)
            benchmark.step(gripper_open())
            benchmark.reset(seed)
        assert red(directions.render()["front"]) == 0
        assert red(stock.render()["front"]) > 50
    pick.reset(1)
    image = pick.render()["front"].astype(int)
    assert ((image[..., 1] - image[..., 0]) > 60).sum() > 30
    stock.close()
    pick.close()


@pytest.mark.sim
def test_an_episode_is_over_at_the_step_limit_and_judged_at_every_instant(directions):
    directions.reset(0)
    over = [directions.step(gripper_open()) for _ in range(directions.max_steps)]
    assert [result.is_over for result in over] == [False] * (directions.max_steps - 1) + [True]
    assert not any(result.success for result in over)


@pytest.mark.sim
def test_without_a_device_to_render_with_one_sentence_says_what_to_install():
    program = "from eval.maniskill import ManiSkillBenchmark; ManiSkillBenchmark('PushCube-v1').render()"
    nowhere = os.environ | {"VK_DRIVER_FILES": "/nonexistent", "VK_ICD_FILENAMES": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", program], env=nowhere, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("RuntimeError: the simulator finds no device to render with; run scripts/setup.sh")
    assert "mesa-vulkan-drivers" in last


@pytest.mark.sim
def test_lighter_meshes_are_made_once_and_keep_their_shape(tmp_path, monkeypatch):
    import trimesh
    from mani_skill import PACKAGE_ASSET_DIR

    monkeypatch.setenv("MVP_LAM_CACHE", str(tmp_path))
    folder = lighter_panda()
    made = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
    assert lighter_panda() == folder
    assert made == {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    name = "franka_description/meshes/visual/hand.glb"
    heavy, light = (
        trimesh.load(path, force="mesh") for path in (f"{PACKAGE_ASSET_DIR}/robots/panda/{name}", folder / name)
    )
    assert len(light.faces) < 0.15 * len(heavy.faces)
    np.testing.assert_allclose(light.bounds, heavy.bounds, atol=0.004)


def test_every_task_has_instructions_of_its_own():
    told = [words for task in TASKS.values() for words in task.instructions]
    assert len(set(told)) == len(told)
