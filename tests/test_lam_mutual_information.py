"""The information bound against closed forms and quadrature, and against independence."""

import time

import numpy as np
import pytest
from scipy.stats import norm

from lam.audit.mutual_information import (
    code_entropy_bits,
    code_perplexity,
    linear_gaussian_bits,
    shuffled_by_episode,
)
from lam.audit.probes import one_hot

CODES = 16


def noisy_codes(n, correlation, tokens=4, dims=7, seed=0):
    """Codes that bin noisy copies of the first action dimensions into equally likely bins."""
    rng = np.random.default_rng(seed)
    actions = rng.standard_normal((n, dims))
    copies = correlation * actions[:, :tokens] + np.sqrt(1 - correlation**2) * rng.standard_normal((n, tokens))
    return np.clip((norm.cdf(copies) * CODES).astype(int), 0, CODES - 1), actions, np.arange(n) // 25


def bits_of_binned_copy(correlation):
    """I(bin; action) of one token, by quadrature."""
    edges, points = norm.ppf(np.linspace(0, 1, CODES + 1)), np.linspace(-8, 8, 8001)
    weights = norm.pdf(points) / norm.pdf(points).sum()
    cumulative = norm.cdf((edges[None] - correlation * points[:, None]) / np.sqrt(1 - correlation**2))
    chances = np.clip(np.diff(cumulative, axis=1), 1e-300, 1)
    return np.log2(CODES) + float((weights * (chances * np.log2(chances)).sum(axis=1)).sum())


@pytest.mark.parametrize("n", [600, 1200, 5000])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_independent_codes_carry_about_zero_bits(n, seed):
    codes, actions, episodes = noisy_codes(n, 0.0, seed=seed)
    assert abs(linear_gaussian_bits(one_hot(codes, CODES), actions, episodes, permutations=0).bits) < 0.05


@pytest.mark.parametrize("correlation", [0.3, 0.6, 0.9])
def test_gaussian_information_equals_the_closed_form_and_adds_over_blocks(correlation):
    rng = np.random.default_rng(0)
    actions = rng.standard_normal((8000, 3))
    latents = correlation * actions + np.sqrt(1 - correlation**2) * rng.standard_normal((8000, 3))
    truth = -0.5 * np.log2(1 - correlation**2)
    episodes = np.arange(8000) // 40
    for blocks in (1, 3):
        result = linear_gaussian_bits(latents[:, :blocks], actions, episodes, permutations=0)
        assert result.bits == pytest.approx(blocks * truth, abs=0.02 * blocks)
        assert result.entropy_bits is None


@pytest.mark.parametrize(("correlation", "share"), [(0.5, 0.92), (0.8, 0.96), (0.895, 0.96)])
def test_binned_codes_give_nearly_the_true_bits_and_never_more(correlation, share):
    bits = []
    for seed in range(6):
        codes, actions, episodes = noisy_codes(5000, correlation, seed=seed)
        result = linear_gaussian_bits(one_hot(codes, CODES), actions, episodes, permutations=0)
        assert result.ci95[0] < result.bits < result.ci95[1]
        bits.append(result.bits)
    truth = 4 * bits_of_binned_copy(correlation)
    assert share * truth < np.mean(bits) < truth + 0.01


def test_redundant_tokens_do_not_count_twice():
    codes, actions, episodes = noisy_codes(4000, 0.9, tokens=1)
    once = linear_gaussian_bits(one_hot(codes, CODES), actions, episodes, permutations=0).bits
    copied = linear_gaussian_bits(one_hot(np.repeat(codes, 4, axis=1), CODES), actions, episodes, permutations=0).bits
    assert once == pytest.approx(bits_of_binned_copy(0.9), abs=0.12)
    assert copied == pytest.approx(once, abs=0.01)


