"""What a user can get wrong ends in one sentence that names the thing, and nothing that was there is lost."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from core import live_features
from core.checkpoint import CheckpointError, read_header, read_tensors, save_tensors
from core.config import ConfigError, load_config
from core.episode import Episode, View
from core.frames import FeatureCache, FeaturesError
from core.live_features import AugmentationConfig, LiveFeatures, augment
from core.store import Store, StoreInfo, finish_store, is_part_done, write_part
from core.training import TrainingConfig, TrainingError
from core.vision import EncoderConfig
from lam.checkpoint import load_lam
from lam.config import LamConfig
from lam.dataset import DataOptions, TransitionDataset, TransitionsError
from lam.train import TrainLamConfig, train

TINY = EncoderConfig(name="pixels_patch16", image_size=32, dtype="float32")
MODEL = LamConfig(network="perceptron", width=16, code_dim=8, codebook="per_token", normalise_encodings=True)


def write_store(path: Path, lengths=(7, 9, 8), views=("front", "side"), only_front=()) -> Store:
    noise = np.random.default_rng(0)
    info = StoreInfo(
        control_hz=5.0,
        views=dict.fromkeys(views, (32, 32)),
        action_space=None,
        proprioception_dims=0,
        robot_type="arm",
    )
    episodes = [
        Episode(
            episode_id=f"episode {number}",
            task="t",
            instruction="move",
            control_hz=5.0,
            views={
                v: View(frames=noise.integers(0, 256, (length, 32, 32, 3), dtype=np.uint8))
                for v in (("front",) if number in only_front else views)
            },
            split="held_out" if number == len(lengths) - 1 else "train",
        )
        for number, length in enumerate(lengths)
    ]
    write_part(path, 0, episodes, info=info)
    finish_store(path, info, 1)
    return Store.open(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return write_store(tmp_path_factory.mktemp("episodes") / "store")


@pytest.fixture(scope="module")
def cache(store, tmp_path_factory) -> FeatureCache:
    return FeatureCache.build(store, TINY, tmp_path_factory.mktemp("cache") / "features")


def config(store: Store, features: Path | str, out: Path, **changes) -> TrainLamConfig:
    data = {"noise": {"store": str(store.path), "features": str(features)}}
    training = TrainingConfig(steps=4, batch_size=4, warmup_steps=1, mixed_precision="no")
    values = {"out": str(out), "data": data, "model": MODEL, "training": training, "encoder": TINY}
    return TrainLamConfig(**(values | changes))


def test_views_of_unequal_length_are_refused_before_anything_is_written(tmp_path):
    episode = Episode(
        episode_id="e7",
        task="t",
        instruction="move",
        control_hz=5.0,
        views={v: View(frames=np.zeros((n, 32, 32, 3), np.uint8)) for v, n in (("front", 4), ("side", 5))},
    )
    info = StoreInfo(
        control_hz=5.0, views={"front": (32, 32), "side": (32, 32)}, action_space=None, proprioception_dims=0,
        robot_type="arm",
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"episode e7: views must be synchronised .* \{'front': 4, 'side': 5\}"):
        write_part(tmp_path, 0, [episode], info=info)
    assert not is_part_done(tmp_path, 0)


def test_episodes_of_a_single_frame_hold_no_transition(tmp_path):
    single = write_store(tmp_path / "store", lengths=(1, 1))
    with pytest.raises(TransitionsError, match=r"no train episode .* is longer than the gap of 0.4 s \(2 frames\)"):
        train(config(single, "", tmp_path / "run"))
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_an_objective_of_several_views_is_refused_where_one_camera_was_there(tmp_path):
    alone = write_store(tmp_path / "store", views=("front",))
    with pytest.raises(TransitionsError, match=r"has 2 of the views .* Record more cameras, or lower fewest_views"):
        train(config(alone, "", tmp_path / "run"))
    with pytest.raises(TransitionsError, match="objective self_cross needs episodes that 2 cameras saw"):
        train(config(alone, "", tmp_path / "run", fewest_views=1))
    train(config(alone, "", tmp_path / "run", fewest_views=1, objective="self"))
    assert load_lam(tmp_path / "run")[1].gap_s == 0.4


def test_a_cache_that_was_cut_off_is_named(store, cache, tmp_path):
    shutil.copytree(cache.directory, tmp_path / "features")
    file = tmp_path / "features" / "side.npy"
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)
    with pytest.raises(FeaturesError, match=r"features/side\.npy is missing or cut off"):
        train(config(store, tmp_path / "features", tmp_path / "run"))


def test_a_cache_of_other_episodes_is_refused(cache, tmp_path):
    other = write_store(tmp_path / "other", lengths=(5, 6))
    with pytest.raises(FeaturesError, match="were made with store"):
        train(config(other, cache.directory, tmp_path / "run"))


class NotFinite(live_features.LiveFeatures):
    def _encoded(self, images):
        return np.full((len(images), 4, 768), np.nan, np.float16)


def test_frames_that_are_not_finite_stop_the_training_and_are_named(store, tmp_path, monkeypatch):
    monkeypatch.setattr("lam.sources.LiveFeatures", NotFinite)
    with pytest.raises(TrainingError, match=r"not finite.*episode \d:\d"):
        train(config(store, "", tmp_path / "run"))


def test_a_checkpoint_of_another_shape_is_refused_and_kept(store, cache, tmp_path):
    train(config(store, cache.directory, tmp_path / "run"))
    file = tmp_path / "run" / "model.safetensors"
    tensors = read_tensors(file)
    tensors["bottleneck.codebook"] = tensors["bottleneck.codebook"][:, :5]
    save_tensors(file, tensors, read_header(file))
    with pytest.raises(CheckpointError, match=r"run does not fit the model: .* other shape \['bottleneck.codebook'\]"):
        load_lam(tmp_path / "run")
    assert file.exists()


def test_cached_features_are_not_augmented_and_sources_of_two_encoders_are_not_mixed(store, cache, tmp_path):
    with pytest.raises(TransitionsError, match="are cached and cannot be augmented"):
        train(config(store, cache.directory, tmp_path / "run", augment="shared"))
    data = {
        "one": {"store": str(store.path), "features": str(cache.directory)},
        "two": {"store": str(store.path)},
    }
    other = TINY.model_copy(update={"image_size": 64})
    with pytest.raises(TransitionsError, match="come from different encoders"):
        train(config(store, "", tmp_path / "run", data=data, encoder=other))
    with pytest.raises(TransitionsError, match="data is empty"):
        train(config(store, "", tmp_path / "run", data={}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"objective": "published"}, "set pairs_per_transition: 0"),
        ({"gradient_checkpointing": True}, "a perceptron has nothing to forget"),
        ({"objective": "selfish"}, "unknown objective 'selfish'"),
        ({"labelled_fraction": 0.0}, "greater than 0"),
        ({"pool": 0}, "greater than or equal to 1"),
        ({"model": {"encoder_blocks": 0}}, "greater than or equal to 1"),
        ({"data": {"x": {"store": "s", "views": ["a", "a"]}}}, "name a camera twice"),
        ({"data": {"x": {"store": "s", "weight": 0}}}, "greater than 0"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load_config(TrainLamConfig, overrides={"out": "o", "data": {}, "model": MODEL.model_dump()} | changes)


def test_a_camera_without_features_is_named(store, tmp_path):
    front = FeatureCache.build(store, TINY, tmp_path / "front", views=["front"])
    data = {"noise": {"store": str(store.path), "features": str(front.directory), "views": ("side",)}}
    with pytest.raises(TransitionsError, match=r"data.noise.views names \['side'\]; there are features of \['front'\]"):
        train(config(store, "", tmp_path / "run", data=data))


def test_features_on_the_fly_are_those_of_the_cache(store, cache):
    live = LiveFeatures(store, TINY)
    episodes, frames = np.array([2, 0, 2, 1]), np.array([7, 0, 1, 8])
    np.testing.assert_array_equal(live.features("side", episodes, frames), cache.features("side", episodes, frames))
    assert live.encoder_fingerprint == cache.encoder_fingerprint
    assert live.grid == cache.grid


def test_augmentation_is_decided_by_its_seed_and_changes_colour_and_place():
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    reach = AugmentationConfig()
    np.testing.assert_array_equal(augment(image, reach, 5), augment(image, reach, 5))
    assert not np.array_equal(augment(image, reach, 5), augment(image, reach, 6))
    assert augment(image, reach, 5).shape == image.shape
    crop = AugmentationConfig(brightness=0, contrast=0, saturation=0)
    colour = AugmentationConfig(smallest_crop=1)
    assert abs(augment(image, crop, 5).astype(int) - image).mean() > 5
    assert abs(augment(image, colour, 5).astype(int) - image).mean() > 2
    none = AugmentationConfig(smallest_crop=1, brightness=0, contrast=0, saturation=0)
    np.testing.assert_allclose(augment(image, none, 5), image, atol=1)


@pytest.mark.parametrize(("sharing", "is_shared"), [("shared", True), ("per_view", False)])
def test_the_two_frames_of_a_view_are_augmented_alike_and_the_views_alike_only_where_asked_for(
    store, sharing, is_shared, monkeypatch
):
    seen: list[tuple[str, int, int, int]] = []

    class Recording(LiveFeatures):
        def augmented(self, view, episodes, frames, seeds):
            seen.extend(zip([view] * len(seeds), episodes, frames, seeds, strict=True))
            return super().augmented(view, episodes, frames, seeds)

    options = DataOptions(augmentation=sharing, fewest_views=2)
    source = Recording(store, TINY)
    data = TransitionDataset(store, source, gap_s=0.4, split="train", views=["front", "side"], options=options)
    data.batch(np.array([0]), np.random.default_rng(0))
    by_view = {view: {seed for v, _, _, seed in seen if v == view} for view in ("front", "side")}
    assert [len(seeds) for seeds in by_view.values()] == [1, 1], "one seed for both frames"
    assert (by_view["front"] == by_view["side"]) == is_shared
    assert len(seen) == 4


def test_training_on_the_fly_with_augmentation_and_a_range_of_gaps_makes_a_model_that_says_so(store, tmp_path):
    data = {name: {"store": str(store.path)} for name in ("one", "two")}
    training = TrainingConfig(steps=4, batch_size=4, warmup_steps=1, mixed_precision="bf16")
    changes = {"data": data, "training": training, "augment": "per_view", "gap_s": (0.2, 0.6)}
    train(config(store, "", tmp_path / "run", **changes))
    model, facts = load_lam(tmp_path / "run")
    assert facts.gap_s == (0.2, 0.6)
    assert facts.encoder == TINY
    with pytest.raises(ValueError, match=r"trained on gaps of \[0.2, 0.6\] s; choose --gap_s"):
        facts.one_gap_s(None)
    assert facts.one_gap_s(0.4) == 0.4
    assert torch.isfinite(model.bottleneck.codebook).all()
