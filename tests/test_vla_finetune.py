"""Fine-tuning says what demonstrations lack before it trains, and holds few of them in memory at a time."""

import weakref

import numpy as np
import pytest
import torch
from synthetic_episodes import INFO, make_episode

import core.statistics
import vla.dataset
from core.checkpoint import read_header
from core.frames import FeatureCache, FeaturesError
from core.run import write_json
from core.statistics import Statistics
from core.store import Store, finish_store, write_part
from core.training import TrainingConfig
from core.vision import EncoderConfig
from vla.backbones.interface import Setting
from vla.checkpoint import VlaDescription, save
from vla.dataset import DemonstrationDataset, Source
from vla.demonstrations import held_out_demonstrations, measure
from vla.finetune import FinetuneVlaConfig, finetune
from vla.images import CachedFeatures
from vla.model import VisionLanguageActionModel
from vla.parts import BACKBONES, Part, find
from vla.prompt import prompt

TINY = EncoderConfig(name="vit_tiny_patch16_224", image_size=32, weights="random", dtype="float32")
SIZES = {"width": 32, "layers": 1, "heads": 2, "feed_forward": 32, "image_tokens": 2, "projector_width": 16}
NANO = Part(name="nano", options=SIZES)
COUNT, HELD_OUT, WITHOUT = 8, (5, 6, 7), 6


def pushes(number):
    """A demonstration of one task; of those that are held out, one was recorded without proprioception."""
    changes = {"task": "push", "instruction": "push the cube", "is_labelled": True}
    changes |= {"split": "held_out" if number in HELD_OUT else "train", "episode_id": f"push/{number}"}
    if number == WITHOUT:
        changes["proprioception"] = None
    return make_episode(number + 10, length=5 + number, **changes)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    path = tmp_path_factory.mktemp("episodes") / "store"
    write_part(path, 0, (pushes(number) for number in range(COUNT)), info=INFO)
    finish_store(path, INFO, 1)
    return Store.open(path)


@pytest.fixture(scope="module")
def cache(store, tmp_path_factory) -> FeatureCache:
    return FeatureCache.build(store, TINY, tmp_path_factory.mktemp("cache") / "features", views=["side"])


@pytest.fixture(scope="module")
def description(cache) -> VlaDescription:
    form = CachedFeatures(cache).form
    setting = Setting(num_codes=4, num_tokens=2, feature_dim=form.feature_dim, grid=form.grid)
    return VlaDescription(images=form, views=("side",), sees_one=True, backbone=NANO, setting=setting)


@pytest.fixture(scope="module")
def backbone(description):
    kind, options = find(NANO, BACKBONES)
    return kind.fresh(options, description.setting, [prompt("push the cube")])


@pytest.fixture(scope="module")
def pretrained(description, backbone, tmp_path_factory):
    directory = tmp_path_factory.mktemp("pretrained")
    fingerprint = save(directory, VisionLanguageActionModel(backbone), description, {})
    write_json(directory / "manifest.json", {"fingerprint": fingerprint})
    return directory


def config(store, cache, pretrained, out, data=None, **changes) -> FinetuneVlaConfig:
    training = TrainingConfig(steps=2, batch_size=4, validate_every=1, mixed_precision="no")
    data = {"path": str(store.path), "features": str(cache.directory)} | (data or {})
    words = {"policy": {"path": str(pretrained)}, "data": data, "out": str(out), "training": training}
    return FinetuneVlaConfig(**words | changes)


def test_held_out_episodes_without_proprioception_are_left_out_of_validation_and_told(
    store, cache, pretrained, tmp_path, capsys
):
    finetune(config(store, cache, pretrained, tmp_path / "run"))
    assert "1 of 3 held-out episodes are left out of validation" in capsys.readouterr().err
    assert read_header(tmp_path / "run/model.safetensors")["control_hz"] == pytest.approx(store.info.control_hz)
    train = store.select(split="train")
    chosen = [held_out_demonstrations(store, train, ["side"], with_proprioception=sees) for sees in (True, False)]
    assert [[record.index for record in records] for records in chosen] == [[5, 7], [5, 6, 7]]


