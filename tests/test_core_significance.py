"""Intervals cover as often as they say, and tests agree with enumeration, scipy and published examples."""

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import norm, permutation_test, rankdata, t, wilcoxon
from statsmodels.stats.multitest import multipletests

from core.significance import (
    EpisodeSums,
    difference_of_differences,
    hierarchical_bootstrap,
    holm,
    paired_effect,
    sign_flip_p,
    smallest_p,
    wilcoxon_p,
)

FEW_NUMBERS = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=9)


def crossed(rng, seeds, episodes, by_seed=1.0, by_episode=1.0, by_both=1.0, truth=0.0):
    """Differences with their own seed, episode and interaction parts, on episodes of unequal lengths."""
    counts = rng.integers(20, 40, episodes)
    means = truth + by_seed * rng.normal(size=(seeds, 1)) + by_episode * rng.normal(size=(1, episodes))
    return EpisodeSums((means + by_both * rng.normal(size=(seeds, episodes))) * counts, counts)


def coverage(seeds, episodes, times=400, **spreads):
    rng = np.random.default_rng(0)
    intervals = [
        hierarchical_bootstrap([crossed(rng, seeds, episodes, truth=3.0, **spreads)], draws=1000, seed=number)
        for number in range(times)
    ]
    return np.mean([low <= 3.0 <= high for low, high in intervals])


@pytest.mark.parametrize(("seeds", "episodes"), [(3, 40), (5, 40), (10, 15), (10, 60)])
@pytest.mark.parametrize("by_episode", [0.3, 3.0])
def test_the_interval_of_crossed_seeds_and_episodes_covers_the_truth_as_often_as_it_says(seeds, episodes, by_episode):
    assert 0.92 <= coverage(seeds, episodes, by_episode=by_episode) <= 0.98


def test_an_interval_of_nothing_but_noise_of_single_measurements_is_safe():
    assert coverage(10, 40, by_seed=0.0, by_episode=0.0) >= 0.97


def test_the_interval_of_one_varying_factor_is_that_of_student():
    """Only seeds differ: a one-sample t interval. Only episodes differ: the same over episodes."""
    values = 3 + norm.ppf((np.arange(12) + 0.5) / 12)
    half = t.ppf(0.975, 11) * values.std(ddof=1) / np.sqrt(12)
    for sums in (np.tile(values[:, None], 9), np.tile(values, (9, 1))):
        low, high = hierarchical_bootstrap([EpisodeSums(sums, np.ones(sums.shape[1]))], draws=40_000)
        assert (high - low) / 2 == pytest.approx(half, rel=0.02)
        assert (high + low) / 2 == pytest.approx(3.0, abs=0.02 * half)


def test_an_effect_states_mean_spread_and_number_of_pairs():
    baseline = EpisodeSums(np.array([[2.0, 4.0], [1.0, 5.0], [0.0, 6.0]]), np.array([1, 3]))
    treatment = EpisodeSums(baseline.sums + np.array([[1.0, 3.0], [2.0, 6.0], [-1.0, -3.0]]), np.array([1, 3]))
    effect = paired_effect(treatment, baseline)
    by_seed = np.array([1.0, 2.0, -1.0])
    assert effect.mean == pytest.approx(by_seed.mean())
    assert effect.sd == pytest.approx(by_seed.std(ddof=1))
    assert (effect.seeds, effect.episodes, effect.positive) == (3, 2, 2)
    assert effect.ci95[0] < effect.mean < effect.ci95[1]
    assert effect.p_permutation == pytest.approx(6 / 8), "of the flips only those that add up to 0 are less extreme"
    assert effect == paired_effect(treatment, baseline)
    swapped = paired_effect(baseline, treatment)
    assert (swapped.mean, swapped.p_wilcoxon) == (-effect.mean, effect.p_wilcoxon)


def test_what_seeds_and_episodes_have_in_common_in_both_arms_widens_nothing():
    rng = np.random.default_rng(2)
    baseline = crossed(rng, 5, 30, by_seed=50.0, by_episode=50.0)
    noise = 0.01 * rng.normal(size=(5, 30)) * baseline.counts
    effect = paired_effect(EpisodeSums(baseline.sums + baseline.counts + noise, baseline.counts), baseline)
    assert effect.ci95 == pytest.approx((1.0, 1.0), abs=0.01)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (EpisodeSums(np.ones((3, 4)), np.ones(4)), "same seeds, episodes"),
        (EpisodeSums(np.ones((2, 5)), np.ones(5)), "same seeds, episodes"),
        (EpisodeSums(np.ones((2, 4)), np.array([1.0, 1.0, 1.0, 2.0])), "same seeds, episodes"),
    ],
)
def test_arms_that_were_not_measured_alike_are_refused(other, message):
    with pytest.raises(ValueError, match=message):
        paired_effect(EpisodeSums(np.ones((2, 4)), np.ones(4)), other)


def test_one_seed_or_one_episode_gives_no_interval():
    for shape, name in (((1, 5), "seeds"), ((5, 1), "episodes")):
        with pytest.raises(ValueError, match=f"1 {name}; an interval over {name} needs at least 2"):
            hierarchical_bootstrap([EpisodeSums(np.ones(shape), np.ones(shape[1]))])
    with pytest.raises(ValueError, match=r"parts of \[2, 3\] seeds"):
        hierarchical_bootstrap([EpisodeSums(np.ones((n, 4)), np.ones(4)) for n in (2, 3)])


