"""Estimators from distances to nearest neighbours; they fit nothing, so `folds` plays no part."""

import numpy as np
from jaxtyping import Float
from scipy.spatial import KDTree
from scipy.special import digamma

from lam.audit.estimators.interface import (
    Estimate,
    Sample,
    codes_of,
    dense,
    latents_of,
    of_contributions,
    standardised,
)
from lam.audit.probes import rank_gaussianise

NEIGHBOURS = 3


def ksg(sample: Sample, folds: int = 5, seed: int = 0) -> Estimate:
    """Kraskov, Stögbauer & Grassberger, algorithm 1, between continuous latents and actions.

    Bounds: nothing; consistent for densities. Takes: continuous latents without ties, and refuses others: on codebook
    vectors ties and scale decide what it reports. Both sides have their ranks made normal, dimension by dimension.
    Bias: downward in many dimensions and for strong dependence, severely so above about 4 bits or 6 dimensions; upward,
    by up to 0.1 bits at 1,200 samples of latents that are about something else (docs/calibration.md).
    Cost: 1 s at 4,000 samples and 7 + 7 dimensions, growing with the square.
    Source: Kraskov et al. (2004, eq. 8).

    Raises:
        ValueError: no latents, or latents with ties.
    """
    latents = latents_of(sample, "ksg")
    distinct = len(np.unique(latents, axis=0))
    if distinct < 0.9 * len(latents):
        raise ValueError(
            f"ksg takes continuous latents, and only {distinct} of these {len(latents)} differ: they are codebook "
            "vectors; use an estimator of codes"
        )
    return ksg_between(_normal(latents, seed), _normal(sample.actions, seed))


def ksg_between(
    first: Float[np.ndarray, "samples first"], second: Float[np.ndarray, "samples second"], neighbours: int = NEIGHBOURS
) -> Estimate:
    """KSG in the coordinates as they are, distances by the largest difference."""
    joint = np.concatenate([first, second], axis=1)
    radii = KDTree(joint).query(joint, neighbours + 1, p=np.inf)[0][:, -1]
    counts = [_within(values, np.nextafter(radii, 0)) for values in (first, second)]
    nats = digamma(neighbours) + digamma(len(first)) - sum(digamma(np.maximum(count, 1)) for count in counts)
    return of_contributions(nats / np.log(2))


def gao(sample: Sample, folds: int = 5, seed: int = 0) -> Estimate:
    """Gao, Kannan, Oh & Viswanath: nearest neighbours for mixtures of discrete and continuous.

    Bounds: nothing; consistent for any mixture. Takes: latents or codebook vectors, with or without ties; their
    distances matter. Bias: downward, 0.2 bits in few dimensions at 1,200 samples; far below zero where most samples
    have a vector of their own.
    Cost: as `ksg`. Source: Gao et al. (2017, algorithm 1).

    Raises:
        ValueError: no latents.
    """
    latents, actions = standardised(latents_of(sample, "gao")), _normal(sample.actions, seed)
    joint = np.concatenate([latents, actions], axis=1)
    tree = KDTree(joint)
    radii = tree.query(joint, NEIGHBOURS + 1, p=np.inf)[0][:, -1]
    neighbours = np.where(radii == 0, _within(joint, radii) - 1, NEIGHBOURS)
    counts = [_within(values, radii) for values in (latents, actions)]
    nats = digamma(neighbours) + np.log(len(actions)) - sum(np.log(count) for count in counts)
    return of_contributions(nats / np.log(2))


def ross(sample: Sample, folds: int = 5, seed: int = 0) -> Estimate:
    """Ross: nearest neighbours of the action among samples with the same joint code, against among all.

    Bounds: nothing. Takes: codes. Samples whose joint code is unique have no neighbour and count as zero bits.
    Bias: severely downward with several tokens (nearly all joint codes are unique); slight for one token.
    Cost: 1 s at 4,000 samples.
    Source: Ross (2014, eq. 6).

    Raises:
        ValueError: no codes.
    """
    labels, actions = dense(codes_of(sample, "ross")), _normal(sample.actions, seed)
    counts = np.bincount(labels)[labels]
    radii, neighbours = np.zeros(len(labels)), np.ones(len(labels))
    for label in np.unique(labels[counts > 1]):
        own = np.flatnonzero(labels == label)
        nearest = min(NEIGHBOURS, len(own) - 1)
        radii[own] = KDTree(actions[own]).query(actions[own], nearest + 1, p=np.inf)[0][:, -1]
        neighbours[own] = nearest
    within = _within(actions, np.nextafter(radii, 0))
    nats = digamma(len(labels)) + digamma(neighbours) - digamma(counts) - digamma(np.maximum(within, 1))
    return of_contributions(np.where(counts > 1, nats, 0.0) / np.log(2))


def _within(values: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Samples within a radius of each, itself included."""
    return KDTree(values).query_ball_point(values, radii, p=np.inf, return_length=True)


def _normal(values: np.ndarray, seed: int) -> np.ndarray:
    return rank_gaussianise(standardised(values), np.random.default_rng(seed))
