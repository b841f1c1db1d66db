"""Whether cameras agree on the code of a transition: equal codes, what chance alone gives, and how varied codes are."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

RESAMPLES = 1000


class Interval(NamedTuple):
    """A 95 % interval; NaN where there is none."""

    low: float
    high: float


class Agreement(NamedTuple):
    """How often two cameras give the same code to the same transition."""

    share: float
    share95: Interval
    """Bootstrap over episodes; transitions of one episode are not independent."""
    chance: float
    """Share of equal codes if both cameras kept their habits but ignored the transition."""
    kappa: float
    """Cohen's: 0 is chance, 1 is always equal; NaN where chance alone is always equal."""
    kappa95: Interval
    entropy_bits: tuple[float, float]
    """Of each camera's codes; agreement means little where it is near 0."""
    transitions: int
    episodes: int

    @property
    def is_above_chance(self) -> bool:
        """Whether the interval of kappa lies above 0."""
        return self.kappa95.low > 0


class CameraPair(NamedTuple):
    """The agreement of two cameras, token by token and on all tokens at once."""

    first: str
    second: str
    tokens: list[Agreement]
    all_tokens: Agreement


def agreement(
    first: Int[np.ndarray, " n"], second: Int[np.ndarray, " n"], episodes: Int[np.ndarray, " n"], seed: int = 0
) -> Agreement:
    """Of two cameras' codes for the same transitions."""
    values, joint = np.unique(np.concatenate([first, second]), return_inverse=True)
    codes = joint.reshape(2, -1)
    known, episode = np.unique(episodes, return_inverse=True)
    equal = np.bincount(episode, codes[0] == codes[1], len(known))
    counts = np.zeros((2, len(known), len(values)))
    for camera in range(2):
        np.add.at(counts[camera], (episode, codes[camera]), 1.0)
    everything = np.ones((1, len(known)))
    share, chance, kappa = (float(value[0]) for value in _agreement(everything, equal, counts))
    share95 = kappa95 = Interval(float("nan"), float("nan"))
    if len(known) > 1:
        rng = np.random.default_rng(seed)
        weights = rng.multinomial(len(known), np.full(len(known), 1 / len(known)), size=RESAMPLES).astype(float)
        shares, _, kappas = _agreement(weights, equal, counts)
        share95, kappa95 = _interval(shares), _interval(kappas)
    entropies = (entropy_bits(counts[0].sum(0)), entropy_bits(counts[1].sum(0)))
    return Agreement(share, share95, chance, kappa, kappa95, entropies, len(first), len(known))


def agreement_of_pairs(
    indices: Int[np.ndarray, "n tokens"],
    transitions: Int[np.ndarray, " n"],
    cameras: Int[np.ndarray, " n"],
    episodes: Int[np.ndarray, " n"],
    names: Sequence[str],
) -> Iterator[CameraPair]:
    """Every pair of cameras that saw some transition together."""
    tuples = np.unique(indices, axis=0, return_inverse=True)[1].reshape(-1)
    for a, b in combinations(range(len(names)), 2):
        rows = [np.flatnonzero(cameras == camera) for camera in (a, b)]
        _, left, right = np.intersect1d(transitions[rows[0]], transitions[rows[1]], return_indices=True)
        if not len(left):
            continue
        left, right = rows[0][left], rows[1][right]
        tokens = [agreement(column[left], column[right], episodes[left]) for column in indices.T]
        yield CameraPair(names[a], names[b], tokens, agreement(tuples[left], tuples[right], episodes[left]))


def entropy_bits(counts: Float[np.ndarray, " codes"] | Int[np.ndarray, " codes"]) -> float:
    """Bits a code carries by how often each is used."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def _agreement(
    weights: Float[np.ndarray, "draws episodes"],
    equal: Float[np.ndarray, " episodes"],
    counts: Float[np.ndarray, "2 episodes codes"],
) -> tuple[Float[np.ndarray, " draws"], Float[np.ndarray, " draws"], Float[np.ndarray, " draws"]]:
    """Share of equal codes, that by chance, and kappa, where each episode counts as often as its weight says."""
    used = [weights @ camera for camera in counts]
    n = used[0].sum(1)
    share = weights @ equal / n
    chance = (used[0] * used[1]).sum(1) / n**2
    room = 1 - chance
    kappa = np.divide(share - chance, room, out=np.full(len(n), np.nan), where=room > 1e-12)
    return share, chance, kappa


def _interval(values: Float[np.ndarray, " draws"]) -> Interval:
    known = values[np.isfinite(values)]
    if not len(known):
        return Interval(float("nan"), float("nan"))
    low, high = np.percentile(known, (2.5, 97.5))
    return Interval(float(low), float(high))
