"""Data sets of LeRobot are read as LeRobot reads them, and LeRobot reads our stores as we do."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.spatial.transform import Rotation
from synthetic_episodes import INFO, SIZES, copy_of, make_episode, moving_picture, psnr_db

from core.conversion import ConversionConfig, convert
from core.episode import View
from core.formats.by_name import open_source
from core.formats.interface import EpisodeError, SourceError
from core.formats.mapping import Mapping
from core.statistics import describe
from core.store import Store, StoreError, finish_store, write_part

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests/golden/lerobot_v3"
"""Written with lerobot 0.6.1: `tests/lerobot_compatibility.py write_tiny`, and some of what `read` gives of it."""
RECORDING = ROOT.parent / "shared/data/g1_lerobot_v2"
LEROBOT = os.environ.get("MVP_LAM_LEROBOT_PYTHON")
needs_lerobot = pytest.mark.skipif(not LEROBOT, reason="MVP_LAM_LEROBOT_PYTHON names no Python with lerobot 0.6.1")
needs_recording = pytest.mark.skipif(not RECORDING.is_dir(), reason="the real recording is not on this machine")


def lerobot(*words):
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "OMP_NUM_THREADS": "1"}
    command = [LEROBOT, str(ROOT / "tests/lerobot_compatibility.py"), *map(str, words)]
    done = subprocess.run(command, env=environment | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def all_of(store, view, only=None):
    found = [store.frames(record.index, view) for record in store.episodes]
    return np.concatenate(found)[:: only or 1]


def numbers_of(store):
    """Everything but frames, by LeRobot's names, one row a frame."""
    rows = {}
    for record in store.episodes:
        found = {"observation.state": store.proprioception(record.index), **store.columns(record.index)}
        found["action"] = store.actions(record.index, for_audit=True)
        found["task"] = np.array([record.instruction] * record.length)
        found["frame_index"] = np.arange(record.length)
        found["episode_index"] = np.full(record.length, record.index)
        for name, values in found.items():
            rows.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in rows.items()}


def check_numbers(ours, theirs):
    for name, values in ours.items():
        expected = values.astype(str) if values.dtype.kind == "O" else values
        if values.dtype == np.float64:
            expected = values.astype(np.float32)  # LeRobot gives float64 as float32
        np.testing.assert_array_equal(theirs[name], expected, err_msg=name)


def test_what_lerobot_wrote_is_read_as_lerobot_reads_it():
    store, theirs = Store.open(GOLDEN / "data_set"), np.load(GOLDEN / "read_by_lerobot.npz")
    assert store.info.views == {"front": (64, 96), "wrist": (64, 64)}
    assert (store.info.control_hz, store.info.robot_type, store.notes) == (10.0, "arm", [])
    assert store.info.action_space.names == ("x", "y", "gripper")
    assert store.info.proprioception_names == ("a", "b", "c", "d")
    for view in store.info.views:
        seen = all_of(store, view)[:, ::8, ::8].astype(int)
        assert np.abs(seen - theirs[f"pixels.{view}"]).max() <= 2  # decoders of AV1 agree, conversions to RGB may not
    check_numbers(numbers_of(store), theirs)
    assert [record.instruction for record in store.episodes] == ["push the cube", "reach"]
    for record in store.episodes:
        store.episode(record.index).validate()


def test_single_frames_in_any_order_are_those_of_the_whole_episode():
    store = Store.open(GOLDEN / "data_set")
    whole = store.frames(1, "front")
    assert len({frame.tobytes() for frame in whole}) == 6
    for numbers in ([5], [0], [3, 1, 1], [2, 5, 0]):
        np.testing.assert_array_equal(store.frames(1, "front", numbers), whole[numbers])


def test_a_data_set_of_lerobot_becomes_a_store_without_loss(tmp_path):
    config = ConversionConfig(source=str(GOLDEN / "data_set"), out=tmp_path / "store", codec="png", workers=1)
    store, source = convert(config), Store.open(GOLDEN / "data_set")
    for view in source.info.views:
        np.testing.assert_array_equal(all_of(store, view), all_of(source, view))
    check_numbers(numbers_of(store), {name: v.astype(v.dtype) for name, v in numbers_of(source).items()})
    assert store.info == replace(source.info, codec="png")


def damaged(tmp_path, name, damage):
    path = copy_of(GOLDEN / "data_set", tmp_path / "damaged")
    file = path / name
    damage(file)
    return path


