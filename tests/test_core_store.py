import json
import multiprocessing
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from core.episode import Episode, View
from core.spaces import END_EFFECTOR_DELTA
from core.store import ActionsHiddenError, Store, StoreError, StoreInfo, finish_store, is_part_done, write_part
from core.video import VideoReader, VideoWriter
from eval.contact_sheet import write_contact_sheet

HZ = 20 / 3
SIZES = {"front": (48, 64), "side": (33, 47)}
INFO = StoreInfo(control_hz=HZ, views=SIZES, action_space=END_EFFECTOR_DELTA, proprioception_dims=9, robot_type="panda")
TASKS = ("push the cube", "reach")
LENGTHS = (9, 12, 5, 7, 11)


def moving_picture(seed, frames, height, width):
    time, row, column, colour = np.ogrid[:frames, :height, :width, :3]
    waves = 128 + 90 * np.sin((column + (1 + colour) * row + 4 * time + 7 * seed) / 15)
    return waves.astype(np.uint8)


def make_episode(number, **changes):
    rng, length = np.random.default_rng(number), LENGTHS[number]
    views = {
        name: View(
            frames=moving_picture(number + 10 * (name == "side"), length, *size),
            extrinsics=rng.normal(size=(length, 3, 4)).astype(np.float32) if name == "front" else None,
        )
        for name, size in SIZES.items()
        if (number, name) != (3, "front")
    }
    parts = {
        "episode_id": f"reach/seed={number}",
        "task": "reach" if number % 2 else "push",
        "instruction": TASKS[number % 2],
        "control_hz": HZ,
        "views": views,
        "actions": None if number == 2 else rng.normal(size=(length, 7)).astype(np.float32),
        "action_space": END_EFFECTOR_DELTA,
        "proprioception": rng.normal(size=(length, 9)).astype(np.float32),
        "is_labelled": number != 1,
        "split": "held_out" if number == 4 else "train",
        "extra": {"seed": number, "success": 0.1 * number, "source": "x"},
    }
    return Episode(**(parts | changes))


PARTS = ((0, 1), (2,), (3, 4))


def write(path, part, **changes):
    first = PARTS[part][0]
    episodes = (make_episode(number) for number in PARTS[part])
    places = {"first_episode": first, "first_frame": sum(LENGTHS[:first]), "tasks": TASKS}
    write_part(path, part, episodes, info=INFO, **(places | changes))


def write_store(path, order=(0, 1, 2)):
    for part in order:
        write(path, part)
    return finish_store(path, INFO, len(PARTS), TASKS)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "store"
    write_store(path)
    return Store.open(path)


def psnr_db(left, right):
    return 10 * np.log10(255**2 / np.mean((left.astype(float) - right) ** 2))


@pytest.mark.parametrize("number", range(5))
def test_an_episode_comes_back_as_it_was_written(store, number):
    written, read = make_episode(number), store.episode(number, for_audit=True)
    for name in ("episode_id", "task", "instruction", "control_hz", "is_labelled", "split", "extra", "action_space"):
        assert getattr(read, name) == getattr(written, name)
    for name in ("actions", "proprioception"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
    assert list(read.views) == list(written.views)
    for name, view in written.views.items():
        np.testing.assert_array_equal(read.views[name].extrinsics, view.extrinsics)
        assert read.views[name].frames.shape == view.frames.shape
        assert psnr_db(read.views[name].frames, view.frames) > 38
    read.validate()


def test_facts_and_records_survive_exactly(store):
    assert store.info == INFO
    assert store.num_frames == sum(LENGTHS)
    assert [record.start for record in store.episodes] == [0, 9, 21, 26, 33]
    assert [record.length for record in store.episodes] == list(LENGTHS)
    assert [record.index for record in store.episodes] == [0, 1, 2, 3, 4]
    assert store.episodes[3].views == ("side",)
    assert store.episodes[4].extra == {"seed": 4, "success": 0.4, "source": "x"}


def test_episodes_are_selected_by_all_given_properties(store):
    def found(**wanted):
        return [record.index for record in store.select(**wanted)]

    assert found() == [0, 1, 2, 3, 4]
    assert found(split="held_out") == [4]
    assert found(is_labelled=False) == [1]
    assert found(task="reach") == [1, 3]
    assert found(task="reach", is_labelled=True, split="train") == [3]


def test_random_access_equals_sequential_decoding(store):
    rng = np.random.default_rng(0)
    whole = {(r.index, view): store.frames(r.index, view) for r in store.episodes for view in r.views}
    keys = list(whole)
    for _ in range(60):
        episode, view = keys[rng.integers(len(keys))]
        numbers = rng.integers(0, LENGTHS[episode], rng.integers(1, 6)).tolist()
        np.testing.assert_array_equal(store.frames(episode, view, numbers), whole[episode, view][numbers])


def test_no_frames_are_read_when_none_are_asked_for(store):
    assert store.frames(0, "side", []).shape == (0, 33, 47, 3)


def check_random_access(reader, path, whole, seed):
    for number in np.random.default_rng(seed).integers(0, len(whole), 300).tolist():
        np.testing.assert_array_equal(reader.read(path, [number])[0], whole[number])


def test_forked_readers_of_one_file_do_not_move_each_others_place(tmp_path):
    path, noise = tmp_path / "noise.mp4", np.random.default_rng(0).integers(0, 256, (120, 64, 64, 3), np.uint8)
    with VideoWriter(path, (64, 64), HZ) as writer:
        writer.append(noise)
        writer.finish()
    reader = VideoReader(HZ)
    whole = reader.read(path, range(120))
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=check_random_access, args=(reader, path, whole, seed)) for seed in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        child.kill()
    assert [child.exitcode for child in children] == [0, 0]


