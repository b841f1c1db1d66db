"""Stores give back what was written to them, whole or not at all."""

import json
import multiprocessing
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from synthetic_episodes import (
    COLUMNS,
    HZ,
    INFO,
    INSTRUCTIONS,
    LENGTHS,
    SIZES,
    make_episode,
    moving_picture,
    psnr_db,
    write,
    write_store,
)

from core.episode import View
from core.lazy_frames import LazyFrames
from core.spaces import END_EFFECTOR_DELTA
from core.splits import SplitRule
from core.store import ActionsHiddenError, Store, StoreError, StoreInfo, finish_store, is_part_done, write_part
from core.store_layout import ColumnInfo, file_of
from eval.contact_sheet import write_contact_sheet


@pytest.fixture(scope="module", params=["h264", "png", "av1"])
def any_store(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / request.param
    write_store(path, codec=request.param)
    return Store.open(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "store"
    write_store(path)
    return Store.open(path)


LEAST_DB = {"h264": 43, "png": 100, "av1": 32}


@pytest.mark.parametrize("number", range(5))
def test_an_episode_comes_back_as_it_was_written(any_store, number):
    written, read = make_episode(number), any_store.episode(number, for_audit=True)
    for name in ("episode_id", "task", "instruction", "control_hz", "is_labelled", "split", "extra", "action_space"):
        assert getattr(read, name) == getattr(written, name)
    for name in ("actions", "proprioception"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
    assert list(read.columns) == list(COLUMNS)
    for name, values in written.columns.items():
        np.testing.assert_array_equal(read.columns[name], values)
        assert read.columns[name].dtype == values.dtype
    assert list(read.views) == list(written.views)
    for name, view in written.views.items():
        np.testing.assert_array_equal(read.views[name].extrinsics, view.extrinsics)
        assert read.views[name].frames.shape == view.frames.shape
        assert psnr_db(read.views[name].frames, view.frames) > LEAST_DB[any_store.info.codec]
    read.validate()


def test_pictures_come_back_without_any_loss(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 33, 47, 3), np.uint8)
    info = StoreInfo(control_hz=5.0, views={"side": (33, 47)}, action_space=None, proprioception_dims=0, robot_type="")
    bare = {"views": {"side": View(frames=noise)}, "control_hz": 5.0, "actions": None, "action_space": None}
    episode = make_episode(0, proprioception=None, columns={}, **bare)
    write_part(tmp_path, 0, [episode], info=replace(info, codec="png"))
    finish_store(tmp_path, replace(info, codec="png"), 1)
    np.testing.assert_array_equal(Store.open(tmp_path).frames(0, "side"), noise)
    assert "action" not in pq.read_schema(tmp_path / "data/chunk-000/file-000.parquet").names


def test_facts_and_records_survive_exactly(any_store):
    assert replace(any_store.info, codec="h264") == INFO
    assert any_store.num_frames == sum(LENGTHS)
    assert [record.start for record in any_store.episodes] == [0, 9, 21, 26, 33]
    assert [record.length for record in any_store.episodes] == list(LENGTHS)
    assert [record.index for record in any_store.episodes] == [0, 1, 2, 3, 4]
    assert any_store.episodes[3].views == ("side",)
    assert any_store.episodes[-1].extra == {"seed": 4, "success": 0.4, "source": "x"}
    assert [record.index for record in any_store.episodes[1:3]] == [1, 2]


def test_columns_that_an_episode_lacks_are_absent_and_others_do_not_mind(tmp_path):
    some = {name: values for name, values in make_episode(1).columns.items() if name in ("poses", "ticks")}
    write_part(tmp_path, 0, [make_episode(0), make_episode(1, columns=some)], info=INFO)
    finish_store(tmp_path, INFO, 1)
    store = Store.open(tmp_path)
    assert (set(store.columns(0)), set(store.columns(1))) == (set(COLUMNS), {"poses", "ticks"})
    np.testing.assert_array_equal(store.columns(1)["poses"], some["poses"])
    np.testing.assert_array_equal(store.columns(1)["ticks"], some["ticks"])


def test_episodes_are_selected_by_all_given_properties(store):
    def found(**wanted):
        return [record.index for record in store.select(**wanted)]

    assert found() == [0, 1, 2, 3, 4]
    assert found(split="held_out") == [4]
    assert found(is_labelled=False) == [1]
    assert found(task="reach") == [1, 3]
    assert found(task="reach", is_labelled=True, split="train") == [3]


def test_random_access_equals_sequential_decoding(any_store):
    rng = np.random.default_rng(0)
    whole = {(r.index, view): any_store.frames(r.index, view) for r in any_store.episodes for view in r.views}
    keys = list(whole)
    for _ in range(60):
        episode, view = keys[rng.integers(len(keys))]
        numbers = rng.integers(0, LENGTHS[episode], rng.integers(1, 6)).tolist()
        np.testing.assert_array_equal(any_store.frames(episode, view, numbers), whole[episode, view][numbers])


def test_no_frames_are_read_when_none_are_asked_for(any_store):
    assert any_store.frames(0, "side", []).shape == (0, 33, 47, 3)


def test_a_pickled_store_reads_the_same(store):
    store.actions(4)
    copy = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(copy.frames(4, "side", [4, 0, 2]), store.frames(4, "side", [4, 0, 2]))
    np.testing.assert_array_equal(copy.actions(4), store.actions(4))


def check_in_child(store, seed, expected):
    for number in np.random.default_rng(seed).integers(0, LENGTHS[4], 50).tolist():
        np.testing.assert_array_equal(store.frames(4, "side", [number])[0], expected[number])
    np.testing.assert_array_equal(store.actions(4), make_episode(4).actions)


def test_forked_processes_read_one_opened_store_at_once(store):
    expected = store.frames(4, "side")
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=check_in_child, args=(store, seed, expected)) for seed in range(3)]
    for child in children:
        child.start()
    check_in_child(store, 3, expected)
    for child in children:
        child.join(60)
        child.kill()
    assert [child.exitcode for child in children] == [0, 0, 0]


