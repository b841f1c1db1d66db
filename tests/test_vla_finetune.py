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
from vla.checkpoint import VlaDescription, create, load, save
from vla.dataset import DemonstrationDataset
from vla.finetune import FinetuneVlaConfig, finetune, held_out_demonstrations, measure
from vla.parts import Part
from vla.prompt import prompt
from vla.tokens import LatentTokenizer

TINY = EncoderConfig(name="vit_tiny_patch16_224", image_size=32, weights="random", dtype="float32")
NANO = {"width": 32, "layers": 1, "heads": 2, "feed_forward": 32, "image_tokens": 2, "projector_width": 16}
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
def tokenizer() -> LatentTokenizer:
    return LatentTokenizer.trained_on([prompt("push the cube")], num_codes=4, num_tokens=2)


@pytest.fixture(scope="module")
def pretrained(cache, tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("pretrained")
    description = VlaDescription(
        encoder=TINY,
        encoder_fingerprint=cache.encoder_fingerprint,
        pool=1,
        feature_dim=cache.dim,
        grid=tuple(cache.grid),
        view="side",
        backbone=Part(name="nano", options=NANO),
        tokenizer=tokenizer.to_json(),
        num_codes=4,
        num_tokens=2,
    )
    fingerprint = save(directory, create(description), description, {})
    write_json(directory / "manifest.json", {"fingerprint": fingerprint})
    return directory


def config(store, cache, pretrained, out, **changes) -> FinetuneVlaConfig:
    training = TrainingConfig(steps=2, batch_size=4, validate_every=1, mixed_precision="no")
    places = {"store": str(store.path), "features": str(cache.directory), "pretrained": str(pretrained)}
    return FinetuneVlaConfig(**places, out=str(out), training=training, **changes)


def test_held_out_episodes_without_proprioception_are_left_out_of_validation_and_told(
    store, cache, pretrained, tmp_path, capsys
):
    finetune(config(store, cache, pretrained, tmp_path / "run"))
    assert "1 of 3 held-out episodes are left out of validation" in capsys.readouterr().err
    assert read_header(tmp_path / "run/model.safetensors")["control_hz"] == pytest.approx(store.info.control_hz)
    train = store.select(split="train")
    _, description, _ = load(tmp_path / "run")
    blind = description.model_copy(update={"proprioception_dims": 0})
    chosen = [held_out_demonstrations(store, train, form) for form in (description, blind)]
    assert [[record.index for record in records] for records in chosen] == [[5, 7], [5, 6, 7]]


def test_a_view_without_features_is_told_before_the_run_is_begun(store, cache, pretrained, tmp_path):
    with pytest.raises(FeaturesError, match=r"features of the views \['side'\], not of 'front'"):
        finetune(config(store, cache, pretrained, tmp_path / "run", view="front"))
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


def samples(store, cache, tokenizer, statistics):
    return DemonstrationDataset(
        store, cache, tokenizer, store.select(split="train"), view="side", horizon=4, **statistics
    )


@pytest.mark.parametrize(("kept", "reads"), [(10**6, 3), (20, 4), (1, 4)])
def test_as_many_episodes_are_kept_as_there_is_room_for(store, cache, tokenizer, monkeypatch, kept, reads):
    monkeypatch.setattr(vla.dataset, "KEPT_FRAMES", kept)
    watched, statistics = Watched.open(store.path), measure(store, store.select(split="train"), True)
    data = samples(watched, cache, tokenizer, statistics)
    assert watched.read == []
    firsts = {int(episode): index for index, episode in reversed(list(enumerate(data.locate(np.arange(len(data)))[0])))}
    for episode in (0, 1, 2, 0):
        data.batch(np.array([firsts[episode]]), np.random.default_rng(0))
    assert len(watched.read) == reads


@pytest.mark.parametrize("kept", [10**6, 1])
def test_samples_are_those_of_their_episodes_however_few_are_kept(store, cache, tokenizer, monkeypatch, kept):
    monkeypatch.setattr(vla.dataset, "KEPT_FRAMES", kept)
    records = store.select(split="train")
    statistics = measure(store, records, True)
    data = samples(store, cache, tokenizer, statistics)
    places = [(record.index, frame) for record in records for frame in range(record.length)]
    assert len(data) == len(places)
    order = np.random.default_rng(0).permutation(len(places))
    batch = data.batch(order, np.random.default_rng(0))
    assert data.describe(order) == [f"{e}:{f}" for e, f in (places[index] for index in order)]
    for row, (episode, frame) in enumerate(places[index] for index in order):
        chunk = statistics["actions"].normalise(store.actions(episode))[frame : frame + 4]
        assert np.array_equal(batch["actions"][row, : len(chunk)], chunk)
        assert batch["mask"][row].tolist() == [step < len(chunk) for step in range(4)]
        assert not batch["actions"][row, len(chunk) :].any()
        senses = statistics["proprioception"].normalise(store.proprioception(episode))
        assert np.array_equal(batch["proprioception"][row], senses[frame])
    torch.testing.assert_close(batch["features"], torch.from_numpy(cache.features("side", *np.array(places)[order].T)))
