"""The feature cache holds exactly what the encoder gives, survives interruptions, and refuses what it is not for."""

import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from core.episode import Episode, View
from core.frames import FeatureCache, FeaturesError
from core.rows import RowsError
from core.store import Store, StoreInfo, finish_store, write_part
from core.vision import EncoderConfig, load_encoder

TINY = EncoderConfig(name="vit_tiny_patch16_224", image_size=64, weights="random", dtype="float32")
LENGTHS, VIEWS = (5, 9, 4), ({"front", "side"}, {"front"}, {"front", "side"})


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    path = tmp_path_factory.mktemp("episodes") / "store"
    noise = np.random.default_rng(0)
    episodes = [
        Episode(
            episode_id=f"e{number}",
            task="t",
            instruction="move",
            control_hz=10.0,
            views={
                view: View(frames=noise.integers(0, 256, (length, 64, 64, 3), dtype=np.uint8)) for view in sorted(views)
            },
        )
        for number, (length, views) in enumerate(zip(LENGTHS, VIEWS, strict=True))
    ]
    info = StoreInfo(
        control_hz=10.0,
        views={"front": (64, 64), "side": (64, 64)},
        action_space=None,
        proprioception_dims=0,
        robot_type="arm",
    )
    write_part(path, 0, episodes, info=info)
    finish_store(path, info, 1)
    return Store.open(path)


@pytest.fixture(scope="module")
def cache(store, tmp_path_factory) -> FeatureCache:
    return FeatureCache.build(store, TINY, tmp_path_factory.mktemp("cache") / "features")


def all_frames(view: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(e, f) for e, length in enumerate(LENGTHS) if view in VIEWS[e] for f in range(length)]
    return np.array(pairs)[:, 0], np.array(pairs)[:, 1]


@pytest.mark.parametrize("view", ["front", "side"])
def test_features_are_what_the_encoder_gives_for_that_frame(store, cache, view):
    episodes, frames = all_frames(view)
    order = np.random.default_rng(1).permutation(len(episodes))
    found = cache.features(view, episodes[order], frames[order])
    images = np.concatenate(
        [store.frames(int(e), view, [int(f)]) for e, f in zip(episodes[order], frames[order], strict=True)]
    )
    expected = load_encoder(TINY, "cpu")(torch.from_numpy(images)).numpy()
    assert found.dtype == np.float16
    assert found.shape == (len(order), cache.num_patches, cache.dim)
    np.testing.assert_allclose(found, expected, atol=5e-3, rtol=5e-3)


def test_a_view_that_was_not_recorded_takes_no_rows_and_cannot_be_read(cache):
    assert cache.rows("side", 1) == (0, 0)
    assert [cache.rows("side", episode) for episode in (0, 2)] == [(0, 5), (5, 4)]
    with pytest.raises(RowsError, match="episode 1 has 0 frames of view side"):
        cache.features("side", np.array([0, 1]), np.array([0, 0]))


def test_a_view_that_there_are_no_features_of_is_named(cache):
    with pytest.raises(FeaturesError, match=r"features of the views \['front', 'side'\], not of 'top'"):
        cache.features("top", np.array([0]), np.array([0]))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks at memory as Linux shows it")
def test_no_part_of_the_features_stays_in_memory(cache):
    again = FeatureCache.open(cache.directory)
    assert len(again.features("front", *all_frames("front"))) == sum(LENGTHS)
    assert str(cache.directory) not in Path("/proc/self/maps").read_text()
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    del again
    assert len(list(Path("/proc/self/fd").iterdir())) < descriptors


@pytest.mark.parametrize("frame", [-1, 5])
def test_a_frame_outside_its_episode_is_refused_rather_than_taken_from_the_next(cache, frame):
    with pytest.raises(RowsError, match="episode 0 has 5 frames"):
        cache.features("front", np.array([0]), np.array([frame]))


def test_several_workers_write_the_same_as_one(store, cache, tmp_path):
    with_two = FeatureCache.build(store, TINY, tmp_path / "features", workers=2)
    for view in ("front", "side"):
        np.testing.assert_allclose(
            with_two.features(view, *all_frames(view)), cache.features(view, *all_frames(view)), atol=4e-3
        )


class StopsAfterTwoEpisodes(Store):
    def frames(self, episode, view, indices=None):
        if episode == 2:
            raise KeyboardInterrupt
        return super().frames(episode, view, indices)


