"""Stores are written in parts, in any order and by any number of processes, and interrupted at any moment."""

import multiprocessing
import subprocess
import sys

import pytest
from synthetic_episodes import INFO, files_of, make_episode, write, write_store

from core.store import Store, StoreError, finish_store, is_part_done, write_part


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "store"
    write_store(path)
    return Store.open(path)


def test_parts_in_any_order_and_from_several_processes_give_the_same_store(store, tmp_path):
    path = tmp_path / "parallel"
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(write, [(path, part) for part in range(3)])
    assert finish_store(path, INFO, 3) == write_store(tmp_path / "reversed", order=(2, 0, 1))
    assert Store.open(path).fingerprint == store.fingerprint
    assert list(Store.open(path).episodes) == list(store.episodes)
    assert files_of(path) == files_of(store.path) == files_of(tmp_path / "reversed")


def test_a_part_interrupted_between_episodes_is_not_done_and_can_be_written_again(store, tmp_path):
    def interrupted():
        yield make_episode(0)
        raise KeyboardInterrupt

    write(tmp_path, 1)
    write(tmp_path, 2)
    with pytest.raises(KeyboardInterrupt):
        write_part(tmp_path, 0, interrupted(), info=INFO)
    assert not is_part_done(tmp_path, 0)
    with pytest.raises(StoreError, match=r"part 0 of .* is not complete"):
        finish_store(tmp_path, INFO, 3)
    with pytest.raises(StoreError, match="was started but is not complete"):
        Store.open(tmp_path)
    write(tmp_path, 0)
    finish_store(tmp_path, INFO, 3)
    assert files_of(tmp_path) == files_of(store.path)


def test_a_killed_writers_leavings_are_not_taken_for_a_part(store, tmp_path):
    write(tmp_path, 1)
    write(tmp_path, 2)
    left = tmp_path / "parts/part-00000.partial"
    left.mkdir()
    for name in ("data.parquet", "front.mp4", "episodes.parquet"):
        (left / name).write_bytes(b"half")
    assert not is_part_done(tmp_path, 0)
    assert is_part_done(tmp_path, 1)
    write(tmp_path, 0)
    finish_store(tmp_path, INFO, 3)
    assert files_of(tmp_path) == files_of(store.path)


def test_a_joining_that_was_interrupted_at_any_file_is_repeated_from_its_start(store, tmp_path, monkeypatch):
    """The tenth, twentieth, ... renaming of a file fails, as if the process had ended there."""
    rename, done, stops = type(tmp_path).replace, 0, [3, 7, 11, 16]

    def failing(self, target):
        nonlocal done
        done += 1
        if done in stops:
            raise KeyboardInterrupt
        return rename(self, target)

    for part in range(3):
        write(tmp_path, part)
    monkeypatch.setattr(type(tmp_path), "replace", failing)
    for _ in stops:
        with pytest.raises(KeyboardInterrupt):
            finish_store(tmp_path, INFO, 3)
        with pytest.raises(StoreError, match="was started but is not complete"):
            Store.open(tmp_path)
        done += 1
    monkeypatch.undo()
    finish_store(tmp_path, INFO, 3)
    assert files_of(tmp_path) == files_of(store.path)


def test_parts_left_by_a_process_killed_at_the_very_end_are_removed(store, tmp_path):
    write_store(tmp_path)
    for left in ("parts", "parts.partial"):
        (tmp_path / left / "part-00000").mkdir(parents=True)
    finish_store(tmp_path, INFO, 3)
    assert files_of(tmp_path) == files_of(store.path)
    assert not (tmp_path / "parts").exists()
    assert not (tmp_path / "parts.partial").exists()


FULL_DISK = """
import resource, sys
sys.path.insert(0, {tests!r})
from synthetic_episodes import write
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
write({path!r}, 0)
"""


@pytest.mark.parametrize("fraction", [0.2, 0.6, 0.99])
def test_a_disk_that_fills_up_leaves_no_part_behind(tmp_path, fraction, request):
    write(tmp_path / "whole", 0)
    limit = int(fraction * max(map(len, files_of(tmp_path / "whole").values())))
    script = FULL_DISK.format(tests=str(request.path.parent), path=str(tmp_path), limit=limit)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stderr
    assert "File too large" in ended.stderr
    assert not is_part_done(tmp_path, 0)


def test_rewriting_a_part_makes_the_store_incomplete_until_all_is_written_again(store, tmp_path):
    write_store(tmp_path)
    write(tmp_path, 1)
    with pytest.raises(StoreError, match="is not complete"):
        Store.open(tmp_path)
    with pytest.raises(StoreError, match=r"part 0 of .* is not complete"):
        finish_store(tmp_path, INFO, 3)
    write_store(tmp_path)
    assert files_of(tmp_path) == files_of(store.path)


def test_a_smaller_store_written_over_a_larger_one_holds_nothing_of_it(store, tmp_path):
    write_store(tmp_path / "again")
    for path in (tmp_path / "again", tmp_path / "new"):
        write(path, 0)
        finish_store(path, INFO, 1)
    assert files_of(tmp_path / "again") == files_of(tmp_path / "new")