def test_processing_the_codes_loses_bits():
    codes, actions, episodes = noisy_codes(3000, 0.9)
    fine = linear_gaussian_bits(one_hot(codes, CODES), actions, episodes, permutations=0).bits
    coarse = linear_gaussian_bits(one_hot(codes // 4, 4), actions, episodes, permutations=0).bits
    assert 0.3 * fine < coarse < fine - 0.3


def test_relabelling_codes_and_rescaling_actions_change_nothing():
    codes, actions, episodes = noisy_codes(1500, 0.8)
    relabel = np.random.default_rng(5).permutation(CODES)
    once = linear_gaussian_bits(one_hot(codes, CODES), actions, episodes, permutations=0)
    other = linear_gaussian_bits(one_hot(relabel[codes], CODES), np.exp(3 * actions), episodes, permutations=0)
    assert other.bits == pytest.approx(once.bits, abs=1e-8)
    assert other.entropy_bits == pytest.approx(once.entropy_bits)


def test_rotating_and_scaling_continuous_latents_changes_nothing():
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((1500, 6))
    actions = latents[:, :3] + rng.standard_normal((1500, 3))
    rotation = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    episodes = np.arange(1500) // 30
    once = linear_gaussian_bits(latents, actions, episodes, permutations=0).bits
    assert linear_gaussian_bits(500 * latents @ rotation, actions, episodes, permutations=0).bits == pytest.approx(once)


def test_a_perfectly_known_gripper_is_worth_less_than_its_entropy():
    """A density on tied values would promise unlimited bits about an open or closed gripper."""
    rng = np.random.default_rng(0)
    gripper = rng.integers(0, 2, (2000, 1))
    result = linear_gaussian_bits(one_hot(gripper, 2), gripper.astype(float), np.arange(2000) // 20, permutations=0)
    assert 0.6 < result.bits < 1.0
    assert result.entropy_bits == pytest.approx(1.0, abs=0.01)


def test_two_copies_of_an_action_dimension_tell_no_more_than_one():
    codes, actions, episodes = noisy_codes(2000, 0.8, tokens=1, dims=1)
    once = linear_gaussian_bits(one_hot(codes, CODES), actions, episodes, permutations=0).bits
    twice = linear_gaussian_bits(one_hot(codes, CODES), np.repeat(actions, 2, axis=1), episodes, permutations=0).bits
    assert twice == pytest.approx(once, abs=0.01)


def test_information_about_only_the_episode_is_not_counted():
    rng = np.random.default_rng(0)
    episodes = np.repeat(np.arange(60), 25)
    actions = rng.standard_normal((60, 3))[episodes] + 0.1 * rng.standard_normal((1500, 3))
    assert linear_gaussian_bits(np.eye(60)[episodes], actions, episodes, permutations=0).bits < 0.05


def test_null_is_centred_on_zero_and_below_a_real_signal():
    codes, actions, episodes = noisy_codes(1200, 0.3)
    result = linear_gaussian_bits(one_hot(codes, CODES), actions, episodes, permutations=40)
    assert abs(result.null_mean) < 0.02
    assert result.null_mean <= result.null_p95 < result.bits
    assert (result.permutations, result.n, result.episodes) == (40, 1200, 48)


def test_null_is_as_wide_as_chance_between_slow_signals():
    """Latents and actions that drift independently look related; the null must know by how much (here p > 0.01)."""
    rng = np.random.default_rng(0)
    episodes = np.repeat(np.arange(30), 40)
    above = 0
    for _ in range(20):
        drift = np.cumsum(rng.standard_normal((30, 40, 3)), axis=1).reshape(1200, 3)
        result = linear_gaussian_bits(drift[:, :2], drift[:, 2:], episodes, permutations=30, ridges=(1e-4,))
        above += result.bits > result.null_p95
    assert above <= 4


def test_null_breaks_what_latents_and_actions_share_through_time_even_in_equally_long_episodes():
    rng = np.random.default_rng(0)
    episodes, phase = np.repeat(np.arange(50), 30), np.tile(np.arange(30), 50)
    actions = phase[:, None] + rng.standard_normal((1500, 1))
    result = linear_gaussian_bits(one_hot(phase[:, None] // 2, 15), actions, episodes, permutations=20)
    assert result.bits > 2.0
    assert abs(result.null_mean) < 0.05


def test_shuffle_keeps_every_sample_once_and_runs_together():
    lengths = np.random.default_rng(0).integers(5, 30, 40)
    episodes = np.repeat(np.arange(40), lengths)
    order = shuffled_by_episode(episodes, np.random.default_rng(1))
    assert sorted(order) == list(range(len(episodes)))
    seams = np.sum(np.diff(order) != 1)
    assert seams <= 2 * 40
    assert np.mean(episodes[order] == episodes) < 0.2


def test_constant_actions_and_too_few_episodes_are_refused():
    codes, actions, episodes = noisy_codes(200, 0.0)
    with pytest.raises(ValueError, match="all 7 action dimensions are constant"):
        linear_gaussian_bits(one_hot(codes, CODES), np.zeros_like(actions), episodes)
    with pytest.raises(ValueError, match="1 episodes cannot make 5 folds"):
        linear_gaussian_bits(one_hot(codes, CODES), actions, np.zeros(200, dtype=int))


def test_entropy_and_perplexity_have_their_closed_forms():
    codes = np.stack([np.arange(1600) % 16, np.zeros(1600, dtype=int), np.arange(1600) % 2], axis=1)
    np.testing.assert_allclose(code_perplexity(codes, 16), [16, 1, 2])
    assert code_entropy_bits(codes[:, :1]) == pytest.approx(4 + 15 / (2 * 1600 * np.log(2)))
    assert code_entropy_bits(np.arange(64)[:, None]) == 6.0


def test_miller_madow_is_nearer_the_truth_than_the_plug_in():
    codes = np.random.default_rng(0).integers(0, 16, (300, 2))
    _, counts = np.unique(codes, axis=0, return_counts=True)
    plug_in = -np.sum(counts / 300 * np.log2(counts / 300))
    assert abs(code_entropy_bits(codes) - 8.0) < abs(plug_in - 8.0)


def test_an_audit_of_five_thousand_transitions_takes_seconds():
    codes, actions, episodes = noisy_codes(5000, 0.5)
    started = time.process_time()
    linear_gaussian_bits(one_hot(codes, CODES), actions, episodes, permutations=50)
    assert time.process_time() - started < 6.0