def test_actions_of_an_unlabelled_episode_are_hidden_from_all_but_an_audit(store):
    with pytest.raises(ActionsHiddenError, match="seed=1 is unlabelled"):
        store.actions(1)
    hidden = store.episode(1)
    assert hidden.actions is None
    assert not hidden.is_labelled
    np.testing.assert_array_equal(store.actions(1, for_audit=True), make_episode(1).actions)
    np.testing.assert_array_equal(store.actions(0), make_episode(0).actions)


def test_what_was_not_recorded_is_none_or_named(any_store):
    with pytest.raises(StoreError, match=r"seed=3 .* has the views \('side',\), not 'front'"):
        any_store.frames(3, "front")
    with pytest.raises(StoreError, match="not 'front'"):
        any_store.extrinsics(3, "front")
    with pytest.raises(StoreError, match="not 'wrist'"):
        any_store.frames(0, "wrist")
    with pytest.raises(StoreError, match="recorded without actions"):
        any_store.actions(2)
    assert any_store.extrinsics(0, "side") is None
    for outside in (9, -1):
        with pytest.raises(StoreError, match=rf"frames 0\.\.8, asked for \[{outside}\]"):
            any_store.frames(0, "front", [0, outside])
    with pytest.raises(StoreError, match=r"episodes 0\.\.4, asked for 5"):
        any_store.proprioception(5)
    with pytest.raises(StoreError, match=r"episodes 0\.\.4, asked for -1"):
        any_store.frames(-1, "side")


def test_statistics_are_those_of_all_recorded_frames(store):
    stated = json.loads((store.path / "meta/stats.json").read_text())
    actions = np.concatenate([make_episode(n).actions for n in (0, 1, 3, 4)]).astype(float)
    states = np.concatenate([make_episode(n).proprioception for n in range(5)]).astype(float)
    for name, values in (("action", actions), ("observation.state", states)):
        for kind in ("min", "max", "mean", "std"):
            np.testing.assert_allclose(stated[name][kind], getattr(values, kind)(0), rtol=1e-9, err_msg=kind)
        for q in (1, 10, 50, 90, 99):
            np.testing.assert_array_equal(stated[name][f"q{q:02d}"], np.quantile(values, q / 100, axis=0))
        assert stated[name]["count"] == [len(values)]
    seen = np.concatenate([make_episode(n).views["side"].frames[[0, -1]] for n in range(5)]) / 255
    colours = stated["observation.images.side"]
    assert np.shape(colours["mean"]) == (3, 1, 1)
    assert np.abs(np.ravel(colours["mean"]) - seen.mean((0, 1, 2))).max() < 0.03
    assert (np.ravel(colours["min"]) <= seen.min((0, 1, 2))).all()


