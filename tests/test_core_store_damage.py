"""Damage to any file of a store is noticed, or does not matter: no other frames and no other numbers are ever given."""

import json
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from synthetic_episodes import copy_of, write_store

from core.formats.by_name import open_source
from core.formats.interface import EpisodeError, SourceError
from core.formats.mapping import Mapping
from core.store import Store, StoreError

GOLDEN = Path(__file__).resolve().parent / "golden/lerobot_v3/data_set"


@pytest.fixture(scope="module", params=["h264", pytest.param("png", marks=pytest.mark.slow)])
def store(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / request.param
    write_store(path, codec=request.param)
    return path


def everything(path):
    """All that a store says, but for its path."""
    store = Store.open(path)
    said = [(store.info, store.fingerprint, store.num_frames)]
    for record in store.episodes:
        episode = store.episode(record.index, for_audit=True)
        arrays = [episode.actions, episode.proprioception, *episode.columns.values()]
        for view in episode.views.values():
            arrays += [view.frames, view.extrinsics]
        said.append(
            (
                record,
                [
                    None
                    if array is None
                    else (array.dtype, array.shape, array.tobytes() if array.dtype != object else array.tolist())
                    for array in arrays
                ],
            )
        )
    return said


def flip(data, rng):
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]


def cut(data, rng):
    return data[: rng.randrange(len(data))]


def zero(data, rng):
    start = rng.randrange(len(data))
    stop = min(len(data), start + rng.choice([1, 16, 4096]))
    return data[:start] + bytes(stop - start) + data[stop:]


def swap(data, rng):
    middle = rng.randrange(len(data))
    return data[middle:] + data[:middle]


def insert(data, rng):
    place = rng.randrange(len(data))
    return data[:place] + rng.randbytes(rng.choice([1, 100])) + data[place:]


HARMS = (flip, cut, zero, swap, insert)


def files(path):
    return sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file())


def is_noticed(path, store, name, harm, rng, expected):
    """Whether damage to the file is refused, naming the store; where not, nothing may have changed."""
    whole = (store / name).read_bytes()
    harmed = harm(whole, rng)
    if harmed == whole:
        return True
    (path / name).write_bytes(harmed)
    try:
        found, complaint = everything(path), ""
    except StoreError as error:
        found, complaint = expected, str(error)
    (path / name).write_bytes(whole)
    assert found == expected, f"{harm.__name__} of {name} changed what the store says"
    assert not complaint or str(path) in complaint
    return bool(complaint)


def check_damage(store, path, rng, harms):
    expected = everything(path)
    harmed = [(name, harm) for name in files(path) for harm in rng.sample(HARMS, harms)]
    unseen = {name for name, harm in harmed if not is_noticed(path, store, name, harm, rng, expected)}
    # Nobody reads skipped.json; tasks and statistics are for LeRobot. JSON has blanks, videos bytes between frames.
    assert all(name.suffix in (".json", ".mp4") or name.name == "tasks.parquet" for name in unseen)


def test_damaged_files_are_noticed_or_do_not_matter(store, tmp_path):
    check_damage(store, copy_of(store, tmp_path / "store"), random.Random(0), 2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_much_more_damage_is_noticed_or_does_not_matter(store, tmp_path, seed):
    check_damage(store, copy_of(store, tmp_path / "store"), random.Random(seed), len(HARMS))


def test_missing_files_are_noticed_or_do_not_matter(store, tmp_path):
    path = copy_of(store, tmp_path / "store")
    expected = everything(path)
    for name in files(path):
        (path / name).rename(tmp_path / "away")
        if name.name in ("skipped.json", "stats.json", "tasks.parquet"):
            assert everything(path) == expected
        else:
            with pytest.raises(StoreError):
                everything(path)
        (tmp_path / "away").rename(path / name)
    assert everything(path) == expected


def test_files_that_took_each_others_place_are_noticed(store, tmp_path):
    path = copy_of(store, tmp_path / "store")
    kinds = [
        [name for name in files(path) if name.parent == folder] for folder in {name.parent for name in files(path)}
    ]
    tried = 0
    for names in kinds:
        for one, other in pairwise(names):
            exchange(path / one, path / other)
            if one.suffix in (".parquet", ".mp4", ".npz") and one.name != "tasks.parquet":
                tried += 1
                with pytest.raises(StoreError):
                    everything(path)
            exchange(path / one, path / other)
    assert tried >= 4


def exchange(one, other):
    left, right = one.read_bytes(), other.read_bytes()
    one.write_bytes(right)
    other.write_bytes(left)


def test_a_video_and_its_index_that_took_anothers_place_together_are_noticed(store, tmp_path):
    path = copy_of(store, tmp_path / "store")
    for suffix in ("mp4", "npz"):
        of_side = [name for name in files(path) if name.suffix == f".{suffix}" and "side" in str(name)]
        for one, other in zip(of_side[:1], of_side[2:], strict=True):
            exchange(path / one, path / other)
    if list(path.rglob("*.mp4")):
        with pytest.raises(StoreError, match="not what was written"):
            everything(path)
    else:
        assert everything(path)


def test_a_store_whose_checksums_are_denied_is_not_taken_for_another_programs(store, tmp_path):
    path = copy_of(store, tmp_path / "store")
    described = json.loads((path / "meta/info.json").read_text())
    for wrong in (described | {"mvp_lam": {}}, {**described, "fps": 7}, {**described, "total_episodes": 4}):
        (path / "meta/info.json").write_text(json.dumps(wrong))
        with pytest.raises(StoreError):
            everything(path)


def read_all(path):
    reader = open_source(path, Mapping(format="lerobot_v3"))
    for key in reader.keys:
        for view in reader.read(key).views.values():
            view.frames[:]


@pytest.mark.parametrize("seed", range(2))
def test_damage_to_a_data_set_without_checksums_ends_in_errors_that_name_it(tmp_path, seed):
    check_foreign(tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 30))
def test_much_damage_to_a_data_set_without_checksums_ends_in_errors_that_name_it(tmp_path, seed):
    check_foreign(tmp_path, seed)


def complaint_about(path):
    try:
        read_all(path)
    except (SourceError, EpisodeError) as error:
        return str(error)
    return ""


def check_foreign(tmp_path, seed):
    """Numbers may change unseen there; errors are still those that readers promise."""
    path, rng, refused = copy_of(GOLDEN, tmp_path / "foreign"), random.Random(seed), 0
    for name in files(path):
        for harm in HARMS:
            (path / name).write_bytes(harm((GOLDEN / name).read_bytes(), rng))
            complaint = complaint_about(path)
            refused += bool(complaint)
            assert not complaint or str(path) in complaint
        (path / name).write_bytes((GOLDEN / name).read_bytes())
    assert refused > 5
    read_all(path)


def test_equal_files_give_equal_answers(store):
    assert np.array_equal(Store.open(store).frames(0, "side"), Store.open(store).frames(0, "side"))
    assert everything(store) == everything(store)
