"""Linear probes: how well actions follow from latents, always on episodes that the probe has not seen.

Everything is cross-fitted by episode: neighbouring frames are near copies, so folds of random frames would report
memory as prediction. The ridge is chosen inside the training folds. Sums of products are taken once a fold, so that
each probe of a permutation null on the same inputs costs little more than `inputs.T @ actions`.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from einops import rearrange, repeat
from jaxtyping import Float, Int
from scipy.special import ndtri
from scipy.stats import rankdata

RIDGES = tuple(float(ridge) for ridge in np.logspace(-4, 4, 9))
"""Ridges tried, in units of the mean eigenvalue of the training folds' scatter: the scale of inputs plays no part."""


class ProbeResult(NamedTuple):
    """What a linear probe reads out of latents."""

    nmse: float
    """Mean over varying dimensions of squared error / squared deviation from the training folds' mean; 1 is chance."""
    ci95: tuple[float, float]
    """Interval of `nmse`, episodes resampled, the fitted probes kept."""
    nmse_by_dim: Float[np.ndarray, " dims"]
    """The same by dimension; NaN where the action is constant."""
    predictions: Float[np.ndarray, "samples dims"]
    """Cross-fitted, in the units of the actions."""
    constant_dims: tuple[int, ...]
    """Dimensions left out of `nmse` because every sample has the same value."""
    n: int
    """Samples."""


class CrossFit(NamedTuple):
    """Targets predicted for each fold by a ridge regression that saw only the other folds."""

    predictions: Float[np.ndarray, "samples dims"]
    """Held-out predictions."""
    means: Float[np.ndarray, "folds dims"]
    """Mean target of the training folds, the prediction without inputs."""
    covariances: Float[np.ndarray, "folds dims dims"]
    """Covariance of the targets in the training folds."""
    residual_covariances: Float[np.ndarray, "folds dims dims"]
    """Mean outer product of errors in the training folds, each predicted from the others: in-sample ones flatter."""
    ridges: Float[np.ndarray, "folds dims"]
    """Chosen ridge, in units of the mean eigenvalue."""


class _Basis(NamedTuple):
    mean: np.ndarray
    eigenvalues: np.ndarray
    vectors: np.ndarray


class CrossFittedRidge:
    """Ridge regressions from fixed inputs to any targets, one for each held-out fold; the ridge by nested folds."""

    def __init__(
        self,
        inputs: Float[np.ndarray, "samples features"],
        folds: Int[np.ndarray, " samples"],
        ridges: Sequence[float] = RIDGES,
    ) -> None:
        """Decompose the scatter of the inputs without each fold and each pair of folds, once for all targets."""
        self.folds = folds
        self.num_folds = int(folds.max()) + 1
        if self.num_folds < 3:
            raise ValueError(f"{self.num_folds} folds; choosing the ridge inside the training folds needs at least 3")
        self._inputs = inputs - inputs.mean(axis=0, dtype=np.float64)
        self._ridges = np.asarray(ridges, dtype=np.float64)
        self._rows = [np.flatnonzero(folds == fold) for fold in range(self.num_folds)]
        self._scatter = [self._inputs[rows].T @ self._inputs[rows] for rows in self._rows]
        # Inputs that vary only outside the training folds leave a scatter of rounding errors there.
        total = sum(np.trace(scatter) for scatter in self._scatter)
        self._least = max(np.finfo(np.float64).eps * total, np.finfo(np.float64).tiny)
        held_out = [frozenset(pair) for size in (1, 2) for pair in combinations(range(self.num_folds), size)]
        self._bases = {without: self._decompose(without) for without in held_out}

    def fit(self, targets: Float[np.ndarray, "samples dims"]) -> CrossFit:
        """Choose a ridge for each target and predict each fold from the others."""
        offset = targets.mean(axis=0, dtype=np.float64)
        moments = _Moments(self._inputs, targets - offset, self._rows, self._scatter)
        predictions = np.empty(targets.shape)
        parts = []
        for fold, rows in enumerate(self._rows):
            inner = self._train(fold)
            weights = {other: self._weights(moments, frozenset((fold, other))) for other in inner}
            errors = [_squared_errors(moments, self._train(fold, one), one, weights[one]) for one in inner]
            chosen = np.argmin(np.sum(errors, axis=0), axis=0)
            picked = {other: _pick(weights[other], chosen) for other in inner}
            residual = [_error_matrix(moments, self._train(fold, other), other, picked[other]) for other in inner]
            size, mean = moments.mean(inner)
            own = _pick(self._weights(moments, frozenset((fold,))), chosen)
            predictions[rows] = (self._inputs[rows] - mean[: len(own)]) @ own + mean[len(own) :] + offset
            spread = moments.about(inner, mean)[len(own) :, len(own) :]
            parts.append(
                (mean[len(own) :] + offset, spread / size, np.sum(residual, axis=0) / size, self._ridges[chosen])
            )
        return CrossFit(predictions, *(np.stack(part) for part in zip(*parts, strict=True)))

    def _train(self, *without: int) -> list[int]:
        return [fold for fold in range(self.num_folds) if fold not in without]

    def _decompose(self, without: frozenset[int]) -> _Basis:
        kept = self._train(*without)
        rows = np.concatenate([self._rows[fold] for fold in kept])
        mean = self._inputs[rows].mean(axis=0)
        scatter = sum(self._scatter[fold] for fold in kept) - len(rows) * np.outer(mean, mean)
        eigenvalues, vectors = np.linalg.eigh(scatter)
        return _Basis(mean, np.clip(eigenvalues, 0.0, None), vectors)

    def _weights(self, moments: "_Moments", without: frozenset[int]) -> np.ndarray:
        """Weights for each ridge, `(ridges, features, dims)`."""
        basis = self._bases[without]
        kept = self._train(*without)
        features = len(basis.mean)
        cross = basis.vectors.T @ moments.about(kept, moments.mean(kept)[1])[:features, features:]
        penalties = np.maximum(self._ridges * basis.eigenvalues.mean(), self._least)
        shrunk = cross / rearrange(basis.eigenvalues + penalties[:, None], "ridges features -> ridges features 1")
        return basis.vectors @ shrunk


