"""The linear probe against scikit-learn, and what splitting by episode is for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from lam.audit.probes import (
    CrossFittedRidge,
    bootstrap_by_episode,
    episode_folds,
    linear_probe,
    one_hot,
    rank_gaussianise,
)


def linear_world(n=600, features=10, dims=3, noise=0.5, seed=0):
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((n, features)) + 3.0
    actions = inputs @ rng.standard_normal((features, dims)) + noise * rng.standard_normal((n, dims)) + 100.0
    return inputs, actions, np.arange(n) // 20


def mean_eigenvalue(inputs):
    return np.linalg.eigvalsh((len(inputs) - 1) * np.cov(inputs.T)).mean()


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 10.0])
def test_probe_with_one_ridge_equals_scikit_learn_on_the_same_folds(ridge):
    inputs, actions, episodes = linear_world()
    folds = episode_folds(episodes, 5, seed=3)
    expected = np.empty_like(actions)
    for fold in range(5):
        train = folds != fold
        model = Ridge(alpha=ridge * mean_eigenvalue(inputs[train])).fit(inputs[train], actions[train])
        expected[~train] = model.predict(inputs[~train])
    result = linear_probe(inputs, actions, episodes, ridges=(ridge,), seed=3)
    np.testing.assert_allclose(result.predictions, expected, rtol=1e-8)
    means = np.stack([actions[folds != fold].mean(axis=0) for fold in folds])
    nmse = ((actions - expected) ** 2).sum(axis=0) / ((actions - means) ** 2).sum(axis=0)
    np.testing.assert_allclose(result.nmse_by_dim, nmse, rtol=1e-6)
    assert result.nmse == pytest.approx(nmse.mean())


def test_ridge_and_residual_covariance_equal_those_of_nested_folds_done_by_hand():
    inputs, actions, episodes = linear_world(n=200, features=30, noise=6.0)
    ridges, folds = (1e-2, 1.0, 100.0), episode_folds(episodes, 4, seed=0)
    fit = CrossFittedRidge(inputs, folds, ridges).fit(actions)
    for fold in range(4):
        residuals = np.zeros((len(ridges), *actions.shape))
        for inner in set(range(4)) - {fold}:
            train, test = (folds != fold) & (folds != inner), folds == inner
            for index, ridge in enumerate(ridges):
                model = Ridge(alpha=ridge * mean_eigenvalue(inputs[train])).fit(inputs[train], actions[train])
                residuals[index, test] = actions[test] - model.predict(inputs[test])
        best = np.argmin((residuals**2).sum(axis=1), axis=0)
        chosen = np.stack([residuals[ridge, :, dim] for dim, ridge in enumerate(best)], axis=1)[folds != fold]
        np.testing.assert_array_equal(fit.ridges[fold], np.take(ridges, best))
        np.testing.assert_allclose(fit.residual_covariances[fold], chosen.T @ chosen / len(chosen), rtol=1e-8)
        np.testing.assert_allclose(fit.covariances[fold], np.cov(actions[folds != fold].T, bias=True), rtol=1e-8)


def test_nmse_is_the_share_of_variance_that_is_noise():
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((6000, 1))
    actions = signal + 0.5 * rng.standard_normal((6000, 1))
    result = linear_probe(signal, actions, np.arange(6000) // 30)
    assert result.nmse == pytest.approx(0.25 / 1.25, abs=0.01)
    assert result.ci95[0] < 0.2 < result.ci95[1]


def test_nmse_of_unrelated_inputs_is_one():
    rng = np.random.default_rng(1)
    result = linear_probe(rng.standard_normal((1000, 60)), rng.standard_normal((1000, 4)), np.arange(1000) // 20)
    assert 0.99 < result.nmse < 1.02


def test_memorising_episodes_earns_nothing():
    """Inputs that name the episode predict random frames of it well and unseen episodes not at all."""
    rng = np.random.default_rng(2)
    episodes = np.repeat(np.arange(40), 25)
    actions = rng.standard_normal((40, 2))[episodes] + 0.1 * rng.standard_normal((1000, 2))
    names = np.eye(40)[episodes]
    assert linear_probe(names, actions, episodes).nmse > 0.95
    assert linear_probe(names, actions, np.arange(1000)).nmse < 0.05


def test_constant_dimensions_are_left_out_and_named():
    inputs, actions, episodes = linear_world()
    actions[:, 1] = 7.0
    result = linear_probe(inputs, actions, episodes)
    assert result.constant_dims == (1,)
    assert np.isnan(result.nmse_by_dim[1])
    assert result.nmse == pytest.approx(result.nmse_by_dim[[0, 2]].mean())
    assert (result.predictions[:, 1] == 7.0).all()
    with pytest.raises(ValueError, match="all 3 action dimensions are constant"):
        linear_probe(inputs, np.ones_like(actions), episodes)


def test_probe_ignores_the_scale_of_inputs_and_the_order_of_codes():
    inputs, actions, episodes = linear_world(noise=3.0)
    once = linear_probe(inputs, actions, episodes).predictions
    np.testing.assert_allclose(linear_probe(1e4 * inputs[:, ::-1], actions, episodes).predictions, once, rtol=1e-7)


def test_constant_inputs_predict_the_training_mean():
    _, actions, episodes = linear_world()
    assert linear_probe(np.ones((600, 4)), actions, episodes).nmse == pytest.approx(1.0)


@settings(max_examples=30)
@given(st.integers(3, 8), st.lists(st.integers(0, 20), min_size=30, max_size=200), st.integers(0, 5))
def test_folds_never_split_an_episode_and_are_of_equal_numbers_of_episodes(folds, episodes, seed):
    episodes = np.asarray(episodes)
    names = np.unique(episodes)
    if len(names) < folds:
        with pytest.raises(ValueError, match=f"{len(names)} episodes cannot make {folds} folds"):
            episode_folds(episodes, folds, seed)
        return
    fold_of = episode_folds(episodes, folds, seed)
    owners = [set(fold_of[episodes == name]) for name in names]
    assert all(len(owner) == 1 for owner in owners)
    counts = np.bincount([owner.pop() for owner in owners], minlength=folds)
    assert counts.max() - counts.min() <= 1


def test_one_hot_marks_token_and_code():
    np.testing.assert_array_equal(one_hot(np.array([[2, 0], [1, 1]]), 3), [[0, 0, 1, 1, 0, 0], [0, 1, 0, 0, 1, 0]])
    with pytest.raises(ValueError, match=r"codes span 0\.\.3, not 0\.\.2"):
        one_hot(np.array([[3, 0]]), 3)


def test_gaussianised_actions_are_normal_keep_their_order_and_share_ties():
    rng = np.random.default_rng(0)
    actions = np.stack([rng.exponential(size=2000), np.repeat([0.0, 1.0], 1000)], axis=1)
    gauss = rank_gaussianise(actions)
    assert gauss[:, 0].std() == pytest.approx(1.0, abs=0.01)
    assert (np.argsort(gauss[:, 0]) == np.argsort(actions[:, 0])).all()
    np.testing.assert_allclose(np.unique(gauss[:, 1]), [-0.6745, 0.6745], atol=2e-3)
    broken = rank_gaussianise(actions, rng)
    assert len(np.unique(broken[:, 1])) == 2000
    assert broken[:1000, 1].max() < broken[1000:, 1].min()


def test_bootstrap_by_episode_has_the_width_of_independent_episodes():
    """With 100 equal episodes of identical samples the standard error is that of 100 values, not of 1000."""
    values = np.random.default_rng(0).standard_normal(100)
    episodes = np.repeat(np.arange(100), 10)
    columns = np.stack([values[episodes], np.ones(1000)], axis=1)
    low, high = bootstrap_by_episode(columns, episodes, lambda sums: sums[:, 0] / sums[:, 1])
    assert (high - low) / (2 * 1.96) == pytest.approx(values.std() / 10, rel=0.08)
    assert low < values.mean() < high
