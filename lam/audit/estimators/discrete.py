"""Entropies of counts, for codes against actions that are discrete too; they fit nothing, so `folds` plays no part."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int
from scipy.special import digamma, gammaln, polygamma

from lam.audit.estimators.interface import Estimate, Sample, codes_of, dense

SAMPLES_PER_ACTION = 5
"""Fewer samples for each distinct action than this, and actions are not discrete enough to count."""


def plug_in(sample: Sample, folds: int = 5, seed: int = 0) -> Estimate:
    """H(Z) + H(A) - H(Z, A) of the observed frequencies.

    Bounds: nothing. Takes: codes and discrete actions. Cost: nothing.
    Bias: upward by about (cells of the joint table) / (2 n ln 2) bits: reports bits where there are none.
    Source: maximum likelihood; the bias, Miller (1955).

    Raises:
        ValueError: no codes, or actions that are not discrete.
    """
    return _information(sample, plug_in_entropy, "plug_in")


def miller_madow(sample: Sample, folds: int = 5, seed: int = 0) -> Estimate:
    """The same with Miller's correction of each entropy.

    Bounds: nothing. Takes, cost: as `plug_in`. Bias: of second order in cells / n; wrong where most cells are empty.
    Source: Miller (1955).

    Raises:
        ValueError: no codes, or actions that are not discrete.
    """
    return _information(sample, miller_madow_entropy, "miller_madow")


def nsb(sample: Sample, folds: int = 5, seed: int = 0) -> Estimate:
    """The same with the Bayesian entropies of Nemenman, Shafee & Bialek.

    Bounds: nothing. Takes: as `plug_in`. Cost: nothing.
    Bias: the least of the three where cells are undersampled; small of either sign.
    Source: Nemenman et al. (2002, eq. 9), by quadrature over the prior entropy.

    Raises:
        ValueError: no codes, or actions that are not discrete.
    """
    return _information(sample, nsb_entropy, "nsb")


def plug_in_entropy(counts: Int[np.ndarray, " cells"], cells: int) -> float:
    """Bits of the observed frequencies."""
    frequencies = counts / counts.sum()
    return float(-np.sum(frequencies * np.log2(frequencies)))


def miller_madow_entropy(counts: Int[np.ndarray, " cells"], cells: int) -> float:
    """Bits, corrected for the number of cells seen."""
    return plug_in_entropy(counts, cells) + (len(counts) - 1) / (2 * counts.sum() * np.log(2))


def nsb_entropy(counts: Int[np.ndarray, " cells"], cells: int) -> float:
    """Bits, averaged over Dirichlet priors that make all entropies equally likely; `cells` counts empty ones too."""
    if cells == 1:
        return 0.0
    beta = np.logspace(-9, 3, 2000)
    total, empty = counts.sum(), cells - len(counts)
    sizes, times = np.unique(counts, return_counts=True)
    evidence = gammaln(cells * beta) - gammaln(total + cells * beta)
    evidence += sum(many * (gammaln(size + beta) - gammaln(beta)) for size, many in zip(sizes, times, strict=True))
    prior = cells * polygamma(1, cells * beta + 1) - polygamma(1, beta + 1)
    weights = np.exp(evidence - evidence.max()) * prior * beta
    share = 1 / (total + cells * beta)
    mean = digamma(total + cells * beta + 1) - empty * beta * share * digamma(beta + 1)
    mean -= sum(
        many * (size + beta) * share * digamma(size + beta + 1) for size, many in zip(sizes, times, strict=True)
    )
    return float(np.sum(weights * mean) / np.sum(weights) / np.log(2))


def _information(sample: Sample, entropy: Callable[[np.ndarray, int], float], estimator: str) -> Estimate:
    codes, actions = dense(codes_of(sample, estimator)), dense(sample.actions)
    n, distinct = len(codes), int(actions.max()) + 1
    if distinct * SAMPLES_PER_ACTION > n:
        raise ValueError(
            f"{estimator} takes discrete actions, and these have {distinct} values in {n} samples; "
            "use an estimator of continuous actions"
        )
    sides = [np.bincount(labels) for labels in (codes, actions)]
    joint = np.unique(codes * distinct + actions, return_counts=True)[1]
    separate = sum(entropy(side, len(side)) for side in sides)
    return Estimate(separate - entropy(joint, len(sides[0]) * len(sides[1])), None, n)
