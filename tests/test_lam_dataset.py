import shutil

import numpy as np
import pytest

from core.episode import Episode, View
from core.frames import FeatureCache
from core.spaces import END_EFFECTOR_DELTA
from core.store import ActionsHiddenError, Store, StoreError, StoreInfo, finish_store, write_part
from core.vision import Grid
from lam.dataset import DataOptions, TransitionDataset, TransitionsError, gaps_in_frames, transition_actions
from lam.mixture import Mixture
from lam.view_pairs import view_pairs

LENGTHS = (6, 9, 2)
VIEWS = (("front", "left", "right"), ("front", "right"), ("front", "left", "right"))


class Features(FeatureCache):
    """Stands in for a feature cache: a frame's features say which view, episode and frame they are."""

    def __init__(self):
        self.grid, self.num_patches, self.dim = Grid(4, 4), 16, 3

    def features(self, view, episodes, frames):
        number = ["front", "left", "right"].index(view)
        rows = np.stack([np.full(len(episodes), number), episodes, frames], axis=1)
        return np.repeat(rows[:, None], 16, axis=1).astype(np.float16)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("store")
    sizes = {name: (16, 16) for name in VIEWS[0]}
    info = StoreInfo(
        control_hz=5.0, views=sizes, action_space=END_EFFECTOR_DELTA, proprioception_dims=0, robot_type="panda"
    )
    rng = np.random.default_rng(0)
    episodes = [
        Episode(
            episode_id=f"task/seed={i}",
            task="task",
            instruction="do it",
            control_hz=5.0,
            views={v: View(frames=rng.integers(0, 255, (length, 16, 16, 3), dtype=np.uint8)) for v in views},
            actions=rng.normal(size=(length, 7)).astype(np.float32),
            action_space=END_EFFECTOR_DELTA,
            is_labelled=False,
        )
        for i, (length, views) in enumerate(zip(LENGTHS, VIEWS, strict=True))
    ]
    write_part(path, 0, episodes, info=info)
    finish_store(path, info, 1)
    return Store.open(path)


def dataset(store, gap_s=0.4, views=("front", "left", "right"), split="train", **options) -> TransitionDataset:
    options = DataOptions(**({"fewest_views": 2} | options))
    return TransitionDataset(store, Features(), gap_s=gap_s, split=split, views=views, options=options)