class _Moments:
    """Sums and sums of products of inputs and targets side by side, by fold."""

    def __init__(
        self, inputs: np.ndarray, targets: np.ndarray, rows: list[np.ndarray], scatter: list[np.ndarray]
    ) -> None:
        self.sizes = [len(r) for r in rows]
        self.sums = [np.concatenate([inputs[r].sum(axis=0), targets[r].sum(axis=0)]) for r in rows]
        self.products = []
        for r, within in zip(rows, scatter, strict=True):
            cross = inputs[r].T @ targets[r]
            self.products.append(np.block([[within, cross], [cross.T, targets[r].T @ targets[r]]]))

    def mean(self, folds: list[int]) -> tuple[int, np.ndarray]:
        """Samples and mean of some folds."""
        size = sum(self.sizes[fold] for fold in folds)
        return size, np.sum([self.sums[fold] for fold in folds], axis=0) / size

    def about(self, folds: list[int], centre: np.ndarray) -> np.ndarray:
        """Sums of products of the deviations from `centre` in some folds."""
        size = sum(self.sizes[fold] for fold in folds)
        shift = np.outer(np.sum([self.sums[fold] for fold in folds], axis=0), centre)
        return sum(self.products[fold] for fold in folds) - shift - shift.T + size * np.outer(centre, centre)