def test_the_layout_is_the_one_that_lerobot_reads(store):
    info = json.loads((store.path / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_frames"]) == ("v3.0", HZ, sum(LENGTHS))
    frames = pd.concat(pd.read_parquet(file) for file in sorted(store.path.glob("data/*/*.parquet")))
    assert set(frames) == {name for name, feature in info["features"].items() if feature["dtype"] != "video"}
    assert list(frames["index"]) == list(range(sum(LENGTHS)))
    assert list(frames["episode_index"]) == list(np.repeat(range(5), LENGTHS))
    tasks = pd.read_parquet(store.path / "meta/tasks.parquet")
    assert list(tasks.index[frames["task_index"]]) == [INSTRUCTIONS[n % 2] for n in np.repeat(range(5), LENGTHS)]
    table = pd.concat(pd.read_parquet(file) for file in sorted(store.path.glob("meta/episodes/*/*.parquet")))
    begin = table["videos/observation.images.side/from_timestamp"].to_numpy()
    np.testing.assert_allclose(begin * HZ, [0, 9, 0, 0, 7])
    assert table["videos/observation.images.front/from_timestamp"].isna().tolist() == [False, False, False, True, False]
    assert {path.name for path in store.path.iterdir()} == {"data", "videos", "meta"}


def test_files_beyond_the_thousandth_lie_in_the_next_chunk(tmp_path):
    assert str(file_of("s", "data", 999)) == "s/data/chunk-000/file-999.parquet"
    assert str(file_of("s", "data", 1000)) == "s/data/chunk-001/file-000.parquet"
    assert str(file_of("s", "meta/episodes", 2001)) == "s/meta/episodes/chunk-002/file-001.parquet"
    assert str(file_of("s", "videos/observation.images.a", 1234)).endswith("a/chunk-001/file-234.mp4")
    assert str(file_of("s", "meta/video_index/observation.images.a", 7)).endswith("a/chunk-000/file-007.npz")


@pytest.mark.parametrize("codec", ["h264", "png"])
def test_a_store_of_several_chunks_is_read_like_any(tmp_path, monkeypatch, codec):
    for module in ("layout", "finish", "contents"):
        monkeypatch.setattr(f"core.store_{module}.FILES_PER_CHUNK", 2)
    info = replace(INFO, codec=codec)
    for part in range(5):
        write_part(tmp_path, part, [make_episode(part)], info=info)
    finish_store(tmp_path, info, 5)
    assert (tmp_path / "data/chunk-002/file-000.parquet").is_file()
    store = Store.open(tmp_path)
    for number in range(5):
        read, written = store.episode(number, for_audit=True), make_episode(number)
        assert read.episode_id == written.episode_id
        np.testing.assert_array_equal(read.proprioception, written.proprioception)
        assert psnr_db(read.views["side"].frames, written.views["side"].frames) > 43


def test_more_files_than_may_stay_open_are_all_read(tmp_path, monkeypatch):
    write_store(tmp_path)
    monkeypatch.setattr("core.video.OPEN_FILES", 1)
    monkeypatch.setattr("core.table_reader.OPEN_FILES", 1)
    store = Store.open(tmp_path)
    for number in (0, 4, 2, 0, 3, 1):
        assert psnr_db(store.frames(number, "side"), make_episode(number).views["side"].frames) > 43
        np.testing.assert_array_equal(store.proprioception(number), make_episode(number).proprioception)


def test_another_content_or_another_split_has_another_fingerprint(store, tmp_path):
    brighter = make_episode(0).views["side"].frames + np.uint8(2)
    views = make_episode(0).views | {"side": View(frames=brighter)}
    for path, changes in ((tmp_path / "brighter", {"views": views}), (tmp_path / "held_out", {"split": "held_out"})):
        write_part(path, 0, [make_episode(0, **changes), make_episode(1)], info=INFO)
        write(path, 1)
        write(path, 2)
        finish_store(path, INFO, 3)
        assert Store.open(path).fingerprint != store.fingerprint


def test_a_store_that_is_not_there_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"nowhere does not exist.*run the stage"):
        Store.open(tmp_path / "nowhere")
    (tmp_path / "foreign/meta").mkdir(parents=True)
    (tmp_path / "foreign/meta/info.json").write_text('{"codebase_version": "v2.1"}')
    with pytest.raises(StoreError, match=r"has format v2\.1, a store v3\.0; convert it with scripts/convert_ep"):
        Store.open(tmp_path / "foreign")


def test_episodes_of_one_name_and_stores_without_any_are_refused(tmp_path):
    write(tmp_path / "twins", 0)
    write_part(tmp_path / "twins", 1, [make_episode(2, episode_id="reach/seed=0")], info=INFO)
    with pytest.raises(StoreError, match="reach/seed=0 twice"):
        finish_store(tmp_path / "twins", INFO, 2)
    write_part(tmp_path / "none", 0, [], info=INFO, skipped=[{"key": "a", "reason": "it is damaged"}])
    with pytest.raises(StoreError, match="no episodes; all were left out, the first because: it is damaged"):
        finish_store(tmp_path / "none", INFO, 1)


NOT_FINITE = np.where(np.arange(9)[:, None] == 4, np.nan, np.zeros((9, 7))).astype(np.float32)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"views": {"front": View(frames=moving_picture(0, 9, 24, 64))}}, r"\(24, 64\).* do not fit"),
        ({"views": {"wrist": View(frames=moving_picture(0, 9, 48, 64))}}, "wrist.* do not fit"),
        ({"control_hz": 10.0}, "has 10.0 Hz"),
        ({"proprioception": np.zeros((9, 3), np.float32)}, "3 numbers of proprioception, the store has 9"),
        ({"action_space": END_EFFECTOR_DELTA.model_copy(update={"frame": "camera"})}, "is not the store's"),
        ({"actions": NOT_FINITE}, "action of frame 4 is not finite"),
        ({"actions": np.zeros((8, 7), np.float32), "proprioception": None}, "8 actions for 9 frames"),
        ({"columns": {"poses": np.zeros((9, 3, 2), np.float32)}}, r"column poses of shape \(9, 3, 2\)"),
        ({"columns": {"force": np.zeros(9)}}, "column force"),
    ],
)
def test_an_episode_that_does_not_fit_the_store_is_refused(tmp_path, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        write_part(tmp_path, 0, [make_episode(0, **changes)], info=INFO)
    assert not is_part_done(tmp_path, 0)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"control_hz": 0.0}, "needs a rate and a view"),
        ({"control_hz": float("nan")}, "needs a rate and a view"),
        ({"views": {}}, "needs a rate and a view"),
        ({"views": {"left/wrist": (8, 8)}}, "leave out '/'"),
        ({"views": {"side": (0, 8)}}, r"\'side\': \(0, 8\)"),
        ({"views": {"side": (10**6, 10**6)}}, r"\'side\': \(1000000, 1000000\)"),
        ({"columns": {"timestamp": ColumnInfo("float32", (1,))}}, "rename them"),
        ({"proprioception_dims": 8}, "9 names for 8 numbers"),
    ],
)
def test_a_store_that_the_layout_cannot_hold_is_refused(changes, complaint):
    with pytest.raises(StoreError, match=complaint):
        replace(INFO, **changes)


def test_frames_are_taken_a_few_at_a_time_and_only_once(tmp_path):
    asked = []

    def read(start, stop):
        asked.append((start, stop))
        return moving_picture(0, 100, 33, 47)[start:stop]

    episode = make_episode(0, length=100, views={"side": View(frames=LazyFrames(100, (33, 47), read))})
    write_part(tmp_path, 0, [episode], info=INFO)
    assert asked == [(0, 32), (32, 64), (64, 96), (96, 100)]


def test_a_split_by_rule_stands_in_the_store(tmp_path):
    write(tmp_path, 0)
    write(tmp_path, 1)
    finish_store(tmp_path, INFO, 2, SplitRule(held_out=0.34, seed=1))
    assert sorted(record.split for record in Store.open(tmp_path).episodes) == ["held_out", "train", "train"]


def test_a_store_is_read_without_torch():
    code = "import core.store, sys; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_contact_sheet_shows_the_first_episode_with_the_most_views(tmp_path):
    write_part(tmp_path, 0, (make_episode(number) for number in (3, 1)), info=INFO)
    finish_store(tmp_path, INFO, 1)
    with Image.open(write_contact_sheet(tmp_path)) as sheet:
        assert sheet.width == 4 * sum(width for _, width in SIZES.values())
