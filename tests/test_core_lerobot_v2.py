"""LeRobot v2 is read as it is: one table and one video a camera for each episode, of any rate, or a typed error."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_episodes import moving_picture, psnr_db

from core.config import ConfigError, load_config
from core.conversion import ConversionConfig, convert
from core.formats.by_name import open_source
from core.formats.interface import EpisodeError, SourceError
from core.formats.mapping import Mapping
from core.video import VideoWriter

LENGTH, HZ, SIZE = 12, 10, (48, 64)
ACTIONS = np.random.default_rng(0).normal(size=(LENGTH, 3)).astype(np.float32)


def picture_of(seed, step):
    return moving_picture(seed, 3 * LENGTH, *SIZE)[step]


def write_v2(path, episodes=3, rate=1.0, frames=None, columns=None, camera="video", **described):
    """A data set whose camera is `rate` times as fast as its numbers; `columns` are further ones."""
    columns = columns or {}
    features = {"front": {"dtype": camera, "shape": [*SIZE, 3], "names": ["height", "width", "channels"]}}
    features["action"] = {"dtype": "float32", "shape": [3], "names": None}
    features |= {name: {"dtype": values.dtype.name, "shape": [1], "names": None} for name, values in columns.items()}
    for number in range(episodes):
        table = {
            "action": list(ACTIONS),
            "timestamp": (np.arange(LENGTH) / HZ).astype(np.float32),
            "frame_index": np.arange(LENGTH),
            "task_index": np.zeros(LENGTH, np.int64),
            **columns,
        }
        file = path / f"data/chunk-000/episode_{number:06d}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), file)
        video = path / f"videos/chunk-000/front/episode_{number:06d}.mp4"
        video.parent.mkdir(parents=True, exist_ok=True)
        with VideoWriter(video, SIZE, float(rate * HZ)) as writer:
            writer.append(moving_picture(number, frames or round(rate * LENGTH), *SIZE))
            writer.finish()
    info = {"codebase_version": "v2.1", "fps": HZ, "features": features, "total_episodes": episodes} | described
    (path / "meta").mkdir()
    (path / "meta/info.json").write_text(json.dumps(info))
    (path / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "push the cube"}\n')
    return path


def change(path, number=0, **columns):
    """Other values in the table of an episode."""
    file = path / f"data/chunk-000/episode_{number:06d}.parquet"
    table = pq.read_table(file)
    for name, values in columns.items():
        table = table.drop_columns([name] if name in table.column_names else []).append_column(name, pa.array(values))
    pq.write_table(table, file)


def read(path, key="000000", **mapping):
    return open_source(path, Mapping.model_validate(mapping)).read(key)


@pytest.mark.parametrize("rate", [0.5, 1, 2, 3])
def test_each_row_has_the_frame_that_its_camera_showed_then(tmp_path, rate):
    frames = read(write_v2(tmp_path / "d", episodes=1, rate=rate)).views["front"].frames
    assert len(frames) == LENGTH
    seen = frames[0:LENGTH]
    for step in range(LENGTH):
        shown = {0.5: step // 2, 1: step, 2: 2 * step, 3: 3 * step}[rate]
        # Half way between two frames of a slow camera either is as near.
        nearest = max(psnr_db(seen[step], picture_of(0, n)) for n in {shown, shown + (rate < 1) * (step % 2)})
        assert nearest > 30, step
    np.testing.assert_array_equal(frames[5:7], seen[5:7])


@pytest.mark.parametrize(("rate", "frames"), [(1, 11), (1, 13), (2, 21), (2, 30)])
def test_a_video_that_does_not_last_as_long_as_its_table_is_refused(tmp_path, rate, frames):
    with pytest.raises(EpisodeError, match=rf"episode 000000: .*episode_000000\.mp4 holds {frames} frames and lasts"):
        read(write_v2(tmp_path / "d", episodes=1, rate=rate, frames=frames))


def test_a_camera_of_another_rate_may_end_a_frame_early_or_late(tmp_path):
    for frames in (23, 25):
        path = write_v2(tmp_path / f"{frames}", episodes=1, rate=2, frames=frames)
        assert psnr_db(read(path).views["front"].frames[11:12][0], picture_of(0, 22)) > 30


def test_what_the_source_holds_out_stays_held_out(tmp_path):
    path = write_v2(tmp_path / "d", splits={"train": "0:2", "test": "2:3"})
    reader = open_source(path, Mapping())
    assert [reader.read(key).split for key in reader.keys] == ["train", "train", "held_out"]
    store = convert(ConversionConfig(source=str(path), out=tmp_path / "store", split=None, workers=1))
    assert [record.split for record in store.episodes] == ["train", "train", "train"]  # the same actions: copies


COLUMNS = {
    "small": np.arange(LENGTH).astype(np.uint16),
    "middle": np.arange(LENGTH).astype(np.uint32) + 2**31,
    "large": np.arange(LENGTH).astype(np.uint64) + 2**62,
    "half": np.arange(LENGTH).astype(np.float16) / 8,
}


def test_columns_of_types_that_stores_lack_are_widened(tmp_path):
    path = write_v2(tmp_path / "d", columns=COLUMNS)
    store = convert(ConversionConfig(source=str(path), out=tmp_path / "store", workers=1))
    assert {name: column.dtype for name, column in store.info.columns.items()} == {
        "small": "int32",
        "middle": "int64",
        "large": "int64",
        "half": "float32",
    }
    for name, values in COLUMNS.items():
        np.testing.assert_array_equal(store.columns(0)[name], values)


def test_a_column_that_no_store_can_hold_is_named_and_can_be_left_out(tmp_path):
    path = write_v2(tmp_path / "d", columns=COLUMNS)
    change(path, large=np.full(LENGTH, 2**63, np.uint64))
    with pytest.raises(EpisodeError, match="episode 000000: large holds 9223372036854775808, more than an int64"):
        read(path)
    assert set(read(path, columns=["small", "half"]).columns) == {"small", "half"}
    described = json.loads((path / "meta/info.json").read_text())
    described["features"]["middle"]["dtype"] = "complex64"
    (path / "meta/info.json").write_text(json.dumps(described))
    with pytest.raises(SourceError, match="middle holds complex64, for which there is no column; leave it out"):
        open_source(path, Mapping())
    open_source(path, Mapping(columns=("small",)))


def test_columns_of_actions_that_are_not_there_are_refused(tmp_path):
    path = write_v2(tmp_path / "d", episodes=1)
    with pytest.raises(SourceError, match=r"action has 3 numbers a frame, the mapping wants columns \[3\]"):
        read(path, actions=[{"source": "action", "columns": [3]}])
    np.testing.assert_array_equal(read(path, actions=[{"source": "action", "columns": [2]}]).actions, ACTIONS[:, 2:])
    with pytest.raises(ConfigError, match="greater than or equal to 0"):
        load_config(Mapping, overrides={"actions": [{"source": "action", "columns": [-1]}]})


@pytest.mark.parametrize("cells", [[b"picture"] * LENGTH, ["picture"] * LENGTH, list(range(LENGTH))])
def test_pictures_that_are_not_kept_as_lerobot_does_are_refused(tmp_path, cells):
    path = write_v2(tmp_path / "d", episodes=1, camera="image")
    change(path, front=cells)
    with pytest.raises(EpisodeError, match=r"front holds (binary|string|int64), not pictures as LeRobot keeps them"):
        read(path)
    change(path, front=[{"bytes": None if step == 4 else b"x", "path": None} for step in range(LENGTH)])
    with pytest.raises(EpisodeError, match="frame 4 of front has no picture"):
        read(path)


def test_another_rate_is_refused_and_lost_time_is_noted(tmp_path):
    path = write_v2(tmp_path / "d")
    times = np.arange(LENGTH) / HZ
    change(path, 0, timestamp=(times * 2).astype(np.float32))
    change(path, 1, timestamp=(times + 0.7 * (np.arange(LENGTH) > 4)).astype(np.float32))
    reader = open_source(path, Mapping())
    with pytest.raises(EpisodeError, match=r"000000: timestamps are 5\.00 a second, meta/info.json says fps 10"):
        reader.read("000000")
    reader.read("000002")
    assert reader.notes == []
    assert reader.read("000001").length == LENGTH
    assert reader.notes == ["000001: 1 time gaps, the longest of 0.80 s after frame 4"]
