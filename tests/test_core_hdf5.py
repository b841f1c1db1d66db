"""HDF5 demonstrations are read as LIBERO, robomimic and ManiSkill write them, and refused where they are damaged."""

import json
import pickle
import random
from pathlib import Path

import h5py
import numpy as np
import pytest

from core.config import load_config
from core.formats.hdf5 import Hdf5, recognises
from core.formats.interface import EpisodeError, Reader, SourceError
from core.formats.mapping import Mapping
from core.spaces import END_EFFECTOR_DELTA

ROOT = Path(__file__).resolve().parents[1]
STEPS, SIZE = 7, (12, 16)
HZ = {"env_name": "Lift", "env_kwargs": {"control_freq": 20}}


def pictures(frames: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, *SIZE, 3), np.uint8)


def numbers(rows: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, width))


def write_robomimic(path: Path, demos: int = 3, **data_attributes: str) -> Path:
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(HZ)
        data.attrs.update(data_attributes)
        for number in range(demos):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = STEPS
            demo["actions"] = numbers(STEPS, 7, number)
            demo["rewards"] = np.arange(STEPS, dtype=np.float32)
            demo["dones"] = np.arange(STEPS) == STEPS - 1
            demo["obs/robot0_eef_pos"] = numbers(STEPS, 3, number)
            demo["obs/robot0_eef_quat"] = numbers(STEPS, 4, number + 100)
            demo["obs/robot0_gripper_qpos"] = numbers(STEPS, 2, number + 200)
            demo["obs/agentview_image"] = pictures(STEPS, number)
            demo["obs/agentview_depth"] = np.zeros((STEPS, *SIZE, 1), np.float32)
    return path


