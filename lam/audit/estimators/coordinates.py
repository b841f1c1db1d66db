"""Coordinates in which densities of actions are simple: whitened, rank-Gaussianised, independent components.

A contrastive bound holds in any of them, so that nothing here can make an estimate exceed the truth.
"""

import numpy as np
from jaxtyping import Float

from lam.audit.estimators.interface import standardised
from lam.audit.probes import rank_gaussianise

COMPONENTS_FROM = 5000
"""Samples that the independent components are found on."""


def coordinates_of(
    actions: Float[np.ndarray, "samples dims"], rng: np.random.Generator
) -> dict[str, Float[np.ndarray, "samples _"]]:
    """White coordinates of the actions by name; the dimensions that never vary are left out.

    affine: as they are. ranked: each dimension made normal, which undoes heavy tails and clipping. independent: the
    same along independent components, which undoes heavy tails that were mixed by a rotation. Ties are broken at random
    where ranks are taken: with tied values a density could promise unlimited bits about a gripper.
    """
    affine = whitened(actions)
    found = {"ranked": whitened(rank_gaussianise(actions[:, np.ptp(actions, axis=0) > 0], rng)), "affine": affine}
    if affine.shape[1] > 1:
        found["independent"] = whitened(rank_gaussianise(independent_components(affine, rng), rng))
    return found


def whitened(values: Float[np.ndarray, "samples dims"]) -> Float[np.ndarray, "samples kept"]:
    """Uncorrelated columns of variance 1 with the same span; directions of mere rounding error are dropped."""
    smallest = 1e3 * np.finfo(values.dtype).eps
    left, scales, _ = np.linalg.svd(standardised(values), full_matrices=False)
    return left[:, scales > smallest * scales[0]] * np.sqrt(len(values))


def independent_components(
    white: Float[np.ndarray, "samples dims"], rng: np.random.Generator, iterations: int = 60
) -> Float[np.ndarray, "samples dims"]:
    """White data rotated to its independent components: FastICA with the tanh contrast (Hyvärinen 1999, eq. 20)."""
    data = np.clip(white[rng.permutation(len(white))[:COMPONENTS_FROM]], -20, 20)
    rotation = np.linalg.qr(rng.standard_normal((data.shape[1], data.shape[1])))[0]
    for _ in range(iterations):
        squashed = np.tanh(data @ rotation.T)
        step = squashed.T @ data / len(data) - np.mean(1 - squashed**2, axis=0)[:, None] * rotation
        left, _, right = np.linalg.svd(step)
        before, rotation = rotation, left @ right
        if np.abs(np.abs(np.sum(before * rotation, axis=1)) - 1).max() < 1e-6:
            break
    return white @ rotation.T


def with_squares(white: Float[np.ndarray, "samples dims"]) -> Float[np.ndarray, "samples features"]:
    """White coordinates with their squares and, up to 10 dimensions, their products: what spread and sign encode."""
    inner = np.clip(white, -4.0, 4.0)
    first, second = np.triu_indices(white.shape[1]) if white.shape[1] <= 10 else 2 * (np.arange(white.shape[1]),)
    products = inner[:, first] * inner[:, second]
    return np.concatenate([inner, standardised(products)], axis=1)