def seen(batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """View, episode and frame (rows, 2) that the features of a batch tell."""
    return tuple(np.moveaxis(batch["features"].numpy()[:, :, 0], -1, 0).astype(int))


def test_no_transition_reaches_beyond_its_episode(store):
    data = dataset(store)
    assert data.gaps == (2, 2)
    assert len(data) == (6 - 2) + (9 - 2)
    episodes, frames = data.locate(np.arange(len(data)))
    assert list(zip(episodes, frames, strict=True)) == [(0, f) for f in range(4)] + [(1, f) for f in range(7)]


def test_gaps_of_a_range_are_drawn_for_each_sample_and_never_clamped(store):
    data = dataset(store, gap_s=(0.4, 1.0))
    indices = np.repeat(np.arange(len(data)), 40)
    batch = data.batch(indices, np.random.default_rng(0))
    _, episode, frame = seen(batch)
    gaps = frame[:, 1] - frame[:, 0]
    assert set(gaps) == {2, 3, 4, 5}
    assert (frame[:, 1] < np.array(LENGTHS)[episode[:, 0]]).all()
    first = gaps[(episode[:, 0] == 1) & (frame[:, 0] == 0)]
    assert np.bincount(first, minlength=6)[2:].min() > 10, "each gap that fits is as likely as the others"
    assert set(gaps[(episode[:, 0] == 1) & (frame[:, 0] == 6)]) == {2}


def test_the_rows_of_a_sample_are_different_cameras_that_the_episode_has_at_the_same_two_instants(store):
    data = dataset(store)
    indices = np.arange(len(data))
    batch = data.batch(indices, np.random.default_rng(0))
    view, episode, frame = seen(batch)
    sample = batch["sample"].numpy()
    episodes, frames = data.locate(indices)
    assert np.bincount(sample).tolist() == [2] * len(data)
    assert (batch["camera"].numpy() == view[:, 0]).all()
    assert (view[:, 0] == view[:, 1]).all()
    assert (episode == episodes[sample][:, None]).all()
    assert (frame == frames[sample][:, None] + [0, 2]).all()
    assert not (view[episode == 1] == 1).any(), "episode 1 has no left camera"
    targets, sources = batch["cross"].numpy().T
    assert (sample[targets] == sample[sources]).all()
    assert (view[targets, 0] != view[sources, 0]).all()
    assert batch["own"].tolist() == list(range(2 * len(data)))


def test_a_camera_that_an_episode_lacks_is_no_row_and_all_pairs_are_taken_where_asked_for(store):
    data = dataset(store, fewest_views=1, pairs=0)
    batch = data.batch(np.array([0, 5]), np.random.default_rng(0))
    assert np.bincount(batch["sample"]).tolist() == [3, 2]
    assert np.bincount(batch["sample"][batch["cross"][:, 0]]).tolist() == [6, 2]
    alone = dataset(store, fewest_views=1, views=["left"])
    assert len(alone) == 4, "only episode 0 is long enough and has the camera"
    batch = alone.batch(np.arange(4), np.random.default_rng(0))
    assert batch["own"].tolist() == [0, 1, 2, 3]
    assert batch["cross"].shape == (0, 2)


def test_pairs_are_all_or_a_few_that_need_few_cameras():
    assert view_pairs(3, 0).own == (0, 1, 2)
    assert len(set(view_pairs(3, 0).cross)) == 6
    for views in range(2, 9):
        few = view_pairs(views, 2)
        assert few == (2, (0, 1), ((0, 1), (1, 0)))
    assert view_pairs(5, 4) == (3, (0, 1, 2), ((0, 1), (1, 0), (0, 2), (2, 0)))
    assert view_pairs(1, 2) == (1, (0,), ())


def test_a_batch_is_a_function_of_its_generator(store):
    data, indices = dataset(store), np.arange(8)
    first, again, other = (data.batch(indices, np.random.default_rng(seed))["features"] for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)


def test_datasets_are_mixed_in_proportion_to_their_weights_and_each_is_seen_whole(store):
    one, other = (
        dataset(store, views=["front", "right"]),
        dataset(store, fewest_views=1, views=["left"], first_camera=2),
    )
    mixture = Mixture([one, other], [3.0, 1.0])
    batch = mixture.batch(np.arange(len(mixture)), np.random.default_rng(0))
    of_other = (batch["camera"] == 2).numpy()
    samples = batch["sample"].numpy()
    share = len(set(samples[of_other])) / len(mixture)
    assert share == pytest.approx(0.25, abs=0.04)
    _, episode, frame = seen(batch)
    for dataset_rows, data in ((~of_other, one), (of_other, other)):
        places = set(zip(episode[dataset_rows, 0], frame[dataset_rows, 0], strict=True))
        assert places == set(zip(*data.locate(np.arange(len(data))), strict=True))
    view = seen(batch)[0]
    assert (view[of_other] == 1).all()
    targets, sources = batch["cross"].numpy().T
    assert (samples[targets] == samples[sources]).all()
    assert (episode[targets] == episode[sources]).all()
    assert len(np.unique(samples)) == len(mixture) == len(mixture.describe(np.arange(len(mixture))))


def test_pooling_averages_neighbouring_patches(store):
    data = dataset(store, pool=2)
    assert data.num_patches == 4
    assert data.batch(np.arange(3), np.random.default_rng(0))["features"].shape == (6, 2, 4, 3)
    with pytest.raises(TransitionsError, match="a grid of 4 x 4 patches cannot be pooled by 3"):
        dataset(store, pool=3)


def test_training_never_sees_actions_of_action_free_episodes_but_an_audit_adds_them_up(store):
    data = dataset(store)
    assert "actions" not in data.batch(np.arange(4), np.random.default_rng(0))
    with pytest.raises(ActionsHiddenError):
        store.actions(0)
    episodes, frames = data.locate(np.arange(len(data)))
    summed = transition_actions(store, episodes, frames, 2)
    actions = store.actions(1, for_audit=True)
    at = int(np.flatnonzero((episodes == 1) & (frames == 3))[0])
    np.testing.assert_allclose(summed[at, :6], actions[3:5, :6].sum(0), rtol=1e-5)
    assert summed[at, 6] == actions[4, 6]


def test_a_supervised_objective_gets_standardised_actions_of_a_fraction_of_the_episodes(store):
    with pytest.raises(TransitionsError, match=r"no training episode .* has the numbers that the objective needs"):
        dataset(store, labelled_fraction=1.0)
    data = dataset(store, labelled_fraction=1.0, hidden_actions=True)
    everything = data.batch(np.arange(len(data)), np.random.default_rng(0))["actions"].numpy()
    np.testing.assert_allclose(everything.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(everything.std(0), 1, atol=1e-4)
    raw = transition_actions(store, *data.locate(np.arange(len(data))), 2)
    np.testing.assert_allclose(everything, (raw - raw.mean(0)) / raw.std(0), atol=1e-4)
    half = dataset(store, labelled_fraction=0.5, hidden_actions=True)
    labelled = np.random.default_rng(0).random(3) < 0.5
    known = np.isfinite(half.batch(np.arange(len(half)), np.random.default_rng(0))["actions"].numpy()).all(1)
    episodes, _ = half.locate(np.arange(len(half)))
    np.testing.assert_array_equal(known, labelled[episodes])


def test_proprioception_is_that_of_both_frames_in_the_scale_of_the_training_episodes(tmp_path):
    rng = np.random.default_rng(0)
    info = StoreInfo(
        control_hz=5.0, views={"front": (16, 16)}, action_space=None, proprioception_dims=2, robot_type="panda"
    )
    senses = [rng.normal(3 * number, 2, size=(8, 2)).astype(np.float32) for number in range(3)]
    senses[1] = None
    episodes = [
        Episode(
            episode_id=f"{number}",
            task="task",
            instruction="do it",
            control_hz=5.0,
            views={"front": View(frames=rng.integers(0, 255, (8, 16, 16, 3), dtype=np.uint8))},
            proprioception=values,
            split="held_out" if number == 2 else "train",
        )
        for number, values in enumerate(senses)
    ]
    write_part(tmp_path, 0, episodes, info=info)
    finish_store(tmp_path, info, 1)
    opened = Store.open(tmp_path)
    wanted = np.stack([senses[0][:6], senses[0][2:]], axis=1)
    mean, std = wanted.reshape(-1, 2).mean(0), wanted.reshape(-1, 2).std(0)
    for split, number in (("train", 0), ("held_out", 2)):
        data = dataset(opened, views=["front"], split=split, fewest_views=1, with_proprioception=True)
        found = data.batch(np.arange(6), np.random.default_rng(0))["proprioception"].numpy()
        raw = np.stack([senses[number][:6], senses[number][2:]], axis=1)
        np.testing.assert_allclose(found, (raw - mean) / std, atol=1e-4)
    everything = dataset(opened, views=["front"], fewest_views=1, with_proprioception=True)
    known = np.isfinite(everything.batch(np.arange(12), np.random.default_rng(0))["proprioception"].numpy())
    assert known[:6].all()
    assert not known[6:].any()


def test_a_split_without_episodes_and_missing_proprioception_are_said(store):
    with pytest.raises(TransitionsError, match="has no held_out episodes; say which are train and which held_out"):
        dataset(store, split="held_out")
    with pytest.raises(TransitionsError, match="no proprioception, which objective proprioceptive_forward needs"):
        dataset(store, with_proprioception=True)


def test_too_few_views_too_long_a_gap_and_odd_gaps_end_in_a_sentence(store):
    with pytest.raises(TransitionsError, match=r"has 4 of the views .* lower fewest_views"):
        dataset(store, fewest_views=4)
    with pytest.raises(TransitionsError, match=r"longer than the gap of 4.0 s \(20 frames\); lower gap_s"):
        dataset(store, gap_s=4.0)
    with pytest.raises(ValueError, match=r"0.3 s are 1.50 frames at 5.0 Hz"):
        dataset(store, gap_s=0.3)
    with pytest.raises(TransitionsError, match=r"no whole number of frames at 5.0 Hz lies in gap_s"):
        gaps_in_frames((0.25, 0.35), 5.0)
    with pytest.raises(TransitionsError, match=r"has no views \['top'\]"):
        dataset(store, views=["top"])
    assert gaps_in_frames((0.1, 0.8), 5.0) == (1, 4)


def test_damaged_actions_are_not_taken_for_absent_ones(store, tmp_path):
    shutil.copytree(store.path, tmp_path / "store")
    file = next((tmp_path / "store/data").rglob("*.parquet"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        dataset(Store.open(tmp_path / "store"), labelled_fraction=1.0, hidden_actions=True)