def write_libero(path: Path, shift: int = 1) -> Path:
    """As LIBERO publishes: joint angles of row i are those of the state after action i (shift 1)."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(HZ)
        data.attrs["problem_info"] = json.dumps({"language_instruction": "turn on the stove"})
        demo = data.create_group("demo_0")
        angles = np.cumsum(numbers(STEPS + 1, 7, 0) * 0.01, axis=0)
        demo["states"] = np.concatenate([np.arange(STEPS)[:, None], angles[:STEPS], numbers(STEPS, 5, 1)], axis=1)
        demo["actions"] = numbers(STEPS, 7, 2)
        demo["obs/joint_states"] = angles[shift : shift + STEPS]
        demo["obs/ee_states"], demo["obs/gripper_states"] = numbers(STEPS, 6, 3), numbers(STEPS, 2, 4)
        demo["obs/agentview_rgb"], demo["obs/eye_in_hand_rgb"] = pictures(STEPS, 5), pictures(STEPS, 6)
    return path


def write_maniskill(path: Path, control_mode: str = "pd_ee_delta_pose", seeds: tuple[int, ...] = (10, 2)) -> Path:
    with h5py.File(path, "w") as file:
        for number, _ in enumerate(seeds):
            one = file.create_group(f"traj_{number}", track_order=True)
            one["actions"] = numbers(STEPS, 7, number).astype(np.float32)
            one["success"] = np.arange(STEPS) == STEPS - 1
            one["obs/agent/qpos"] = numbers(STEPS + 1, 9, number)
            one.create_dataset("obs/sensor_data/base_camera/rgb", data=pictures(STEPS + 1, number), compression="gzip")
            one["obs/sensor_data/base_camera/segmentation"] = np.zeros((STEPS + 1, *SIZE, 1), np.int16)
    own = [
        {"episode_id": number, "episode_seed": seed, "control_mode": control_mode, "elapsed_steps": STEPS}
        for number, seed in enumerate(seeds)
    ]
    described = {"env_info": {"env_id": "PickCube-v1", "env_kwargs": {}}, "episodes": own}
    path.with_suffix(".json").write_text(json.dumps(described))
    return path


def frames_of(episode, view: str) -> np.ndarray:
    return episode.views[view].frames[:]


def test_robomimic_is_read_row_by_row(tmp_path):
    file = write_robomimic(tmp_path / "lift.hdf5", demos=11)
    with h5py.File(file, "a") as opened:
        opened["mask/train"] = np.array([b"demo_0", b"demo_10"])
        opened["mask/valid"] = np.array([b"demo_1"])
    reader = Hdf5(file, Mapping(columns=("rewards", "dones"), default_instruction="lift the cube"))
    assert isinstance(reader, Reader)
    assert list(reader.keys)[8:] == ["lift.hdf5/data/demo_8", "lift.hdf5/data/demo_9", "lift.hdf5/data/demo_10"]
    episode = reader.read("lift.hdf5/data/demo_10")
    np.testing.assert_array_equal(frames_of(episode, "agentview"), pictures(STEPS, 10))
    np.testing.assert_allclose(episode.actions, numbers(STEPS, 7, 10), rtol=1e-6)
    np.testing.assert_allclose(episode.proprioception[:, :3], numbers(STEPS, 3, 10), rtol=1e-6)
    assert episode.columns["dones"].dtype == bool
    assert episode.columns["rewards"].tolist() == list(range(STEPS))
    assert (episode.control_hz, episode.instruction) == (20, "lift the cube")
    assert episode.extra == {"environment": "Lift", "source_split": "train"}
    assert "source_split" not in reader.read("lift.hdf5/data/demo_5").extra
    assert [number for number in range(11) if reader.read(reader.keys[number]).split == "held_out"] == [1]
    assert reader.info.views == {"agentview": SIZE}
    assert reader.info.columns["rewards"] == ("float32", (1,))
    assert reader.info.proprioception_names[0] == "robot0_eef_pos_0"
    assert len(reader.info.proprioception_names) == reader.info.proprioception_dims == 9


def test_maniskills_observation_after_the_last_action_is_dropped(tmp_path):
    file = write_maniskill(tmp_path / "trajectory.h5")
    reader = Hdf5(file, Mapping(control_hz=20, default_instruction="pick the cube"))
    episode = reader.read("trajectory.h5/traj_1")
    np.testing.assert_array_equal(frames_of(episode, "base_camera"), pictures(STEPS + 1, 1)[:-1])
    np.testing.assert_allclose(episode.actions, numbers(STEPS, 7, 1), rtol=1e-6)
    np.testing.assert_allclose(episode.proprioception, numbers(STEPS + 1, 9, 1)[:-1], rtol=1e-6)
    assert episode.extra == {"seed": 2, "control_mode": "pd_ee_delta_pose", "environment": "PickCube-v1", "success": 1}


@pytest.mark.parametrize("shift", [0, 1])
def test_liberos_frames_come_before_their_action_whether_or_not_the_file_has_them_after_it(tmp_path, shift):
    file = write_libero(tmp_path / "KITCHEN_SCENE3_x_demo.hdf5", shift)
    reader = Hdf5(file, Mapping())
    episode = reader.read(reader.keys[0])
    rows = slice(0, STEPS - shift)
    np.testing.assert_array_equal(frames_of(episode, "eye_in_hand"), pictures(STEPS, 6)[rows])
    np.testing.assert_allclose(episode.actions, numbers(STEPS, 7, 2)[shift:], rtol=1e-6)
    np.testing.assert_allclose(episode.proprioception[:, :6], numbers(STEPS, 6, 3)[rows], rtol=1e-6)
    assert any("after the action" in note for note in reader.notes) == bool(shift)
    assert (episode.instruction, episode.task) == ("x", "x")
    assert episode.extra["scene"] == "KITCHEN_SCENE3"


def test_libero_episodes_that_are_arranged_otherwise_than_the_first_are_refused(tmp_path):
    write_libero(tmp_path / "a_demo.hdf5", shift=1)
    write_libero(tmp_path / "b_demo.hdf5", shift=0)
    reader = Hdf5(tmp_path, Mapping())
    with pytest.raises(EpisodeError, match="from before the action of the same row, unlike"):
        reader.read("b_demo.hdf5/data/demo_0")
    with h5py.File(tmp_path / "b_demo.hdf5", "a") as file:
        del file["data/demo_0/states"]
    assert Hdf5(tmp_path, Mapping()).read("b_demo.hdf5/data/demo_0").length == STEPS - 1


def test_liberos_instruction_is_the_name_of_the_file_else_the_text_in_it(tmp_path):
    named = write_libero(tmp_path / "LIVING_ROOM_SCENE5_put_the_red_mug_on_the_plate_demo.hdf5")
    reader = Hdf5(named, Mapping())
    assert reader.read(reader.keys[0]).instruction == "put the red mug on the plate"
    assert any("file's name" in note for note in reader.notes)
    renamed = named.rename(tmp_path / "mugs.hdf5")
    assert Hdf5(renamed, Mapping()).read("mugs.hdf5/data/demo_0").instruction == "turn on the stove"
    inside = Mapping(instruction="problem_info/language_instruction")
    renamed.rename(named)
    assert Hdf5(named, inside).read(reader.keys[0]).instruction == "turn on the stove"


def test_a_mapping_turns_names_scales_and_leaves_out(tmp_path):
    file = write_robomimic(tmp_path / "a.hdf5", scene_name="kitchen")
    mapping = Mapping(
        views={"front": {"source": "obs/agentview_image", "rotate_deg": 180}},
        actions=[{"source": "actions", "columns": (6, 0), "scale": -2.0}],
        proprioception=[],
        control_hz=10,
        scene="scene_name",
    )
    reader = Hdf5(file, mapping)
    episode = reader.read(reader.keys[0])
    np.testing.assert_array_equal(frames_of(episode, "front"), pictures(STEPS, 0)[:, ::-1, ::-1])
    np.testing.assert_allclose(episode.actions, -2 * numbers(STEPS, 7, 0)[:, [6, 0]], rtol=1e-6)
    assert (episode.proprioception, episode.control_hz, episode.extra["scene"]) == (None, 10, "kitchen")
    assert any("20 Hz" in note for note in reader.notes)


def test_a_folder_is_one_source_and_can_be_sent_to_another_process(tmp_path):
    (tmp_path / "inner").mkdir()
    write_robomimic(tmp_path / "b.hdf5", demos=1)
    write_robomimic(tmp_path / "inner" / "a.h5", demos=1)
    assert recognises(tmp_path)
    assert recognises(tmp_path / "b.hdf5")
    reader = pickle.loads(pickle.dumps(Hdf5(tmp_path, Mapping())))
    assert list(reader.keys) == ["b.hdf5/data/demo_0", "inner/a.h5/data/demo_0"]
    assert len({reader.read(key).episode_id for key in reader.keys}) == 2


def test_a_file_that_is_no_hdf5_among_others_is_an_episode_that_cannot_be_read(tmp_path):
    write_robomimic(tmp_path / "b.hdf5", demos=1)
    (tmp_path / "a.hdf5").write_bytes(b"not at all")
    reader = Hdf5(tmp_path, Mapping())
    assert list(reader.keys) == ["a.hdf5", "b.hdf5/data/demo_0"]
    assert any("a.hdf5" in note for note in reader.notes)
    with pytest.raises(EpisodeError, match=r"a\.hdf5.*OSError"):
        reader.read("a.hdf5")


def test_files_without_images_say_how_to_get_them(tmp_path):
    file = write_robomimic(tmp_path / "low_dim.hdf5")
    with h5py.File(file, "a") as opened:
        for demo in opened["data"].values():
            del demo["obs/agentview_image"]
    with pytest.raises(SourceError, match=r"dataset_states_to_obs\.py"):
        Hdf5(file, Mapping())
    with pytest.raises(SourceError, match=r"views name obs/agentview_image.*replay"):
        Hdf5(file, Mapping(views={"front": "obs/agentview_image"}))


def test_what_is_no_source_is_refused(tmp_path):
    with pytest.raises(SourceError, match="no folder with files"):
        Hdf5(tmp_path, Mapping())
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["observations/qpos"] = np.zeros((3, 2))
    with pytest.raises(SourceError, match="neither data/demo_0"):
        Hdf5(tmp_path, Mapping())
    write_maniskill(tmp_path / "a.hdf5")
    with pytest.raises(SourceError, match="set control_hz"):
        Hdf5(tmp_path, Mapping())


def test_joint_angles_are_not_read_as_end_effector_motion(tmp_path):
    file = write_maniskill(tmp_path / "a.h5", control_mode="pd_joint_pos")
    mapping = Mapping(control_hz=20, action_space="end_effector_delta")
    with pytest.raises(SourceError, match=r"control_mode is pd_joint_pos.*replay"):
        Hdf5(file, mapping)
    file.with_suffix(".json").unlink()
    with pytest.raises(SourceError, match=r"says delta_end_effector, but nothing tells the control_mode.*a\.json"):
        Hdf5(file, mapping)
    assert Hdf5(file, Mapping(control_hz=20)).info.action_space.kind == "unspecified"


def test_columns_of_types_that_stores_lack_are_widened_where_their_values_fit(tmp_path):
    values = {"half": np.float16([0.5] * STEPS), "count": np.uint16([65535] * STEPS), "large": np.uint64([7] * STEPS)}
    file = write_robomimic(tmp_path / "a.hdf5")
    with h5py.File(file, "a") as opened:
        for number in range(3):
            for name, column in values.items():
                opened[f"data/demo_{number}/{name}"] = column
        opened["data/demo_1/large"][3] = 2**63
    reader = Hdf5(file, Mapping(columns=tuple(values)))
    assert [column.dtype for column in reader.info.columns.values()] == ["float32", "int32", "int64"]
    for name, column in reader.read(reader.keys[0]).columns.items():
        np.testing.assert_array_equal(column, values[name])
    with pytest.raises(EpisodeError, match="large holds 9223372036854775808, more than an int64 column can; leave it"):
        reader.read(reader.keys[1])


def replace(demo: h5py.Group, name: str, values: np.ndarray, **options: object) -> None:
    del demo[name]
    demo.create_dataset(name, data=values, **options)


def make_soft(demo: h5py.Group, name: str, target: str) -> None:
    del demo[name]
    demo[name] = h5py.SoftLink(target)


def make_external(demo: h5py.Group, name: str) -> None:
    del demo[name]
    demo[name] = h5py.ExternalLink("other.hdf5", "/data")


def make_unwritten(demo: h5py.Group, name: str) -> None:
    """As a recording that was killed leaves it: the last frame would read as black."""
    del demo[name]
    dataset = demo.create_dataset(name, (STEPS, *SIZE, 3), np.uint8, chunks=(1, *SIZE, 3), compression="gzip")
    dataset[:-1] = pictures(STEPS - 1, 1)


def with_nan() -> np.ndarray:
    values = numbers(STEPS, 7, 1)
    values[4, 2] = np.nan
    return values


BREAKS = {
    "agentview_image has 6 rows, 7 belong": lambda d: replace(d, "obs/agentview_image", pictures(STEPS - 1, 1)),
    "num_samples says 7, but there are 8": lambda d: replace(d, "actions", numbers(STEPS + 1, 7, 1)),
    "robot0_eef_pos has 8 rows": lambda d: replace(d, "obs/robot0_eef_pos", numbers(STEPS + 1, 3, 1)),
    "actions of frame 4": lambda d: replace(d, "actions", with_nan()),
    "action_space is": lambda d: replace(d, "actions", numbers(STEPS, 6, 1)),
    r"set views\.agentview\.size": lambda d: replace(d, "obs/agentview_image", pictures(STEPS, 1)[:, :6]),
    "no pictures": lambda d: replace(d, "obs/agentview_image", pictures(STEPS, 1).astype(np.float32)),
    "link into another file": lambda d: make_external(d, "obs/agentview_image"),
    "leads nowhere": lambda d: make_soft(d, "obs/agentview_image", "/data/nothing"),
    "6 of its 7 chunks": lambda d: make_unwritten(d, "obs/agentview_image"),
    "actions has no numbers|claims": lambda d: replace(d, "actions", np.zeros((STEPS, 0))),
}


@pytest.mark.parametrize("message", BREAKS)
def test_an_episode_whose_parts_do_not_fit_is_refused_by_name(tmp_path, message):
    file = write_robomimic(tmp_path / "a.hdf5")
    with h5py.File(file, "a") as opened:
        BREAKS[message](opened["data/demo_1"])
    reader = Hdf5(file, Mapping())
    with pytest.raises(EpisodeError, match=message) as caught:
        reader.read("a.hdf5/data/demo_1")
    assert "a.hdf5/data/demo_1" in str(caught.value)
    assert reader.read("a.hdf5/data/demo_2").length == STEPS


def test_a_soft_link_inside_of_the_file_is_followed(tmp_path):
    file = write_robomimic(tmp_path / "a.hdf5")
    with h5py.File(file, "a") as opened:
        make_soft(opened["data/demo_1"], "obs/agentview_image", "/data/demo_2/obs/agentview_image")
    episode = Hdf5(file, Mapping()).read("a.hdf5/data/demo_1")
    np.testing.assert_array_equal(frames_of(episode, "agentview"), pictures(STEPS, 2))


def test_frames_that_are_damaged_are_refused_when_they_are_looked_at(tmp_path):
    file = write_maniskill(tmp_path / "a.h5")
    with h5py.File(file, "r") as opened:
        chunk = opened["traj_0/obs/sensor_data/base_camera/rgb"].id.get_chunk_info(0)
    content = bytearray(file.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 0xFF
    file.write_bytes(content)
    reader = Hdf5(file, Mapping(control_hz=20))
    episode = reader.read("a.h5/traj_0")
    with pytest.raises(EpisodeError, match=r"a\.h5/traj_0"):
        frames_of(episode, "base_camera")
    frames_of(reader.read("a.h5/traj_1"), "base_camera")


def test_a_file_that_was_cut_is_refused(tmp_path):
    file = write_robomimic(tmp_path / "a.hdf5")
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(SourceError, match="truncated"):
        Hdf5(file, Mapping())


def test_a_json_file_that_disagrees_is_refused(tmp_path):
    file = write_maniskill(tmp_path / "a.h5")
    beside = file.with_suffix(".json")
    described = json.loads(beside.read_text())
    described["episodes"][1]["elapsed_steps"] = STEPS + 3
    beside.write_text(json.dumps(described))
    with pytest.raises(EpisodeError, match="elapsed_steps says 10"):
        Hdf5(file, Mapping(control_hz=20)).read("a.h5/traj_1")
    beside.write_text("[" * 100_000)
    with pytest.raises(SourceError, match=r"a\.json is damaged JSON"):
        Hdf5(file, Mapping(control_hz=20))


def test_changed_bytes_end_in_frames_or_typed_errors(tmp_path):
    """A few of the mutations; hundreds were tried by hand in processes of their own."""
    file = write_maniskill(tmp_path / "a.h5")
    whole, chance, outcomes = file.read_bytes(), random.Random(0), []
    for _ in range(40):
        content = bytearray(whole)
        for _ in range(4):
            content[chance.randrange(len(content))] = chance.randrange(256)
        file.write_bytes(content)
        try:
            reader = Hdf5(file, Mapping(control_hz=20))
            outcomes += [frames_of(reader.read(key), "base_camera").shape for key in reader.keys]
        except (SourceError, EpisodeError) as error:
            outcomes.append(type(error))
    assert {SourceError, EpisodeError} & set(outcomes)
    assert (STEPS, *SIZE, 3) in outcomes


@pytest.mark.parametrize(("name", "write"), [("libero", write_libero), ("robomimic", write_robomimic)])
def test_the_mappings_of_robosuite_give_metres_and_open_grippers(tmp_path, name, write):
    mapping = load_config(Mapping, ROOT / f"configs/data/{name}.yaml")
    reader = Hdf5(write(tmp_path / "a_demo.hdf5").parent, mapping)
    episode = reader.read(reader.keys[0])
    rows = numbers(STEPS, 7, 2 if name == "libero" else 0)[-episode.length :]
    np.testing.assert_allclose(episode.actions, rows * [*[0.05] * 3, *[0.5] * 3, -1], rtol=1e-6)
    assert episode.action_space.kind == "delta_end_effector"
    if name == "robomimic":  # w, which robosuite has last, comes first
        np.testing.assert_allclose(episode.proprioception[:, 3:5], numbers(STEPS, 4, 100)[:, [3, 0]], rtol=1e-6)


def test_the_mapping_of_maniskill_gives_what_the_projects_own_episodes_hold(tmp_path):
    mapping = load_config(Mapping, ROOT / "configs/data/maniskill.yaml")
    reader = Hdf5(write_maniskill(tmp_path / "a.h5"), mapping)
    episode = reader.read(reader.keys[0])
    np.testing.assert_allclose(episode.actions, numbers(STEPS, 7, 0) * [*[0.1] * 3, *[-0.1] * 3, 1], rtol=1e-5)
    assert (episode.action_space, episode.control_hz) == (END_EFFECTOR_DELTA, 20)