def described(**changes):
    def change(file):
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


VIDEO = "videos/observation.images.front/chunk-000/file-000.mp4"


@pytest.mark.parametrize(
    ("name", "damage", "complaint"),
    [
        ("meta/info.json", described(codebase_version="v2.1"), "has format v2.1"),
        ("meta/info.json", described(features={}), "needs a rate and a view"),
        ("meta/info.json", described(fps="often"), "not one of LeRobot's"),
        ("meta/info.json", described(fps=5), "has 6 frames at 5.0 Hz"),
        ("meta/info.json", lambda file: file.write_bytes(b"\xff{"), "is damaged"),
        ("meta/info.json", lambda file: file.write_text("[1]"), "is damaged"),
        ("meta/episodes/chunk-000/file-000.parquet", lambda file: file.unlink(), "no table of episodes"),
        ("meta/episodes/chunk-000/file-000.parquet", lambda file: file.write_bytes(b"PAR1"), "is damaged"),
        ("data/chunk-000/file-000.parquet", lambda file: file.unlink(), "none of the files of its 2 episodes"),
        (VIDEO, lambda file: file.unlink(), "none of the files of its 2 episodes"),
    ],
)
def test_a_data_set_of_lerobot_that_is_damaged_is_refused_when_it_is_opened(tmp_path, name, damage, complaint):
    path = damaged(tmp_path, name, damage)
    with pytest.raises(StoreError, match=complaint):
        Store.open(path)
    with pytest.raises(SourceError, match=complaint):
        open_source(path, Mapping(format="lerobot_v3"))


def test_a_video_of_lerobot_that_is_cut_off_is_an_error_of_the_episode_that_needs_it(tmp_path):
    path = damaged(tmp_path, VIDEO, lambda file: file.write_bytes(file.read_bytes()[:2000]))
    reader = open_source(path, Mapping())
    assert list(reader.keys) == ["episode_000000", "episode_000001"]
    with pytest.raises(EpisodeError, match="episode_000001"):
        reader.read("episode_000001").views["front"].frames[:]


def test_promises_that_a_data_set_does_not_keep_are_said(tmp_path):
    path = damaged(tmp_path, "meta/info.json", described(total_episodes=40))
    assert Store.open(path).notes == ["meta/info.json promises total_episodes = 40, 2 are there"]


def test_held_out_ranges_of_lerobot_are_held_out(tmp_path):
    path = damaged(tmp_path, "meta/info.json", described(splits={"train": "0:1", "test": "1:2"}))
    assert [record.split for record in Store.open(path).episodes] == ["train", "held_out"]


DATA_FILE, EPISODE_FILE = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"


def with_column(name, values):
    """Other values in a table; of each frame or episode."""

    def change(file):
        table = pq.read_table(file, partitioning=None)
        column = values(table) if callable(values) else values
        others = [other for other in table.column_names if other != name]
        pq.write_table(table.select(others).append_column(name, column), file)

    return change


@pytest.mark.parametrize("kind", ["uint16", "uint32", "uint64", "float16"])
def test_columns_of_types_that_stores_lack_are_widened(tmp_path, kind):
    values = np.arange(12).astype(kind)
    path = damaged(tmp_path, DATA_FILE, with_column("ticks", pa.array(values)))
    facts = json.loads((path / "meta/info.json").read_text())
    facts["features"]["ticks"] = {"dtype": kind, "shape": [1], "names": None}
    (path / "meta/info.json").write_text(json.dumps(facts))
    store = convert(ConversionConfig(source=str(path), out=tmp_path / "store", workers=1))
    np.testing.assert_array_equal(np.concatenate([store.columns(n)["ticks"] for n in range(2)]), values)
    if kind == "uint64":
        with_column("ticks", pa.array(values + np.uint64(2**63)))(path / DATA_FILE)
        with pytest.raises(EpisodeError, match=r"episode_000001: ticks holds .*, more than an int64 column can"):
            open_source(path, Mapping()).read("episode_000001")
        assert "ticks" not in open_source(path, Mapping(columns=("phase",))).read("episode_000001").columns
    facts["features"]["ticks"]["dtype"] = "decimal"
    (path / "meta/info.json").write_text(json.dumps(facts))
    with pytest.raises(SourceError, match="ticks holds decimal, for which there is no column; leave it out"):
        open_source(path, Mapping())


