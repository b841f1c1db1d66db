import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from synthetic_episodes import INFO, make_episode

from core import frame_cache, frame_cache_writer
from core.frame_cache import FrameCacheError, FramesConfig, open_frames
from core.rows import RowsError
from core.store import Store, finish_store, write_part

TIERS = ("jpeg", "png", "uint8")
LEVELS = {"jpeg": 6.0, "png": 0.0, "uint8": 0.0}
"""Mean grey levels by which a tier may differ from the video: JPEG smooths, the others keep every bit."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("frames") / "store"
    write_part(path, 0, [make_episode(number) for number in range(5)], info=INFO)
    finish_store(path, INFO, 1)
    return Store.open(path)


def some_frames(store, count=40):
    """Of camera side, which every episode has, in no order and some of them twice."""
    rng = np.random.default_rng(0)
    episodes = rng.integers(len(store.episodes), size=count)
    return episodes, np.array([rng.integers(store.episodes[int(e)].length) for e in episodes])


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("tier", TIERS)
def test_every_tier_gives_the_frames_of_the_store(store, tmp_path, monkeypatch, tier, workers):
    if workers == 1:  # several blocks; fresh processes would not see the smaller ones
        monkeypatch.setattr(frame_cache_writer, "BLOCK_ROWS", 16)
        monkeypatch.setattr(frame_cache, "BLOCK_ROWS", 16)
    frames = open_frames(store, FramesConfig(tier=tier, directory=str(tmp_path / "frames"), workers=workers))
    wanted = some_frames(store)
    found, expected = frames.gather("side", *wanted), store.gather("side", *wanted)
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    assert np.abs(found.astype(float) - expected).mean() <= LEVELS[tier]


def test_the_store_itself_is_the_tier_video(store):
    assert open_frames(store, FramesConfig()) is store
    with pytest.raises(FrameCacheError, match="no cache"):
        open_frames(store, FramesConfig(size=(8, 8)))


@pytest.mark.parametrize("tier", TIERS)
def test_frames_are_resized_once_before_they_are_kept(store, tmp_path, tier):
    frames = open_frames(store, FramesConfig(tier=tier, directory=str(tmp_path / "frames"), size=(16, 20)))
    found = frames.gather("side", np.array([4]), np.array([3]))[0]
    plain = Image.fromarray(store.frames(4, "side", [3])[0]).resize((20, 16), Image.Resampling.BICUBIC)
    assert np.abs(found.astype(float) - np.asarray(plain)).mean() <= LEVELS[tier]


@pytest.mark.parametrize("tier", TIERS)
def test_what_was_not_recorded_is_refused(store, tmp_path, tier):
    frames = open_frames(store, FramesConfig(tier=tier, directory=str(tmp_path / "frames")))
    for view, episode, frame in (("front", 3, 0), ("side", 0, 9), ("side", 0, -1), ("top", 0, 0)):
        with pytest.raises(RowsError):
            frames.gather(view, np.array([episode]), np.array([frame]))


def test_the_cache_lies_in_the_store_and_is_made_once(store, capsys):
    first = open_frames(store, FramesConfig(tier="jpeg"))
    assert "frame_cache: done" in capsys.readouterr().err
    assert open_frames(store, FramesConfig(tier="jpeg")).fingerprint == first.fingerprint
    assert capsys.readouterr().err == ""
    assert Store.open(store.path).fingerprint == store.fingerprint
    shutil.rmtree(store.path / "frames")


@pytest.mark.parametrize("tier", TIERS)
def test_a_damaged_cache_is_refused_not_shown(store, tmp_path, tier):
    directory = tmp_path / "frames"
    open_frames(store, FramesConfig(tier=tier, directory=str(directory)))
    file = next(directory.glob("*/side.npy" if tier == "uint8" else "*/side/00000.bin"))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(FrameCacheError, match=r"damaged|cut off"):
        open_frames(store, FramesConfig(tier=tier, directory=str(directory))).gather("side", *some_frames(store))
    if tier != "uint8":
        file.write_bytes(content[:-10] + bytes(10))
        last = (np.array([4]), np.array([store.episodes[4].length - 1]))
        with pytest.raises(FrameCacheError, match="damaged"):
            open_frames(store, FramesConfig(tier=tier, directory=str(directory))).gather("side", *last)


def test_caches_of_two_stores_and_of_two_sizes_share_a_folder(store, tmp_path):
    write_part(tmp_path / "other", 0, [make_episode(number) for number in (5, 6, 7, 8, 9)], info=INFO)
    finish_store(tmp_path / "other", INFO, 1)
    other = Store.open(tmp_path / "other")
    settings = FramesConfig(tier="png", directory=str(tmp_path / "frames"))
    opened = [open_frames(one, settings) for one in (store, other)]
    small = open_frames(store, settings.model_copy(update={"size": (16, 20)}))
    wanted = some_frames(store)
    for one, frames in zip((store, other), opened, strict=True):
        assert np.array_equal(frames.gather("side", *wanted), one.gather("side", *wanted))
    assert small.gather("side", *wanted).shape[1:3] == (16, 20)


MAKE = """
import sys; from core.store import Store; from core.frame_cache import FramesConfig, open_frames
open_frames(Store.open(sys.argv[1]), FramesConfig(tier=sys.argv[2], directory=sys.argv[3]))
"""


@pytest.mark.parametrize("tier", ["jpeg", "uint8"])
def test_several_processes_that_want_a_cache_make_it_once_between_them(store, tmp_path, tier):
    command = [sys.executable, "-c", MAKE, str(store.path), tier, str(tmp_path / "frames")]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert sum("frame_cache: done" in text for text in said) == 1


def test_a_killed_making_goes_on_where_it_stopped(store, tmp_path):
    directory = tmp_path / "frames"
    command = [sys.executable, "-c", MAKE, str(store.path), "png", str(directory)]
    killed = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not list(directory.glob("*/*/*.npy")) and killed.poll() is None:
        time.sleep(0.005)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    frames = open_frames(store, FramesConfig(tier="png", directory=str(directory)))
    wanted = some_frames(store)
    assert np.array_equal(frames.gather("side", *wanted), store.gather("side", *wanted))


def _sum_in_child(frames, wanted, queue):
    queue.put(int(frames.gather("side", *wanted).sum()))


@pytest.mark.parametrize("tier", TIERS)
def test_a_forked_process_reads_on(store, tmp_path, tier):
    frames, wanted = open_frames(store, FramesConfig(tier=tier, directory=str(tmp_path / "f"))), some_frames(store)
    expected = int(frames.gather("side", *wanted).sum())
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_sum_in_child, args=(frames, wanted, queue))
    child.start()
    assert queue.get(timeout=30) == expected
    child.join()


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(store, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(frame_cache_writer.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(FrameCacheError, match="choose tier jpeg"):
        open_frames(store, FramesConfig(tier="uint8", directory=str(tmp_path / "frames")))
    assert not list((tmp_path / "frames").rglob("*.npy"))


def test_reading_pixels_takes_no_memory_of_the_file(store, tmp_path):
    frames = open_frames(store, FramesConfig(tier="uint8", directory=str(tmp_path / "f")))
    wanted = some_frames(store)
    assert np.array_equal(frames.gather("side", *wanted), store.gather("side", *wanted))
    assert "side.npy" not in Path("/proc/self/maps").read_text()
