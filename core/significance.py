"""Is one arm better than another? Intervals and tests of paired differences between runs that share seeds and episodes.

Every run of every arm is measured on the same held-out episodes, so seeds and episodes are *crossed*: an episode that
is hard is hard for all seeds. Each seed of one arm is paired with the same seed of the other, whose initial weights and
data order are equal. Two questions differ: the interval of `hierarchical_bootstrap` is for other seeds *and* other
episodes; the tests take the seeds' mean differences as they are, and so speak of other seeds on these episodes.
"""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Num
from scipy.stats import norm, rankdata, t, wilcoxon

LEVEL = 0.95
MOST_ENUMERATED = 16
"""Pairs up to which all sign flips are counted; more are sampled."""


class EpisodeSums(NamedTuple):
    """What an arm, or a difference of two arms, was measured to be: sums that divided by counts are the means."""

    sums: Float[np.ndarray, "seeds episodes"]
    """Sum over the samples of each episode, in the unit of the quantity."""
    counts: Num[np.ndarray, " episodes"]
    """Samples of each episode, the same ones for all seeds."""

    @property
    def by_seed(self) -> Float[np.ndarray, " seeds"]:
        """Mean over all samples, one a seed."""
        return self.sums.sum(axis=1) / self.counts.sum()


class PairedEffect(NamedTuple):
    """A paired difference with what is needed to judge it."""

    mean: float
    """Mean over seeds of the difference over all samples, in the unit of the quantity."""
    ci95: tuple[float, float]
    """Interval of `mean`, seeds and episodes resampled."""
    sd: float
    """Standard deviation over seeds (n - 1)."""
    seeds: int
    """Pairs."""
    episodes: int
    """Held-out episodes; of an interaction on two sets, of the smaller one."""
    p_wilcoxon: float
    """Two-sided, exact; rank-based."""
    p_permutation: float
    """Two-sided sign-flip test of the mean; exact up to 16 pairs."""
    positive: int
    """Seeds whose difference is above zero."""


def paired_effect(treatment: EpisodeSums, baseline: EpisodeSums, draws: int = 10_000, seed: int = 0) -> PairedEffect:
    """Treatment minus baseline; row `i` of both is the same seed, column `j` the same episode.

    Raises:
        ValueError: the two were not measured on the same samples, or there are fewer than two seeds or episodes.
    """
    return _effect([_difference(treatment, baseline)], draws, seed)


def difference_of_differences(
    first: tuple[EpisodeSums, EpisodeSums],
    second: tuple[EpisodeSums, EpisodeSums],
    same_episodes: bool,
    draws: int = 10_000,
    seed: int = 0,
) -> PairedEffect:
    """An interaction: (treatment minus baseline) under a first condition, minus the same under a second one.

    Args:
        first: treatment and baseline under the first condition.
        second: the same under the second condition, the rows the same seeds.
        same_episodes: whether the columns are the same episodes under both (rendered twice, say) and so resampled
            together; otherwise each condition's are resampled on their own.
        draws: resamples of the interval, and flips of a test that samples them.
        seed: of the resampling.

    Raises:
        ValueError: the four do not have the same seeds, or a pair not the same samples.
    """
    one, other = _difference(*first), _difference(*second)
    if same_episodes:
        return _effect([_difference(one, other)], draws, seed)
    return _effect([one, EpisodeSums(-other.sums, other.counts)], draws, seed)


