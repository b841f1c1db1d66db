"""Mean of anything given the codes of several tokens, by crossed random effects with empirical Bayes shrinkage.

target = mean + one effect of each token's code (+ one of the joint code of several tokens, where there is evidence) +
noise. The effects of a token are drawn from a normal distribution whose covariance is estimated with them, so that
tokens of noise and directions that a token does not touch are shrunk to nothing, and nothing has to be tuned.
Estimated by backfitting: each effect in turn from what the others leave.
"""

import math
from itertools import combinations
from typing import NamedTuple

import numpy as np
from einops import rearrange
from jaxtyping import Float, Int
from scipy import sparse

from lam.audit.estimators.interface import dense

SWEEPS = 5
"""Rounds over the effects of single tokens; twice as many where joint codes join them."""
MAX_COMBINATIONS = 130
"""Combinations of an order that are looked at."""
MAX_JOINT = 6
"""Joint codes that get an effect: those with the most evidence."""
MIN_EVIDENCE = 4.0
"""Standard deviations by which the spread between joint codes must exceed that of noise."""
FLOOR = 1e-6
"""Variance added to covariances, targets having about 1."""


class Partition(NamedTuple):
    """Samples by their joint code of some tokens."""

    labels: Int[np.ndarray, " samples"]
    cells: int


class TokenEffects:
    """Predicts targets from codes, cross-fitted."""

    def __init__(self, codes: Int[np.ndarray, "samples tokens"]) -> None:
        columns = [dense(column) for column in rearrange(codes, "samples tokens -> tokens samples")]
        # Tokens that say the same as an earlier one would share its effect between them.
        unique = {column.tobytes(): column for column in map(_by_appearance, columns) if column.max() > 0}
        self.tokens = [Partition(labels, int(labels.max()) + 1) for labels in unique.values()]
        self.joint = _joint_partitions([partition.labels for partition in self.tokens])

    def predict(
        self,
        targets: Float[np.ndarray, "samples dims"],
        rows: Int[np.ndarray, " rows"],
        folds: Int[np.ndarray, " rows"],
    ) -> Float[np.ndarray, "rows dims"]:
        """Targets of `rows`, each fold predicted from the other folds of these rows."""
        predictions = np.empty((len(rows), targets.shape[1]))
        for fold in np.unique(folds):
            predictions[folds == fold] = self.fitted(targets, rows[folds != fold], rows[folds == fold])
        return predictions

    def fitted(
        self,
        targets: Float[np.ndarray, "samples dims"],
        train: Int[np.ndarray, " train"],
        test: Int[np.ndarray, " test"],
    ) -> Float[np.ndarray, "test dims"]:
        """Targets of some rows predicted from those of others."""
        mean = targets[train].mean(axis=0)
        residual = targets[train] - mean
        covariance = residual.T @ residual / len(train)
        effects = [_Effect(partition, train) for partition in self.tokens]
        for _ in range(SWEEPS):
            residual, covariance = _sweep(effects, residual, covariance)
        joint = self._with_evidence(residual, covariance, train)
        for _ in range(2 * SWEEPS if joint else 0):
            residual, covariance = _sweep(effects + joint, residual, covariance)
        start = np.tile(mean, (len(test), 1))
        return sum((effect.values[effect.partition.labels[test]] for effect in effects + joint), start)

    def _with_evidence(self, residual: np.ndarray, covariance: np.ndarray, train: np.ndarray) -> list["_Effect"]:
        """Joint codes between which the residual differs by more than chance, the clearest first."""
        white = np.linalg.solve(_root(covariance), residual.T).T
        effects = [_Effect(partition, train) for partition in self.joint if partition.cells < len(train)]
        evidence = {effect: effect.evidence(white) for effect in effects}
        clearest = sorted(effects, key=lambda effect: -evidence[effect])[:MAX_JOINT]
        return [effect for effect in clearest if evidence[effect] > MIN_EVIDENCE]


class _Effect:
    """Values by cell, estimated from the training rows."""

    def __init__(self, partition: Partition, train: np.ndarray) -> None:
        self.partition = partition
        self.labels = partition.labels[train]
        ones = np.ones(len(train))
        self.sum_by_cell = sparse.csr_array((ones, (self.labels, np.arange(len(train)))), (partition.cells, len(train)))
        self.counts = np.bincount(self.labels, minlength=partition.cells).astype(np.float64)
        self.occupied = int(np.count_nonzero(self.counts))
        # Of Henderson's estimator of a variance component: samples per cell times cells - 1, counts being unequal.
        self.weight = max(len(train) - np.sum(self.counts**2) / len(train), 1e-9)
        self.values: np.ndarray = np.zeros((partition.cells, 1))

    def evidence(self, white: np.ndarray) -> float:
        """How far the scatter between cells exceeds that of white noise, in its standard deviations."""
        between = np.sum((self.sum_by_cell @ white) ** 2 / np.maximum(self.counts, 1)[:, None])
        expected = self.occupied * white.shape[1]
        return float((between - expected) / np.sqrt(2 * expected))

    def shrunk(self, white: np.ndarray) -> tuple[np.ndarray, float]:
        """Values for targets with white noise, and the parameters that they effectively use, by dimension."""
        dims = white.shape[1]
        counts = np.maximum(self.counts, 1)[:, None]
        means = (self.sum_by_cell @ white) / counts
        between = means.T @ (means * self.counts[:, None]) - self.occupied * np.eye(dims)
        variances, directions = np.linalg.eigh(between / self.weight)
        # Half the largest eigenvalue that noise has: below, estimated directions are mostly wrong.
        noise = 0.5 * (2 * np.sqrt(self.occupied * dims) + dims) / self.weight
        variances = np.where(variances > noise, variances, 0.0)
        kept = variances / (variances + 1 / counts)
        return (means @ directions * kept) @ directions.T, float(kept[self.counts > 0].sum() / dims)


def _sweep(effects: list[_Effect], residual: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Estimate each effect anew, given all others."""
    root = _root(covariance)
    whiten = np.linalg.inv(root).T
    white = residual @ whiten
    used = 1.0
    for effect in effects:
        before = np.linalg.solve(root, effect.values.T).T if effect.values.shape[1] == len(root) else effect.values
        partial = white + before[effect.labels]
        values, parameters = effect.shrunk(partial)
        white = partial - values[effect.labels]
        effect.values = values @ root.T
        used += parameters
    residual = white @ root.T
    return residual, residual.T @ residual / max(len(residual) - used, len(residual) / 4)


def _root(covariance: np.ndarray) -> np.ndarray:
    return np.linalg.cholesky(covariance + FLOOR * np.eye(len(covariance)))


def _by_appearance(labels: np.ndarray) -> np.ndarray:
    """Labels numbered in the order in which they occur: equal for tokens that differ only in names."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def _joint_partitions(tokens: list[np.ndarray]) -> list[Partition]:
    """Pairs and triples of tokens, and all of them."""
    chosen: list[tuple[int, ...]] = []
    for order in (2, 3):
        if order <= len(tokens) and math.comb(len(tokens), order) <= MAX_COMBINATIONS:
            chosen += combinations(range(len(tokens)), order)
    if len(tokens) > 3:
        chosen.append(tuple(range(len(tokens))))
    joint = [dense(np.stack([tokens[token] for token in members], axis=1)) for members in chosen]
    return [Partition(labels, int(labels.max()) + 1) for labels in joint]