def test_columns_of_actions_that_are_not_there_are_refused():
    mapping = Mapping.model_validate({"actions": [{"source": "action", "columns": [1, 3]}]})
    with pytest.raises(SourceError, match=r"action has 3 numbers a frame, the mapping wants columns \[1, 3\]"):
        open_source(GOLDEN / "data_set", mapping)


def not_utf8(table):
    lists = table["tasks"].combine_chunks()
    words = pa.array([b"push \xe9t\xe9" if n else b"reach" for n in range(len(lists.values))])
    texts = pa.StringArray.from_buffers(len(words), *words.buffers()[1:])
    return pa.ListArray.from_arrays(lists.offsets, texts)


def test_an_instruction_that_is_not_utf8_is_refused_with_its_file_and_episode(tmp_path):
    path = damaged(tmp_path, EPISODE_FILE, with_column("tasks", not_utf8))
    complaint = rf"{EPISODE_FILE} is damaged: tasks of row 1, episode 1, is not UTF-8: b'push \\xe9t\\xe9'"
    with pytest.raises(StoreError, match=complaint):
        Store.open(path)
    with pytest.raises(SourceError, match=complaint):
        open_source(path, Mapping())


def times(*of_episodes):
    return with_column("timestamp", pa.array(np.concatenate(of_episodes).astype(np.float32)))


def test_another_rate_is_refused_and_lost_time_is_noted(tmp_path):
    lengths = [record.length for record in Store.open(GOLDEN / "data_set").episodes]
    first, second = (np.arange(length) / 10 for length in lengths)
    path = damaged(tmp_path, DATA_FILE, times(first * 3, second + 0.55 * (second > 0.25)))
    reader = open_source(path, Mapping())
    with pytest.raises(EpisodeError, match=r"000000: timestamps are 3\.33 a second, meta/info.json says fps 10"):
        reader.read("episode_000000")
    assert reader.notes == []
    reader.read("episode_000001")
    assert reader.notes == ["episode_000001: 1 time gaps, the longest of 0.65 s after frame 2"]


def on_the_picture(extrinsics, points, size):
    """Where a camera with a focal length of 100 pixels shows points, (row, column) from the picture's middle."""
    seen = extrinsics @ np.append(points, np.ones((len(points), 1)), axis=1).T
    return 100 * seen[1::-1] / seen[2] + np.array(size)[:, None] / 2


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_extrinsics_of_a_turned_picture_show_points_where_the_turned_picture_does(tmp_path, turn):
    height, width = SIZES["front"]
    pose = np.concatenate([Rotation.from_rotvec([0.1, -0.2, 0.3]).as_matrix(), [[0.02], [0.01], [1.0]]], axis=1)
    points = np.array([[0.1, 0.05, 0.1], [-0.1, 0.1, 0.0], [0.0, -0.15, 0.2]])
    frame = np.zeros((height, width, 3), np.uint8)
    for colour, (row, column) in enumerate(on_the_picture(pose, points, (height, width)).T):
        frame[int(row), int(column), colour] = 255
    episode = make_episode(0)
    frames = np.repeat(frame[None], episode.length, axis=0)
    poses = np.repeat(pose[None], episode.length, axis=0).astype(np.float32)
    info = replace(INFO, codec="png")
    write_part(tmp_path, 0, [replace(episode, views={"front": View(frames=frames, extrinsics=poses)})], info=info)
    finish_store(tmp_path, info, 1)
    mapping = Mapping.model_validate({"views": {"front": {"source": "front", "rotate_deg": turn}}})
    reader = open_source(tmp_path, mapping)
    view = reader.read(reader.keys[0]).views["front"]
    turned = view.frames[2:3][0]
    assert view.extrinsics.dtype == np.float32
    for colour, place in enumerate(on_the_picture(view.extrinsics[2], points, turned.shape[:2]).T):
        lit = np.argwhere(turned[..., colour])[0] + 0.5
        assert np.abs(place - lit).max() < 0.51


@needs_recording
def test_the_real_recording_is_read_as_it_is_and_its_promise_is_said():
    reader = open_source(RECORDING, Mapping())
    assert list(reader.keys) == ["000090"]
    assert "promises 100 episodes, 1 are there" in " ".join(reader.notes)
    episode = reader.read("000090")
    assert (episode.length, episode.control_hz, episode.actions.shape[0]) == (464, 30.0, 464)
    assert {name: view.frames.shape for name, view in episode.views.items()} == {"cam_high": (464, 480, 640, 3)}