def test_equal_frames_make_equal_files_at_sizes_that_are_no_multiple_of_16(tmp_path):
    frames, files = moving_picture(0, 18, 40, 56), set()
    for attempt in range(150):
        path = tmp_path / f"{attempt}.mp4"
        with VideoWriter(path, (40, 56), HZ) as writer:
            writer.append(frames)
            writer.finish()
        files.add(path.read_bytes())
    assert len(files) == 1


def test_a_pickled_store_reads_the_same(store):
    store.actions(4)
    copy = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(copy.frames(4, "side", [4, 0, 2]), store.frames(4, "side", [4, 0, 2]))
    np.testing.assert_array_equal(copy.actions(4), store.actions(4))


def test_actions_of_an_unlabelled_episode_are_hidden_from_all_but_an_audit(store):
    with pytest.raises(ActionsHiddenError, match="seed=1 is unlabelled"):
        store.actions(1)
    hidden = store.episode(1)
    assert hidden.actions is None
    assert not hidden.is_labelled
    np.testing.assert_array_equal(store.actions(1, for_audit=True), make_episode(1).actions)
    np.testing.assert_array_equal(store.actions(0), make_episode(0).actions)


def test_what_was_not_recorded_is_none_or_named(store):
    with pytest.raises(StoreError, match=r"seed=3 .* has the views \('side',\), not 'front'"):
        store.frames(3, "front")
    with pytest.raises(StoreError, match="not 'front'"):
        store.extrinsics(3, "front")
    with pytest.raises(StoreError, match="recorded without actions"):
        store.actions(2)
    assert store.extrinsics(0, "side") is None
    with pytest.raises(StoreError, match=r"frames 0\.\.8, asked for \[9\]"):
        store.frames(0, "front", [0, 9])
    with pytest.raises(StoreError, match=r"frames 0\.\.8, asked for \[-1\]"):
        store.frames(0, "front", [-1])
    with pytest.raises(StoreError, match=r"episodes 0\.\.4, asked for 5"):
        store.proprioception(5)


def test_statistics_are_those_of_all_recorded_frames(store):
    stated = json.loads((store.path / "meta/stats.json").read_text())
    actions = np.concatenate([make_episode(n).actions for n in (0, 1, 3, 4)]).astype(float)
    states = np.concatenate([make_episode(n).proprioception for n in range(5)]).astype(float)
    for name, values in (("action", actions), ("observation.state", states)):
        for kind in ("min", "max", "mean", "std"):
            np.testing.assert_allclose(
                stated[name][kind], getattr(values, kind)(0), rtol=1e-9, err_msg=f"{name} {kind}"
            )
        assert stated[name]["count"] == [len(values)]


