"""Critics that score every latent against every action, and the bits that they prove.

Given n pairs, van den Oord (2018) bounds I(Z; A) from below by the mean of log f(z_i, a_i) - log mean_k f(z_k, a_i),
with any positive f that has not seen the pairs. Where f is a conditional density p(a | z), the second term is the
density of actions *under the same model*: the base can never be worse than the conditional, which is what makes other
estimates too large.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int
from scipy.optimize import minimize

NEGATIVES = 1024
"""Pairs that are scored against each other; a bound cannot exceed its log2."""
FLOOR = 1e-6
"""Variance added to covariances, targets having about 1."""
DOUBT = 0.01
"""Share of an even chance of all latents in what a critic says: no action can cost more than its -log2, 6.6 bits.

Where a code is rare, a normal density of what it means is surely wrong for some actions, by hundreds of bits. A mixture
of chances is one too, so the bound stays one; it costs 0.014 bits.
"""


class Critic(NamedTuple):
    """Log f(z_k, a_i) as `actions[i] @ latents[k] + offsets[k]`."""

    actions: Float[np.ndarray, "samples dims"]
    latents: Float[np.ndarray, "samples dims"]
    offsets: Float[np.ndarray, " samples"]

    def scores(self, rows: Int[np.ndarray, " rows"]) -> Float32[np.ndarray, "rows rows"]:
        """Of each action (row) with each latent (column)."""
        return (self.actions[rows] @ self.latents[rows].T + self.offsets[rows]).astype(np.float32)


def normal_critic(
    targets: Float[np.ndarray, "samples dims"],
    means: Float[np.ndarray, "samples dims"],
    covariance: Float[np.ndarray, "dims dims"],
) -> Critic:
    """Log density of targets around the means that the latents predict, up to what does not depend on the latent."""
    root = np.linalg.cholesky(covariance + FLOOR * np.eye(len(covariance)))
    white = np.linalg.solve(root, means.T).T
    return Critic(np.linalg.solve(root, targets.T).T, white, -0.5 * np.sum(white**2, axis=1))


def contrastive_bits(scores: Float32[np.ndarray, "rows rows"]) -> Float[np.ndarray, " rows"]:
    """Bits by which each action points at its own latent rather than at any of the block."""
    highest = scores.max(axis=1)
    total = np.exp(scores - highest[:, None]).mean(axis=1, dtype=np.float64)
    return np.log2((1 - DOUBT) * np.exp(np.diag(scores) - highest) / total + DOUBT)


def expected_bits(scores: Float32[np.ndarray, "rows rows"]) -> Float[np.ndarray, " rows"]:
    """The mean of `contrastive_bits` over the latents that each action could have had, were the critic exact.

    It varies less than the realised bits, and proves nothing alone: a critic that is too sure expects too much.
    """
    chances = np.exp(scores - scores.max(axis=1, keepdims=True))
    chances *= (1 - DOUBT) * len(scores) / chances.sum(axis=1, keepdims=True)
    chances += DOUBT
    return np.mean(chances * np.log2(chances), axis=1, dtype=np.float64)


def blocks_of(
    rows: Int[np.ndarray, " rows"], rng: np.random.Generator, size: int = NEGATIVES
) -> list[Int[np.ndarray, " block"]]:
    """Rows in random order, cut into about equal blocks of about `size`."""
    return np.array_split(rng.permutation(rows), max(1, round(len(rows) / size)))


def best_weights(
    blocks: Sequence[Float32[np.ndarray, "critics _ _"]], start: Sequence[float]
) -> Float[np.ndarray, " critics"]:
    """Weights of critics, 0 to 1.5 each, whose weighted sum proves most bits."""

    def negative(weights: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope, samples = 0.0, np.zeros(len(weights)), 0
        for block in blocks:
            scores = weighted(weights, block)
            bits = contrastive_bits(scores)
            value += float(bits.sum()) * np.log(2)
            # Of the critic's own chance in the mixture: where doubt explains a pair, the critic is not asked.
            own = (1 - DOUBT * 2.0**-bits).astype(np.float32)[:, None]
            posterior = np.exp(scores - scores.max(axis=1, keepdims=True))
            posterior *= own / posterior.sum(axis=1, keepdims=True)
            slope += [np.vdot(own[:, 0], np.diag(critic)) - np.vdot(posterior, critic) for critic in block]
            samples += len(scores)
        return -value / samples, -slope / samples

    bounds = [(0.0, 1.5)] * len(start)
    found = minimize(negative, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 25})
    return found.x


def weighted(
    weights: Float[np.ndarray, " critics"], scores: Float32[np.ndarray, "critics rows rows"]
) -> Float32[np.ndarray, "rows rows"]:
    """Weighted sum of the scores of several critics."""
    return np.tensordot(weights.astype(np.float32), scores, axes=1)