def test_an_interrupted_build_keeps_what_it_has_and_ends_with_the_same_features(store, cache, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        FeatureCache.build(StopsAfterTwoEpisodes.open(store.path), TINY, tmp_path / "features")
    with pytest.raises(FeaturesError, match="no finished features"):
        FeatureCache.open(tmp_path / "features")
    np.lib.format.open_memmap(tmp_path / "features/front.npy", "r+")[:5] = 7.0
    resumed = FeatureCache.build(store, TINY, tmp_path / "features")
    episodes, frames = all_frames("front")
    found, expected = resumed.features("front", episodes, frames), cache.features("front", episodes, frames)
    assert (found[:5] == 7.0).all(), "finished chunks are not encoded a second time"
    assert np.array_equal(found[5:], expected[5:])


def test_a_finished_cache_is_not_built_again_and_another_encoder_does_not_reuse_it(store, cache, tmp_path):
    directory = tmp_path / "features"
    FeatureCache.build(store, TINY, directory, views=["side"])
    written = (directory / "side.npy").stat().st_mtime_ns
    again = FeatureCache.build(store, TINY, directory, views=["side"])
    assert (directory / "side.npy").stat().st_mtime_ns == written
    assert again.views == ("side",)
    larger = FeatureCache.build(store, TINY.model_copy(update={"image_size": 32}), directory, views=["side"])
    assert larger.num_patches == 4
    assert larger.fingerprint != again.fingerprint


def test_pooling_averages_squares_of_patches(store, cache, tmp_path):
    pooled = FeatureCache.build(store, TINY, tmp_path / "features", views=["side"], pool=2)
    full = cache.features("side", *all_frames("side")).astype(np.float32)
    assert (pooled.num_patches, pooled.grid) == (4, (2, 2))
    top_right = full[:, [2, 3, 6, 7]].mean(axis=1)
    np.testing.assert_allclose(pooled.features("side", *all_frames("side"))[:, 1], top_right, atol=5e-3)


def test_principal_components_of_the_whole_map_are_those_of_a_library(store, cache, tmp_path):
    reduced = FeatureCache.build(store, TINY, tmp_path / "features", components=3)
    maps = {view: cache.features(view, *all_frames(view)).astype(np.float64) for view in VIEWS[0]}
    everything = np.concatenate([values.reshape(len(values), -1) for values in maps.values()])
    oracle = PCA(3, svd_solver="full").fit(everything)
    kept = oracle.transform(everything) / np.sqrt(np.mean(oracle.transform(everything) ** 2))
    ours = np.concatenate([reduced.features(view, *all_frames(view))[:, 0] for view in maps])
    signs = np.sign((kept * ours).sum(axis=0))
    np.testing.assert_allclose(ours * signs, kept, atol=0.02)
    assert (tuple(reduced.grid), reduced.dim) == ((1, 1), 3)


def test_components_of_other_frames_mean_something_else(store, cache, tmp_path):
    both = FeatureCache.build(store, TINY, tmp_path / "both", components=3, workers=2)
    front = FeatureCache.build(store, TINY, tmp_path / "front", views=["front"], components=3)
    assert len({both.encoder_fingerprint, front.encoder_fingerprint, cache.encoder_fingerprint}) == 3
    again = FeatureCache.build(store, TINY, tmp_path / "again", components=3)
    assert again.encoder_fingerprint == both.encoder_fingerprint
    np.testing.assert_array_equal(
        again.features("front", *all_frames("front")), both.features("front", *all_frames("front"))
    )


def test_more_components_than_frames_are_refused(store, tmp_path):
    with pytest.raises(FeaturesError, match=r"cannot give 50 principal components; lower components"):
        FeatureCache.build(store, TINY, tmp_path / "features", components=50)


def test_features_of_other_episodes_or_another_encoder_are_refused(cache):
    FeatureCache.open(cache.directory, store_fingerprint=cache.store_fingerprint)
    for name in ("store_fingerprint", "encoder_fingerprint"):
        with pytest.raises(FeaturesError, match="not 0123456789ab; build them again"):
            FeatureCache.open(cache.directory, **{name: "0123456789ab"})


@pytest.mark.parametrize(
    ("settings", "sentence"), [({"views": ["top"]}, r"views \['top'\] are not in"), ({"pool": 3}, "does not divide")]
)
def test_settings_that_do_not_fit_are_refused(store, tmp_path, settings, sentence):
    with pytest.raises(FeaturesError, match=sentence):
        FeatureCache.build(store, TINY, tmp_path / "features", **settings)


def test_a_disk_too_small_is_noticed_before_anything_is_written(store, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10**9, used=10**9 - 99, free=99))
    with pytest.raises(FeaturesError, match="GB free; free some"):
        FeatureCache.build(store, TINY, tmp_path / "features")
    assert not list(Path(tmp_path / "features").glob("*.npy"))


def test_a_copy_of_a_cache_opens_its_files_itself(cache):
    first, where = FeatureCache.open(cache.directory), all_frames("front")
    expected = first.features("front", *where)
    sent = pickle.dumps(first)
    del first  # closes its files
    assert np.array_equal(pickle.loads(sent).features("front", *where), expected)
