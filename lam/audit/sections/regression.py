"""Regressions that are fitted on some samples and asked about others, and components of what is too wide for them."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lam.audit.estimators.networks import predicted
from lam.audit.probes import CrossFittedRidge, episode_folds

WIDEST = 8192
"""Numbers of a sample beyond which they are first added up in random groups with random signs."""
POWER_STEPS = 2


class Ridge(NamedTuple):
    """A fitted ridge regression."""

    centre: Float[np.ndarray, " features"]
    weights: Float[np.ndarray, "features dims"]
    offset: Float[np.ndarray, " dims"]

    def predict(self, inputs: Float[np.ndarray, "samples features"]) -> Float[np.ndarray, "samples dims"]:
        """Targets of further samples."""
        return (inputs - self.centre) @ self.weights + self.offset


def fit_ridge(
    inputs: Float[np.ndarray, "samples features"],
    targets: Float[np.ndarray, "samples dims"],
    groups: Int[np.ndarray, " samples"],
    seed: int = 0,
) -> Ridge:
    """A ridge regression, its strength by cross-validation over groups (over samples where there are fewer than three).

    Raises:
        ValueError: fewer than three samples.
    """
    groups = groups if len(np.unique(groups)) >= 3 else np.arange(len(groups))
    folds = episode_folds(groups, min(5, max(3, len(np.unique(groups)))), seed)
    chosen = np.exp(np.log(CrossFittedRidge(inputs, folds).fit(targets).ridges).mean(axis=0))
    centre, offset = inputs.mean(axis=0), targets.mean(axis=0)
    eigenvalues, vectors = np.linalg.eigh((inputs - centre).T @ (inputs - centre))
    eigenvalues = np.clip(eigenvalues, 0.0, None)
    cross = vectors.T @ ((inputs - centre).T @ (targets - offset))
    penalties = np.maximum(chosen * eigenvalues.mean(), np.finfo(np.float64).tiny)
    return Ridge(centre, vectors @ (cross / (eigenvalues[:, None] + penalties)), offset)


def network_predictions(
    inputs: Float[np.ndarray, "samples features"],
    targets: Float[np.ndarray, "samples dims"],
    folds: Int[np.ndarray, " samples"],
    seed: int = 0,
) -> Float[np.ndarray, "samples dims"]:
    """Each fold predicted by a small network that was fitted on the others, one of which says when to stop."""
    count = int(folds.max()) + 1
    out = np.empty(targets.shape)
    for fold in range(count):
        stop = (fold + 1) % count
        train = np.flatnonzero((folds != fold) & (folds != stop))
        means = predicted(inputs, targets, train, np.flatnonzero(folds == stop), seed + fold)
        out[folds == fold] = means[folds == fold]
    return out


class Components(NamedTuple):
    """Principal components, scaled alike."""

    mean: Float[np.ndarray, " wide"]
    axes: Float[np.ndarray, "wide components"]

    def of(self, values: Float[np.ndarray, "samples wide"]) -> Float[np.ndarray, "samples components"]:
        """Coordinates of samples."""
        return ((values - self.mean) @ self.axes).astype(np.float64)


def components_of(values: Float[np.ndarray, "samples wide"], most: int, seed: int = 0) -> Components:
    """At most `most` principal components, found by random projections (Halko et al. 2011)."""
    rng = np.random.default_rng(seed)
    mean = values.mean(axis=0)
    centred = values - mean
    number = min(most, *centred.shape)
    extra = min(number + 10, *centred.shape)
    found = centred @ rng.normal(size=(centred.shape[1], extra)).astype(values.dtype)
    for _ in range(POWER_STEPS):
        found = centred @ (centred.T @ np.linalg.qr(found)[0])
    basis = np.linalg.qr(found)[0]
    _, scales, axes = np.linalg.svd(basis.T @ centred, full_matrices=False)
    scale = max(float(scales[0]), 1e-12) / np.sqrt(len(values))
    return Components(mean, axes[:number].T / scale)


def narrowed(values: Float[np.ndarray, "samples wide"], seed: int = 0) -> Float[np.ndarray, "samples narrow"]:
    """At most `WIDEST` numbers that keep distances about as they were: a count sketch (Charikar et al. 2002)."""
    wide = values.shape[1]
    if wide <= WIDEST:
        return values
    rng = np.random.default_rng(seed)
    groups = -(-wide // WIDEST)
    padded = np.zeros((len(values), groups * WIDEST), values.dtype)
    padded[:, :wide] = values[:, rng.permutation(wide)] * rng.choice(np.array([-1, 1], values.dtype), wide)
    return padded.reshape(len(values), groups, WIDEST).sum(axis=1)