def hierarchical_bootstrap(parts: Sequence[EpisodeSums], draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean over seeds and samples, seeds and episodes resampled with replacement.

    Of several parts it is the interval of the sum of their means: they share their seeds, not their episodes. Whole
    episodes are drawn, the same ones for every seed, because effects are crossed: other episodes for each seed, as for
    nested data, would average away what an episode does to all seeds (and cover 55 % where episodes differ much). The
    deviations by seed and by episode are drawn apart and added. What single pairs of seed and episode add is counted
    twice, on the safe side; drawn jointly it would count three times (Owen 2007, "The pigeonhole bootstrap"). As
    percentiles of few units are too narrow (86 % with five seeds), each deviation is stretched to a t quantile, in the
    spirit of the expanded percentiles of Hesterberg (2015, "What teachers should know about the bootstrap").

    Assumes seeds, and episodes, exchangeable draws from those one wants to speak of. Two or three seeds give a wide
    interval that rests on differences between seeds being about normal.

    Raises:
        ValueError: fewer than two seeds or episodes, or parts with different numbers of seeds.
    """
    seeds = {len(part.sums) for part in parts}
    if len(seeds) != 1:
        raise ValueError(f"parts of {sorted(seeds)} seeds cannot be paired; give the same seeds to all")
    rng = np.random.default_rng(seed)
    by_seed = np.sum([part.by_seed for part in parts], axis=0)
    result = by_seed.mean() + _stretch(len(by_seed), "seeds") * (
        _resamples(len(by_seed), draws, rng) @ by_seed / len(by_seed) - by_seed.mean()
    )
    for part in parts:
        weights = _resamples(len(part.counts), draws, rng)
        means = (weights @ part.sums.mean(axis=0)) / (weights @ part.counts)
        result += _stretch(len(part.counts), "episodes") * (means - part.by_seed.mean())
    low, high = np.percentile(result, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def sign_flip_p(differences: Float[np.ndarray, " pairs"], draws: int = 100_000, seed: int = 0) -> float:
    """Two-sided p of the mean difference, by flipping the signs of pairs (Fisher 1935).

    All 2^n flips up to n = 16 pairs, which is exact; of more, `draws` random ones with the observed one counted in
    (Phipson & Smyth 2010), so that p is never zero. Null hypothesis: each difference is as likely as its negative.
    """
    n = len(differences)
    if n <= MOST_ENUMERATED:
        signs = np.array(list(product((1.0, -1.0), repeat=n)))
        return float(_as_extreme(signs, differences).mean())
    rng = np.random.default_rng(seed)
    reached = sum(
        int(_as_extreme(rng.choice((1.0, -1.0), (len(part), n)), differences).sum())
        for part in np.array_split(np.arange(draws), -(-draws // 10_000))
    )
    return (1 + reached) / (1 + draws)


def wilcoxon_p(differences: Float[np.ndarray, " pairs"], draws: int = 100_000, seed: int = 0) -> float:
    """Two-sided exact p of the signed-rank test (Wilcoxon 1945).

    Its tables hold without ties and zeros only. With them, signs of the midranks are flipped instead, exactly up to 16
    pairs; zeros are ranked and then count for neither side (Pratt 1959). The null hypothesis is that of `sign_flip_p`.
    """
    sizes = np.abs(differences)
    if len(np.unique(sizes)) == len(sizes) and sizes.all():
        return float(wilcoxon(differences, method="exact").pvalue)
    return sign_flip_p(np.sign(differences) * rankdata(sizes), draws, seed)


def holm(p_values: Sequence[float]) -> list[float]:
    """Values of p adjusted for several questions, in the order given (step-down, Holm 1979).

    Rejecting where it is at most alpha keeps the chance of any false rejection under alpha, however the tests depend on
    each other.
    """
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values, dtype=np.float64)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(p) for p in adjusted]


def smallest_p(pairs: int) -> float:
    """Least p that a two-sided signed-rank or sign-flip test of so many pairs can give, all of one sign: 2 / 2^n."""
    return min(1.0, 2.0 ** (1 - pairs))


def _difference(treatment: EpisodeSums, baseline: EpisodeSums) -> EpisodeSums:
    if treatment.sums.shape != baseline.sums.shape or not np.array_equal(treatment.counts, baseline.counts):
        raise ValueError(
            f"(seeds, episodes) are {treatment.sums.shape} and {baseline.sums.shape}, or an episode's samples differ: "
            "a paired difference needs the same seeds, episodes and samples on both sides"
        )
    return EpisodeSums(treatment.sums - baseline.sums, treatment.counts)


def _effect(parts: list[EpisodeSums], draws: int, seed: int) -> PairedEffect:
    interval = hierarchical_bootstrap(parts, draws, seed)
    by_seed = np.sum([part.by_seed for part in parts], axis=0)
    return PairedEffect(
        mean=float(by_seed.mean()),
        ci95=interval,
        sd=float(by_seed.std(ddof=1)),
        seeds=len(by_seed),
        episodes=min(len(part.counts) for part in parts),
        p_wilcoxon=wilcoxon_p(by_seed, seed=seed),
        p_permutation=sign_flip_p(by_seed, seed=seed),
        positive=int((by_seed > 0).sum()),
    )


def _resamples(units: int, draws: int, rng: np.random.Generator) -> Num[np.ndarray, "draws units"]:
    """How often each unit was drawn."""
    return rng.multinomial(units, np.full(units, 1 / units), size=draws)


def _stretch(units: int, name: str) -> float:
    """What makes the normal quantile of a resampled mean the t quantile of its standard error."""
    if units < 2:
        raise ValueError(f"{units} {name}; an interval over {name} needs at least 2")
    tail = 0.5 * (1 + LEVEL)
    return float(np.sqrt(units / (units - 1)) * t.ppf(tail, units - 1) / norm.ppf(tail))


def _as_extreme(
    signs: Float[np.ndarray, "flips pairs"], differences: Float[np.ndarray, " pairs"]
) -> Bool[np.ndarray, " flips"]:
    # Sums that are equal on paper differ by rounding: they count as equal.
    tolerance = 1e-12 * np.abs(differences).sum()
    return np.abs(signs @ differences) >= abs(differences.sum()) - tolerance
