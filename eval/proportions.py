"""Success rates: intervals of one and of the difference of two, tests, and how many episodes it takes to see one."""

import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, norm

MOST_EPISODES = 10_000_000
POWER = 0.8
"""Chance to find the difference that an evaluation is planned for."""


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion; everything from 0 to 1 when nothing was tried."""
    if n == 0:
        return Interval(0.0, 1.0)
    interval = binomtest(successes, n).proportion_ci(confidence_level=level, method="wilson")
    return Interval(float(interval.low), float(interval.high))


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value that the seeds solved by one arm alone are equally many for both."""
    discordant = only_first + only_second
    return float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0


def paired_interval(only_first: int, only_second: int, pairs: int, level: float = 0.95) -> Interval:
    """Tango's score interval of the difference of two paired proportions, first minus second.

    Everything from -1 to 1 where nothing was paired. Pairs that both or neither solve enter through their number only.
    Source: Tango (1998), Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design, Statistics in Medicine 17, 891-908; recommended by Fagerland, Lydersen & Laake (2014).
    """
    if pairs == 0:
        return Interval(-1.0, 1.0)
    z = float(norm.ppf((1 + level) / 2))
    seen = (only_first - only_second) / pairs

    def excess(difference: float, side: float) -> float:
        return _score(difference, only_first, only_second, pairs) - side * z

    edge = 1 - 1e-12
    low = -1.0 if only_second == pairs else float(brentq(excess, -edge, seen, args=(1,)))
    high = 1.0 if only_first == pairs else float(brentq(excess, seen, edge, args=(-1,)))
    return Interval(low, high)


def _score(difference: float, only_first: int, only_second: int, pairs: int) -> float:
    """Tango's statistic: how many standard errors the counts lie above what `difference` makes expect."""
    distance = only_first - only_second - pairs * difference
    if distance == 0:
        return 0.0
    # The chance of "only second" that makes the counts likeliest under this difference, a root of a quadratic.
    b = (2 * pairs - only_first + only_second) * difference - only_first - only_second
    c = -only_second * difference * (1 - difference)
    chance = (math.sqrt(max(b * b - 8 * pairs * c, 0.0)) - b) / (4 * pairs)
    return distance / math.sqrt(pairs * (2 * chance + difference * (1 - difference)))


def mcnemar_power(pairs: int, difference: float, discordance: float, level: float = 0.05) -> float:
    """Chance that the exact two-sided McNemar test on so many pairs gives p <= level.

    Args:
        pairs: episodes that both policies are tried on.
        difference: true difference of success rates, first minus second.
        discordance: true share of episodes that one of the two solves alone, at least |difference|.
        level: of the test.
    """
    low, high = binom.ppf([1e-12, 1 - 1e-12], pairs, discordance)
    counts = np.arange(int(low), int(high) + 1)
    critical = binom.ppf(level / 2, counts, 0.5)
    critical -= binom.cdf(critical, counts, 0.5) > level / 2
    chance = (discordance + difference) / (2 * discordance)
    rejected = binom.cdf(critical, counts, chance) + binom.sf(counts - critical - 1, counts, chance)
    return float(np.sum(binom.pmf(counts, pairs, discordance) * rejected))


def paired_episodes(difference: float, discordance: float, power: float = POWER, level: float = 0.05) -> int:
    """Episodes that both policies must be tried on to see a difference: with them McNemar's test has the power.

    With one episode less it has not.

    Raises:
        ValueError: the difference is 0 or not a share, or fewer episodes are discordant than it takes.
    """
    _check(difference)
    if not abs(difference) <= discordance <= 1:
        raise ValueError(
            f"a difference of {difference:g} with a discordance of {discordance:g}: at least {abs(difference):g} of "
            f"the episodes are solved by one policy alone, at most 1"
        )
    enough = 1
    while mcnemar_power(enough, difference, discordance, level) < power:
        if enough > MOST_EPISODES:
            raise ValueError(f"a difference of {difference:g} needs more than {MOST_EPISODES} episodes; ask for more")
        enough *= 2
    too_few = enough // 2
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        if mcnemar_power(middle, difference, discordance, level) < power:
            too_few = middle
        else:
            enough = middle
    return enough


def unpaired_episodes(difference: float, mean_success: float, power: float = POWER, level: float = 0.05) -> int:
    """Episodes of each policy to see a difference on other initial states for each: two-sided test of two proportions.

    Args:
        difference: of the success rates.
        mean_success: middle of the two rates; moved where one of them would leave 0 to 1.
        power: chance to find the difference.
        level: of the test.

    Raises:
        ValueError: the difference is 0 or not a share.

    Source: Fleiss, Levin & Paik (2003), Statistical methods for rates and proportions, section 4.2, uncorrected.
    """
    _check(difference)
    half = abs(difference) / 2
    middle = min(max(mean_success, half), 1 - half)
    low, high = middle - half, middle + half
    spread = math.sqrt(low * (1 - low) + high * (1 - high))
    needed = norm.ppf(1 - level / 2) * math.sqrt(2 * middle * (1 - middle)) + norm.ppf(power) * spread
    return math.ceil(float(needed / difference) ** 2)


def _check(difference: float) -> None:
    if not 0 < abs(difference) <= 1:
        raise ValueError(f"a difference of success rates of {difference:g}; give a share above 0 and up to 1, as 0.1")
