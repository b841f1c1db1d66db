"""Bits that latents tell about actions: a cross-fitted Gaussian bound that says zero where there is nothing.

Barber & Agakov (2003) bound I(Z; A) from below with any conditional density. Here it is a Gaussian whose mean is linear
in the latents (codes as indicator columns), fitted on other episodes than those it is scored on. Nearest-neighbour and
in-sample neural estimators report bits on independent codes or miss them on dependent ones.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lam.audit.estimators.discrete import miller_madow_entropy
from lam.audit.probes import (
    RIDGES,
    CrossFit,
    CrossFittedRidge,
    bootstrap_by_episode,
    episode_folds,
    rank_gaussianise,
    ratio,
)

NOISE_FLOOR = 1e-4
"""Variance added to every covariance, actions having 1: directions in which they never vary then count for nothing.

Shrinking each covariance to its own diagonal would not do: two copies of one dimension would be worth twice its bits.
"""


class MIResult(NamedTuple):
    """An estimate with what is needed to judge it."""

    bits: float
    """Held-out estimate; not clipped, so about zero means on either side of it."""
    ci95: tuple[float, float]
    """Interval of `bits`, episodes resampled, the fitted densities kept."""
    null_mean: float
    """Mean of the same estimate on shuffled actions: the bias."""
    null_p95: float
    """95th percentile on shuffled actions: what chance reaches."""
    permutations: int
    """Shuffles behind the null."""
    entropy_bits: float | None
    """Joint entropy of the codes (Miller-Madow), a ceiling; None for continuous latents, which have none."""
    n: int
    """Samples."""
    episodes: int
    """Episodes, the independent units."""


def linear_gaussian_bits(
    latents: Float[np.ndarray, "samples features"],
    actions: Float[np.ndarray, "samples dims"],
    episodes: Int[np.ndarray, " samples"],
    folds: int = 5,
    permutations: int = 50,
    ridges: Sequence[float] = RIDGES,
    seed: int = 0,
) -> MIResult:
    """Bits about the actions in one-hot codes or continuous latents.

    Actions are rank-Gaussianised here, ties broken at random: with tied values a density could promise unlimited bits
    about a gripper that is open or closed. The estimate is a lower bound where the Gaussianised dimensions are jointly
    normal; where only each alone is, it can exceed the truth by at most their joint's divergence from a normal one.

    Raises:
        ValueError: too few episodes, or actions that never change.
    """
    varies = np.ptp(actions, axis=0) > 0
    if not varies.any():
        raise ValueError(f"all {actions.shape[1]} action dimensions are constant; they carry no information")
    rng = np.random.default_rng(seed)
    targets = rank_gaussianise(actions[:, varies], rng)
    fold_of = episode_folds(episodes, folds, seed)
    probe = CrossFittedRidge(latents, fold_of, ridges)
    ratios = gaussian_log_ratios(probe.fit(targets), targets, fold_of)
    shuffles = [targets[shuffled_by_episode(episodes, rng)] for _ in range(permutations)]
    null = [float(gaussian_log_ratios(probe.fit(shuffle), shuffle, fold_of).mean()) for shuffle in shuffles]
    return MIResult(
        bits=float(ratios.mean()),
        ci95=bootstrap_by_episode(np.stack([ratios, np.ones(len(ratios))], axis=1), episodes, ratio, seed=seed),
        null_mean=float(np.mean(null)) if null else float("nan"),
        null_p95=float(np.percentile(null, 95)) if null else float("nan"),
        permutations=permutations,
        entropy_bits=code_entropy_bits(latents.astype(np.int64)) if np.isin(latents, (0.0, 1.0)).all() else None,
        n=len(actions),
        episodes=len(np.unique(episodes)),
    )


def log_ratio_bits(
    latents: Float[np.ndarray, "samples features"],
    actions: Float[np.ndarray, "samples dims"],
    episodes: Int[np.ndarray, " samples"],
    folds: int = 5,
    ridges: Sequence[float] = RIDGES,
    seed: int = 0,
) -> Float[np.ndarray, " samples"]:
    """What each sample adds to the bits of `linear_gaussian_bits`, of the same seed: their mean.

    Raises:
        ValueError: too few episodes, or actions that never change.
    """
    varies = np.ptp(actions, axis=0) > 0
    if not varies.any():
        raise ValueError(f"all {actions.shape[1]} action dimensions are constant; they carry no information")
    targets = rank_gaussianise(actions[:, varies], np.random.default_rng(seed))
    fold_of = episode_folds(episodes, folds, seed)
    return gaussian_log_ratios(CrossFittedRidge(latents, fold_of, ridges).fit(targets), targets, fold_of)


def shuffled_by_episode(episodes: Int[np.ndarray, " samples"], rng: np.random.Generator) -> Int[np.ndarray, " samples"]:
    """An order of the samples that breaks their tie to the latents but keeps each episode's run of actions together.

    Episodes come in random order, each rotated by a random amount, laid end to end over the latents of one episode
    after another. Runs stay whole because neighbouring actions resemble each other: shuffled singly they would make a
    null too narrow. Lengths may differ, as nothing is cut or repeated. The rotation matters where episodes are equally
    long: their order alone would pair the same instants again, and what latents and actions share through time (reach,
    then grasp) is information, not chance. What time alone explains is a question for conditional information.
    """
    _, index = np.unique(episodes, return_inverse=True)
    runs = [np.flatnonzero(index == name) for name in range(index.max() + 1)]
    laid = [np.roll(runs[name], rng.integers(len(runs[name]))) for name in rng.permutation(len(runs))]
    order = np.empty(len(index), dtype=np.int64)
    order[np.concatenate(runs)] = np.concatenate(laid)
    return order


def code_entropy_bits(codes: Int[np.ndarray, "samples tokens"]) -> float:
    """Joint entropy of the tokens: plug-in with the Miller-Madow correction, at most log2 of the samples."""
    counts = np.unique(codes, axis=0, return_counts=True)[1]
    return float(min(miller_madow_entropy(counts, len(counts)), np.log2(len(codes))))


def code_perplexity(codes: Int[np.ndarray, "samples tokens"], num_codes: int) -> Float[np.ndarray, " tokens"]:
    """Codes that each token uses effectively: 1 when it is constant, `num_codes` when all are equally frequent."""
    perplexities = []
    for token in codes.T:
        frequencies = np.bincount(token, minlength=num_codes) / len(token)
        used = frequencies[frequencies > 0]
        perplexities.append(2.0 ** -np.sum(used * np.log2(used)))
    return np.asarray(perplexities)


def gaussian_log_ratios(
    fit: CrossFit, targets: Float[np.ndarray, "samples dims"], fold_of: Int[np.ndarray, " samples"]
) -> Float[np.ndarray, " samples"]:
    """Bits by which each held-out action is likelier with its latent than without, both densities normal."""
    given = _log2_normal(targets - fit.predictions, fit.residual_covariances, fold_of)
    return given - _log2_normal(targets - fit.means[fold_of], fit.covariances, fold_of)


def _log2_normal(deviations: np.ndarray, covariances: np.ndarray, fold_of: np.ndarray) -> np.ndarray:
    """Log density up to a constant that cancels in the ratio."""
    result = np.empty(len(deviations))
    for fold, covariance in enumerate(covariances):
        rows = fold_of == fold
        floored = covariance + NOISE_FLOOR * np.eye(len(covariance))
        distances = np.sum(deviations[rows] * np.linalg.solve(floored, deviations[rows].T).T, axis=1)
        result[rows] = -0.5 * (distances + np.linalg.slogdet(floored)[1]) / np.log(2)
    return result
