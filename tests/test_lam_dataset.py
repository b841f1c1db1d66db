import numpy as np
import pytest

from core.config import ConfigError, load_config
from core.episode import Episode, View
from core.frames import FeatureCache
from core.spaces import END_EFFECTOR_DELTA
from core.store import ActionsHiddenError, Store, StoreInfo, finish_store, write_part
from core.vision import Grid
from lam.dataset import TransitionDataset, TransitionsError, transition_actions
from lam.train import TrainLamConfig

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
    write_part(path, 0, episodes, info=info, first_episode=0, first_frame=0, tasks=["do it"])
    finish_store(path, info, 1, ["do it"])
    return Store.open(path)


def dataset(store, **changes) -> TransitionDataset:
    values = {"gap_s": 0.4, "split": "train", "views": ["front", "left", "right"], "views_per_sample": 2}
    return TransitionDataset(store, Features(), **(values | changes))


def test_no_transition_reaches_beyond_its_episode(store):
    data = dataset(store)
    assert data.gap == 2
    assert len(data) == (6 - 2) + (9 - 2)
    lengths = np.array(LENGTHS)[data.episodes]
    assert (data.frames + data.gap < lengths).all()


def test_the_views_of_a_sample_are_different_cameras_that_the_episode_has_at_the_same_two_instants(store):
    data = dataset(store)
    indices = np.arange(len(data))
    batch = data.batch(indices, np.random.default_rng(0))["features"].numpy()
    assert batch.shape == (len(data), 2, 2, 16, 3)
    view, episode, frame = np.moveaxis(batch[:, :, :, 0], -1, 0)
    assert (view[:, 0] != view[:, 1]).all()
    assert (view[:, :, 0] == view[:, :, 1]).all()
    assert (episode == data.episodes[:, None, None]).all()
    assert (frame[:, :, 0] == data.frames[:, None]).all()
    assert (frame[:, :, 1] == data.frames[:, None] + 2).all()
    assert not (view[episode == 1] == 1).any(), "episode 1 has no left camera"


def test_a_batch_is_a_function_of_its_generator(store):
    data, indices = dataset(store), np.arange(8)
    first, again, other = (data.batch(indices, np.random.default_rng(seed))["features"] for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)


def test_pooling_averages_neighbouring_patches(store):
    data = dataset(store, pool=2)
    assert data.num_patches == 4
    assert data.batch(np.arange(3), np.random.default_rng(0))["features"].shape == (3, 2, 2, 4, 3)
    with pytest.raises(TransitionsError, match="a grid of 4 x 4 patches cannot be pooled by 3"):
        dataset(store, pool=3)


def test_training_never_sees_actions_of_action_free_episodes_but_an_audit_adds_them_up(store):
    data = dataset(store)
    assert "actions" not in data.batch(np.arange(4), np.random.default_rng(0))
    with pytest.raises(ActionsHiddenError):
        store.actions(0)
    summed = transition_actions(store, data.episodes, data.frames, data.gap)
    actions = store.actions(1, for_audit=True)
    at = int(np.flatnonzero((data.episodes == 1) & (data.frames == 3))[0])
    np.testing.assert_allclose(summed[at, :6], actions[3:5, :6].sum(0), rtol=1e-5)
    assert summed[at, 6] == actions[4, 6]


def test_too_few_views_too_long_a_gap_and_odd_gaps_end_in_a_sentence(store):
    with pytest.raises(TransitionsError, match=r"has 4 of the views .* Record more cameras"):
        dataset(store, views_per_sample=4)
    with pytest.raises(TransitionsError, match="lower gap_s"):
        dataset(store, gap_s=4.0)
    with pytest.raises(ValueError, match=r"0.3 s are 1.50 frames at 5.0 Hz"):
        dataset(store, gap_s=0.3)
    with pytest.raises(ConfigError, match="objective self_cross needs views_per_sample of 2 or more, got 1"):
        load_config(TrainLamConfig, overrides={"out": "a", "store": "b", "features": "c", "views_per_sample": 1})