def test_the_layout_is_the_one_that_lerobot_reads(store):
    info = json.loads((store.path / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_frames"]) == ("v3.0", HZ, sum(LENGTHS))
    frames = pd.concat(pd.read_parquet(file) for file in sorted(store.path.glob("data/*/*.parquet")))
    assert set(frames) == {name for name, feature in info["features"].items() if feature["dtype"] != "video"}
    assert list(frames["index"]) == list(range(sum(LENGTHS)))
    assert list(frames["episode_index"]) == list(np.repeat(range(5), LENGTHS))
    tasks = pd.read_parquet(store.path / "meta/tasks.parquet")
    assert list(tasks.index[frames["task_index"]]) == [TASKS[n % 2] for n in np.repeat(range(5), LENGTHS)]
    table = pd.concat(pd.read_parquet(file) for file in sorted(store.path.glob("meta/episodes/*/*.parquet")))
    begin = table["videos/observation.images.side/from_timestamp"].to_numpy()
    np.testing.assert_allclose(begin * HZ, [0, 9, 0, 0, 7])
    assert table["videos/observation.images.front/from_timestamp"].isna().tolist() == [False, False, False, True, False]
    assert not list(store.path.rglob("*.partial"))


def test_parts_in_any_order_and_from_several_processes_give_the_same_store(store, tmp_path):
    assert write_store(tmp_path / "reversed", order=(2, 0, 1)) == store.fingerprint
    path = tmp_path / "parallel"
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(write, [(path, part) for part in range(3)])
    assert finish_store(path, INFO, 3, TASKS) == store.fingerprint
    assert Store.open(path).episodes == store.episodes


def test_more_parts_than_files_may_stay_open_are_all_read(tmp_path, monkeypatch):
    write_store(tmp_path)
    monkeypatch.setattr("core.video.OPEN_FILES", 1)
    monkeypatch.setattr("core.store.OPEN_FILES", 1)
    store = Store.open(tmp_path)
    for number in (0, 4, 2, 0, 3, 1):
        assert psnr_db(store.frames(number, "side"), make_episode(number).views["side"].frames) > 38
        np.testing.assert_array_equal(store.proprioception(number), make_episode(number).proprioception)


def test_another_content_has_another_fingerprint(store, tmp_path):
    brighter = make_episode(0).views["side"].frames + np.uint8(2)
    views = make_episode(0).views | {"side": View(frames=brighter)}
    changed = [make_episode(0, views=views), make_episode(1)]
    write_part(tmp_path, 0, changed, info=INFO, first_episode=0, first_frame=0, tasks=TASKS)
    write(tmp_path, 1)
    write(tmp_path, 2)
    assert finish_store(tmp_path, INFO, 3, TASKS) != store.fingerprint


def test_a_part_interrupted_between_episodes_is_not_done_and_can_be_written_again(store, tmp_path):
    def interrupted():
        yield make_episode(0)
        raise KeyboardInterrupt

    write(tmp_path, 1)
    write(tmp_path, 2)
    with pytest.raises(KeyboardInterrupt):
        write_part(tmp_path, 0, interrupted(), info=INFO, first_episode=0, first_frame=0, tasks=TASKS)
    assert not is_part_done(tmp_path, 0)
    with pytest.raises(StoreError, match=r"part 0 of .* is not complete"):
        finish_store(tmp_path, INFO, 3, TASKS)
    with pytest.raises(StoreError, match="was started but is not complete"):
        Store.open(tmp_path)
    write(tmp_path, 0)
    assert finish_store(tmp_path, INFO, 3, TASKS) == store.fingerprint


def test_a_killed_writers_leavings_are_not_taken_for_a_part(store, tmp_path):
    write_store(tmp_path)
    (tmp_path / "meta/episodes/chunk-000/file-000.parquet").unlink()
    for file in (tmp_path / "data/chunk-000/file-000.parquet", *tmp_path.glob("videos/*/chunk-000/file-000.mp4")):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        file.with_name(f"{file.name}.partial").write_bytes(b"half")
    assert not is_part_done(tmp_path, 0)
    assert is_part_done(tmp_path, 1)
    write(tmp_path, 0)
    assert finish_store(tmp_path, INFO, 3, TASKS) == store.fingerprint
    assert not list(tmp_path.rglob("*.partial"))


FULL_DISK = """
import resource, sys
sys.path.insert(0, {tests!r})
from test_core_store import write
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
write({path!r}, 0)
"""


@pytest.mark.parametrize("fraction", [0.2, 0.6, 0.99])
def test_a_disk_that_fills_up_leaves_no_part_behind(tmp_path, fraction, store, request):
    limit = int(fraction * max(file.stat().st_size for file in store.path.rglob("file-000.*")))
    script = FULL_DISK.format(tests=str(request.path.parent), path=str(tmp_path), limit=limit)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stderr
    assert "File too large" in ended.stderr
    assert not is_part_done(tmp_path, 0)
    assert not list(tmp_path.rglob("*.partial"))


def test_rewriting_a_part_makes_the_store_incomplete_until_it_is_finished_again(tmp_path):
    write_store(tmp_path)
    write(tmp_path, 1)
    with pytest.raises(StoreError, match="is not complete"):
        Store.open(tmp_path)


def test_a_store_that_is_not_there_or_foreign_or_damaged_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"nowhere does not exist.*run the stage"):
        Store.open(tmp_path / "nowhere")
    write_store(tmp_path / "damaged")
    (tmp_path / "damaged/data/chunk-000/file-001.parquet").unlink()
    with pytest.raises(StoreError, match=r"lost .*data/chunk-000/file-001\.parquet"):
        Store.open(tmp_path / "damaged")
    (tmp_path / "foreign/meta").mkdir(parents=True)
    (tmp_path / "foreign/meta/info.json").write_text('{"codebase_version": "v2.1"}')
    with pytest.raises(StoreError, match=r"v2\.1 and was not written by this project"):
        Store.open(tmp_path / "foreign")


def test_parts_that_do_not_fit_together_are_refused(tmp_path):
    write(tmp_path, 0)
    write(tmp_path, 1, first_frame=20)
    with pytest.raises(StoreError, match=r"part 1: reach/seed=2 says episode 2, first frame 20; 2 and 21 follow"):
        finish_store(tmp_path, INFO, 2, TASKS)
    write(tmp_path, 1, tasks=("another", *TASKS))
    with pytest.raises(StoreError, match="other `tasks`"):
        finish_store(tmp_path, INFO, 2, TASKS)
    write(tmp_path, 1)
    with pytest.raises(StoreError, match=r"files of other parts.*file-001"):
        finish_store(tmp_path, INFO, 1, TASKS)
    twin = [make_episode(2, episode_id="reach/seed=0")]
    write_part(tmp_path, 1, twin, info=INFO, first_episode=2, first_frame=21, tasks=TASKS)
    with pytest.raises(StoreError, match="reach/seed=0 twice"):
        finish_store(tmp_path, INFO, 2, TASKS)


NOT_FINITE = np.where(np.arange(9)[:, None] == 4, np.nan, np.zeros((9, 7))).astype(np.float32)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"views": {"front": View(frames=moving_picture(0, 9, 24, 64))}}, r"\(24, 64\).* do not fit"),
        ({"views": {"wrist": View(frames=moving_picture(0, 9, 48, 64))}}, "wrist.* do not fit"),
        ({"control_hz": 10.0}, "has 10.0 Hz"),
        ({"instruction": "fly"}, "'fly' is not in `tasks`"),
        ({"proprioception": np.zeros((9, 3), np.float32)}, "3 numbers of proprioception, the store has 9"),
        ({"action_space": END_EFFECTOR_DELTA.model_copy(update={"frame": "camera"})}, "is not the store's"),
        ({"actions": NOT_FINITE}, "action of frame 4 is not finite"),
        ({"actions": np.zeros((8, 7), np.float32), "proprioception": None}, "8 actions for 9 frames"),
    ],
)
def test_an_episode_that_does_not_fit_the_store_is_refused(tmp_path, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        write_part(tmp_path, 0, [make_episode(0, **changes)], info=INFO, first_episode=0, first_frame=0, tasks=TASKS)
    assert not is_part_done(tmp_path, 0)


def test_a_store_of_video_alone_needs_no_actions(tmp_path):
    info = StoreInfo(control_hz=5.0, views={"side": (33, 47)}, action_space=None, proprioception_dims=0, robot_type="")
    views = {"side": make_episode(0).views["side"]}
    bare = {"views": views, "control_hz": 5.0, "actions": None, "action_space": None, "proprioception": None}
    episode = make_episode(0, **bare)
    write_part(tmp_path, 0, [episode], info=info, first_episode=0, first_frame=0, tasks=TASKS)
    finish_store(tmp_path, info, 1, TASKS)
    store = Store.open(tmp_path)
    assert store.info == info
    read = store.episode(0)
    assert (read.actions, read.action_space, read.proprioception) == (None, None, None)
    assert "action" not in pq.read_schema(tmp_path / "data/chunk-000/file-000.parquet").names


def test_a_store_is_read_without_torch():
    code = "import core.store, sys; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_contact_sheet_shows_the_first_episode_with_the_most_views(tmp_path):
    episodes = (make_episode(number) for number in (3, 1))
    write_part(tmp_path, 0, episodes, info=INFO, first_episode=0, first_frame=0, tasks=TASKS)
    finish_store(tmp_path, INFO, 1, TASKS)
    with Image.open(write_contact_sheet(tmp_path)) as sheet:
        assert sheet.width == 4 * sum(width for _, width in SIZES.values())