def test_an_interaction_on_the_same_episodes_is_the_effect_of_the_differences():
    rng = np.random.default_rng(3)
    counts = rng.integers(5, 9, 20)
    arms = [EpisodeSums(rng.normal(size=(6, 20)), counts) for _ in range(4)]
    one, other = (EpisodeSums(a.sums - b.sums, counts) for a, b in (arms[:2], arms[2:]))
    found = difference_of_differences((arms[0], arms[1]), (arms[2], arms[3]), same_episodes=True)
    assert found == paired_effect(one, other)


@pytest.mark.parametrize("same_episodes", [True, False])
def test_the_interval_of_an_interaction_covers_its_truth(same_episodes):
    rng = np.random.default_rng(4)
    hits = 0
    for number in range(400):
        # What differs by seed under both conditions alike cancels; by episode, only on the same episodes.
        zero = EpisodeSums(np.zeros((8, 25)), np.full(25, 10))
        seeds, episodes = 5 * rng.normal(size=(8, 1)), 2 * rng.normal(size=(2, 25))
        effects = [
            2.0 * (condition == 0) + seeds + episodes[0 if same_episodes else condition] + rng.normal(size=(8, 25))
            + rng.normal(size=(8, 1))
            for condition in range(2)
        ]  # fmt: skip
        first, second = ((EpisodeSums(10 * effect, zero.counts), zero) for effect in effects)
        low, high = difference_of_differences(first, second, same_episodes, draws=1000, seed=number).ci95
        hits += low <= 2.0 <= high
        assert high - low < 6.0, "the seeds' common part, of spread 5, is gone"
    assert 0.92 <= hits / 400 <= 0.98


@settings(max_examples=60)
@given(FEW_NUMBERS)
def test_the_sign_flip_test_counts_every_flip(values):
    sums = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in product((1, -1), repeat=len(values))
    ]
    assert sign_flip_p(np.array(values)) == pytest.approx(np.mean([s >= abs(sum(values)) for s in sums]))


def test_sign_flips_that_tie_on_paper_tie_in_floating_point():
    values = np.array([0.1, 0.2, 0.3, -0.3, 0.7])
    assert sign_flip_p(values) == sign_flip_p(np.round(10 * values))


def test_the_sign_flip_test_is_that_of_scipy():
    values = np.random.default_rng(5).normal(0.4, 1.0, 11)
    theirs = permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_p(values) == pytest.approx(theirs.pvalue)


def test_many_pairs_are_sampled_near_the_exact_p_and_never_reach_zero():
    values = np.random.default_rng(6).normal(0.35, 1.0, 17)
    signs = np.array(list(product((1.0, -1.0), repeat=17)))
    exact = np.mean(np.abs(signs @ values) >= abs(values.sum()) - 1e-12)
    assert sign_flip_p(values) == pytest.approx(exact, abs=0.004)
    assert sign_flip_p(np.ones(40), draws=25_000) == 1 / 25_001
    assert sign_flip_p(values, seed=1) == sign_flip_p(values, seed=1)


@pytest.mark.parametrize("n", [4, 10, 25])
def test_wilcoxon_without_ties_is_that_of_scipy(n):
    values = np.random.default_rng(n).normal(0.3, 1.0, n)
    assert wilcoxon_p(values) == pytest.approx(wilcoxon(values, method="exact").pvalue)


@settings(max_examples=60)
@given(FEW_NUMBERS)
@example([0.0, 3.0, -2.0, 4.0, 7.0, 1.0, -5.0, -6.0])
def test_wilcoxon_with_ties_and_zeros_counts_every_flip_of_the_midranks(values):
    ranks = np.sign(values) * rankdata(np.abs(values))
    flips = np.array(list(product((1, -1), repeat=len(values)))) @ ranks
    assert wilcoxon_p(np.array(values)) == pytest.approx(np.mean(np.abs(flips) >= abs(ranks.sum())))


def test_wilcoxon_of_nothing_but_zeros_finds_nothing():
    assert wilcoxon_p(np.zeros(6)) == 1.0


@pytest.mark.parametrize(
    ("given_p", "expected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.001, 0.02, 0.021, 0.5], [0.004, 0.06, 0.06, 0.5]),
        ([0.9, 0.6], [1.0, 1.0]),
        ([0.04], [0.04]),
        ([], []),
    ],
)
def test_holm_on_worked_examples_in_every_order(given_p, expected):
    for order in permutations(range(len(given_p))):
        assert holm([given_p[i] for i in order]) == pytest.approx([expected[i] for i in order])


@settings(max_examples=60)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_that_of_statsmodels(p_values):
    assert holm(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1]), abs=1e-12)


@pytest.mark.parametrize("pairs", [1, 2, 5, 6, 10])
def test_the_smallest_p_is_that_of_differences_of_one_sign(pairs):
    one_sign = np.arange(1.0, pairs + 1)
    assert smallest_p(pairs) == pytest.approx(sign_flip_p(one_sign)) == pytest.approx(wilcoxon_p(one_sign))


def test_five_seeds_cannot_reach_the_usual_level_and_six_can():
    assert smallest_p(5) > 0.05 > smallest_p(6)