def _pick(weights: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    return np.stack([weights[ridge, :, dim] for dim, ridge in enumerate(chosen)], axis=1)


def _error_matrix(moments: _Moments, train: list[int], test: int, weights: np.ndarray) -> np.ndarray:
    """Sum over the test fold of the outer products of the prediction errors."""
    about = moments.about([test], moments.mean(train)[1])
    residual = np.concatenate([-weights, np.eye(weights.shape[1])])
    return residual.T @ about @ residual


def _squared_errors(moments: _Moments, train: list[int], test: int, weights: np.ndarray) -> np.ndarray:
    """Sum over the test fold of the squared errors, `(ridges, dims)`."""
    return np.stack([np.diag(_error_matrix(moments, train, test, one)) for one in weights])


def one_hot(codes: Int[np.ndarray, "samples tokens"], num_codes: int) -> Float[np.ndarray, "samples features"]:
    """Indicator columns, token by token: column `token * num_codes + code`.

    Raises:
        ValueError: a code is outside 0..num_codes-1.
    """
    if codes.size and not 0 <= codes.min() <= codes.max() < num_codes:
        raise ValueError(f"codes span {codes.min()}..{codes.max()}, not 0..{num_codes - 1}: is num_codes right?")
    return rearrange(np.eye(num_codes)[codes], "samples tokens codes -> samples (tokens codes)")


def rank_gaussianise(
    actions: Float[np.ndarray, "samples dims"], rng: np.random.Generator | None = None
) -> Float[np.ndarray, "samples dims"]:
    """Each dimension mapped monotonically to a standard normal; ties share their average rank.

    With `rng` ties are broken at random instead: a discrete dimension becomes a continuous one with the same mutual
    information with anything else, which densities need and probes do not.
    """
    if rng is None:
        ranks = rankdata(actions, axis=0)
    else:
        ranks = np.stack([_random_ranks(column, rng) for column in actions.T], axis=1)
    return ndtri((ranks - 0.5) / len(actions))


def _random_ranks(values: Float[np.ndarray, " samples"], rng: np.random.Generator) -> Float[np.ndarray, " samples"]:
    """Ranks from 1, ties in random order."""
    ranks = np.empty(len(values))
    ranks[np.lexsort((rng.random(len(values)), values))] = np.arange(1, len(values) + 1)
    return ranks


def episode_folds(episodes: Int[np.ndarray, " samples"], folds: int, seed: int) -> Int[np.ndarray, " samples"]:
    """The fold of each sample; an episode lies in one fold as a whole.

    Raises:
        ValueError: there are fewer episodes than folds.
    """
    names, index = np.unique(episodes, return_inverse=True)
    if len(names) < folds:
        raise ValueError(f"{len(names)} episodes cannot make {folds} folds; use more episodes")
    return (np.random.default_rng(seed).permutation(len(names)) % folds)[index]


def linear_probe(
    inputs: Float[np.ndarray, "samples features"],
    actions: Float[np.ndarray, "samples dims"],
    episodes: Int[np.ndarray, " samples"],
    folds: int = 5,
    ridges: Sequence[float] = RIDGES,
    seed: int = 0,
) -> ProbeResult:
    """Normalised error of ridge regressions from latents to actions, cross-fitted by episode.

    The error is divided by the squared deviation from the mean of the *training* folds, what a probe without inputs
    would predict; the mean of the test fold, unknown to any probe, would make the same probe look worse.

    Raises:
        ValueError: too few episodes, or actions that never change.
    """
    varies = np.ptp(actions, axis=0) > 0
    if not varies.any():
        raise ValueError(f"all {actions.shape[1]} action dimensions are constant; there is nothing to predict")
    fold_of = episode_folds(episodes, folds, seed)
    fit = CrossFittedRidge(inputs, fold_of, ridges).fit(actions[:, varies])
    errors = (actions[:, varies] - fit.predictions) ** 2
    deviations = (actions[:, varies] - fit.means[fold_of]) ** 2
    by_dim = np.full(len(varies), np.nan)
    by_dim[varies] = errors.sum(axis=0) / deviations.sum(axis=0)
    predictions = repeat(actions[0].astype(np.float64), "dims -> samples dims", samples=len(actions)).copy()
    predictions[:, varies] = fit.predictions
    interval = bootstrap_by_episode(np.concatenate([errors, deviations], axis=1), episodes, mean_ratio, seed=seed)
    constant = tuple(int(dim) for dim in np.flatnonzero(~varies))
    return ProbeResult(float(np.nanmean(by_dim)), interval, by_dim, predictions, constant, len(actions))


def mean_ratio(sums: Float[np.ndarray, "draws columns"]) -> Float[np.ndarray, " draws"]:
    """Mean over dimensions of sums of errors (the first half of the columns) over sums of deviations (the rest)."""
    errors, deviations = np.split(sums, 2, axis=1)
    return np.mean(errors / deviations, axis=1)


def ratio(sums: Float[np.ndarray, "draws 2"]) -> Float[np.ndarray, " draws"]:
    """The first sum over the second: the mean of a value by sample where the second counts samples."""
    return sums[:, 0] / sums[:, 1]


def bootstrap_by_episode(
    values: Float[np.ndarray, "samples columns"],
    episodes: Int[np.ndarray, " samples"],
    statistic: Callable[[np.ndarray], np.ndarray],
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile interval of a statistic of column sums, whole episodes resampled with replacement.

    Args:
        values: what each sample adds to each sum.
        episodes: the episode of each sample.
        statistic: from `(draws, columns)` sums to `(draws,)` values.
        draws: resamples.
        seed: of the resampling.
    """
    names, index = np.unique(episodes, return_inverse=True)
    sums = np.stack([np.bincount(index, weights=column) for column in values.T], axis=1)
    counts = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    low, high = np.percentile(statistic(counts @ sums), [2.5, 97.5])
    return float(low), float(high)