@needs_recording
def test_the_real_recording_converted_is_the_recording(tmp_path):
    config = ConversionConfig(source=str(RECORDING), out=tmp_path / "store", mapping=SMALL, workers=1)
    store, source = convert(config), open_source(RECORDING, SMALL).read("000090")
    np.testing.assert_array_equal(store.actions(0), source.actions)
    np.testing.assert_array_equal(store.proprioception(0), source.proprioception)
    assert set(store.columns(0)) == set(source.columns)
    for name, values in source.columns.items():
        np.testing.assert_array_equal(store.columns(0)[name], values)
    assert store.num_frames == 464
    for start in (0, 200, 432):
        stretch = source.views["head"].frames[start : start + 32]
        assert psnr_db(store.frames(0, "head", range(start, start + 32)), stretch) > 38


SMALL = Mapping(views={"head": {"source": "cam_high", "size": (60, 80)}})


def with_all_views(number):
    """LeRobot knows no missing cameras."""
    episode = make_episode(number)
    views = {view: View(frames=moving_picture(number, episode.length, *size)) for view, size in SIZES.items()}
    return replace(episode, views=views)


@pytest.mark.slow
@needs_lerobot
@pytest.mark.parametrize(("codec", "difference"), [("h264", 0), ("png", 0), ("av1", 2)])
def test_lerobot_reads_our_store_as_we_do(tmp_path, codec, difference):
    info = replace(INFO, codec=codec)
    for part, numbers in enumerate([(0, 1), (3, 4)]):
        write_part(tmp_path / "s", part, [with_all_views(number) for number in numbers], info=info)
    finish_store(tmp_path / "s", info, 2)
    store = Store.open(tmp_path / "s")
    lerobot("read", tmp_path / "s", tmp_path / "theirs.npz")
    theirs = np.load(tmp_path / "theirs.npz")
    check_numbers(numbers_of(store), theirs)
    assert (float(theirs["fps"]), int(theirs["episodes"])) == (INFO.control_hz, 4)
    for view in SIZES:
        apart = np.abs(all_of(store, view).astype(int) - theirs[f"observation.images.{view}"])
        assert apart.mean() <= difference
    stated = json.loads((store.path / "meta/stats.json").read_text())
    for feature, facts in stated.items():
        for fact, values in facts.items():
            np.testing.assert_array_equal(theirs[f"stats/{feature}/{fact}"], values)


@pytest.fixture(scope="session")
def made_by_lerobot(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lerobot")
    lerobot("write", folder)
    for kind in ("video", "image"):
        lerobot("read", folder / kind, folder / f"{kind}.npz")
    return folder


@pytest.mark.slow
@needs_lerobot
@pytest.mark.parametrize("kind", ["video", "image"])
def test_we_read_what_lerobot_writes_as_it_does(made_by_lerobot, kind):
    store, theirs = Store.open(made_by_lerobot / kind), np.load(made_by_lerobot / f"{kind}.npz")
    assert len(list((store.path / "data").rglob("*.parquet"))) > 1
    assert kind == "image" or len(list((store.path / "videos").rglob("*.mp4"))) > 2
    assert [record.length for record in store.episodes] == [20, 13, 2, 30, 16, 25]
    ours = numbers_of(store)
    assert set(ours) >= {"is_open", "phase", "ticks", "observation.matrix", "action", "observation.state"}
    check_numbers(ours, theirs)
    for view in ("front", "wrist"):
        apart = np.abs(all_of(store, view).astype(int) - theirs[f"observation.images.{view}"])
        assert apart.mean() <= 2


@pytest.mark.slow
@needs_lerobot
def test_our_statistics_are_those_of_lerobot_by_name(made_by_lerobot):
    store, theirs = Store.open(made_by_lerobot / "video"), np.load(made_by_lerobot / "video.npz")
    found = describe([store.actions(record.index) for record in store.episodes])
    names = {name.rsplit("/", 1)[1] for name in theirs.files if name.startswith("stats/action/")}
    assert set(found) == names
    for name in ("min", "max", "mean", "std", "count"):
        np.testing.assert_allclose(found[name], theirs[f"stats/action/{name}"], rtol=1e-5, atol=1e-6)
    # LeRobot estimates quantiles from histograms of each episode and averages those.
    for name in sorted(names - {"min", "max", "mean", "std", "count"}):
        np.testing.assert_allclose(found[name], theirs[f"stats/action/{name}"], atol=1.0)