def test_a_view_without_features_is_told_before_the_run_is_begun(store, cache, pretrained, tmp_path):
    with pytest.raises(FeaturesError, match=r"features of the views \['side'\], not of 'front'"):
        finetune(config(store, cache, pretrained, tmp_path / "run", {"views": ["front"]}))
    assert not (tmp_path / "run").exists()


class Watched(Store):
    """Remembers which episodes' actions were read, and how many of them were in use at once."""

    def __init__(self, *words):
        super().__init__(*words)
        self.read, self.most, self._found = [], 0, []

    def actions(self, episode, *, for_audit=False):
        found = super().actions(episode, for_audit=for_audit)
        self.read.append(episode)
        self._found.append(weakref.ref(found))
        self.most = max(self.most, sum(one() is not None for one in self._found))
        return found


@pytest.mark.parametrize("sorted_rows", [10**6, 1])
def test_statistics_are_of_all_demonstrations_and_take_the_memory_of_one(store, monkeypatch, sorted_rows):
    train = store.select(split="train")
    expected = {
        "actions": Statistics.of([store.actions(record.index) for record in train]),
        "proprioception": Statistics.of([store.proprioception(record.index) for record in train]),
    }
    monkeypatch.setattr(core.statistics, "SORTED_ROWS", sorted_rows)
    watched = Watched.open(store.path)
    assert measure(watched, train, True) == expected
    assert watched.most <= 2


def samples(store, cache, backbone, statistics):
    source = Source(store, CachedFeatures(cache), backbone.prepare)
    records = store.select(split="train")
    return DemonstrationDataset(source, records, views=["side"], horizon=4, is_bounded=False, **statistics)


@pytest.mark.parametrize(("kept", "reads"), [(10**6, 3), (20, 4), (1, 4)])
def test_as_many_episodes_are_kept_as_there_is_room_for(store, cache, backbone, monkeypatch, kept, reads):
    monkeypatch.setattr(vla.dataset, "KEPT_FRAMES", kept)
    watched, statistics = Watched.open(store.path), measure(store, store.select(split="train"), True)
    data = samples(watched, cache, backbone, statistics)
    assert watched.read == []
    firsts = {int(episode): index for index, episode in reversed(list(enumerate(data.locate(np.arange(len(data)))[0])))}
    for episode in (0, 1, 2, 0):
        data.batch(np.array([firsts[episode]]), np.random.default_rng(0))
    assert len(watched.read) == reads


@pytest.mark.parametrize("kept", [10**6, 1])
def test_samples_are_those_of_their_episodes_however_few_are_kept(store, cache, backbone, monkeypatch, kept):
    monkeypatch.setattr(vla.dataset, "KEPT_FRAMES", kept)
    records = store.select(split="train")
    statistics = measure(store, records, True)
    data = samples(store, cache, backbone, statistics)
    places = [(record.index, frame) for record in records for frame in range(record.length)]
    assert len(data) == len(places)
    order = np.random.default_rng(0).permutation(len(places))
    batch = data.batch(order, np.random.default_rng(0))
    assert data.describe(order) == [f"{e}:{f}" for e, f in (places[index] for index in order)]
    for row, (episode, frame) in enumerate(places[index] for index in order):
        chunk = statistics["actions"].normalise(store.actions(episode))[frame : frame + 4]
        assert np.array_equal(batch["actions"][row, : len(chunk)], chunk)
        assert batch["valid"][row].tolist() == [step < len(chunk) for step in range(4)]
        assert not batch["actions"][row, len(chunk) :].any()
        senses = statistics["proprioception"].normalise(store.proprioception(episode))
        assert np.array_equal(batch["senses"][row], senses[frame])
    torch.testing.assert_close(
        batch["images"][:, 0], torch.from_numpy(cache.features("side", *np.array(places)[order].T))
    )
