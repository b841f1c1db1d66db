"""The primary estimator: a contrastive bound whose critic is a stack of conditional densities."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int

from lam.audit.estimators.contrast import (
    Critic,
    best_weights,
    blocks_of,
    contrastive_bits,
    expected_bits,
    normal_critic,
    weighted,
)
from lam.audit.estimators.coordinates import coordinates_of, whitened, with_squares
from lam.audit.estimators.interface import (
    Estimate,
    Sample,
    dense,
    episodes_of,
    folds_of,
    latents_of,
    of_contributions,
    standard_error,
    standardised,
)
from lam.audit.estimators.networks import CodeClassifier, predicted
from lam.audit.estimators.token_effects import TokenEffects
from lam.audit.probes import CrossFittedRidge, rank_gaussianise

SMALL_BLOCK = 400
"""Pairs that are scored against each other while fitting."""
WORTH_BITS = 0.005
"""Bits by which other coordinates must be better to be taken."""
CLEAR = 4.0
"""Standard errors by which a critic must prove bits where it was chosen, for it was chosen there among several."""
LEAST_EPISODES = 8
"""Episodes of a validation fold below which luck alone lets a network prove bits."""
MAX_CLASSES = 4096
"""Codes of all tokens together up to which a network classifies them."""


Predictor = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""From targets, rows and their folds to cross-fitted predictions of these rows."""


@runtime_checkable
class Scorer(Protocol):
    """A critic: log f of each action (row) with each latent (column) of a block, up to what the action decides."""

    def scores(self, rows: Int[np.ndarray, " rows"]) -> Float32[np.ndarray, "rows rows"]:
        """Of the pairs in some rows."""


def contrastive(sample: Sample, folds: int = 5, seed: int = 0) -> Estimate:
    """Bits about the actions in codes, or in continuous latents where there are no codes.

    Bounds: I(Z; A) from below, in expectation, for *any* law of codes and actions: it is the bound of van den Oord et
    al. (2018) on held-out episodes, mean over pairs of log f(z, a) - log mean over z' of f(z', a), which no critic f
    can cheat, mixed with an even chance of all latents so that a rare code costs little. f is a weighted product of
    densities fitted on the other episodes: normal ones p(a | z) in coordinates where actions look normal, with means
    from crossed random effects of the codes (joint effects of several tokens where there is evidence) or from ridges of
    the latents; the same for squares and products of the actions; and a network where it helps on a validation fold.
    Coordinates and weights are chosen inside the training folds, never on what is scored.
    Bias: downward. Within 10 % for codes with additive or pairwise meaning from 1,200 samples; more where a code means
    a curved region of many dimensions; at most log2 of the samples in a fold (or 1,024) can be reported.
    Cost: 2 to 5 s at 4,000 samples, 4 tokens of 16 codes, 7 dimensions.
    Source: contrastive bound, van den Oord et al. (2018) and Poole et al. (2019, eq. 12 with a density as critic);
    density as critic, Barber & Agakov (2003); shrinkage, Henderson (1953).

    Raises:
        ValueError: too few episodes.
    """
    rng = np.random.default_rng(seed)
    fold_of = folds_of(sample, folds, seed)
    if sample.codes is not None:
        model: _CodeModel | _LatentModel = _CodeModel(sample.codes)
    else:
        model = _LatentModel(latents_of(sample, "contrastive"), rng)
    densities = _Densities(model.predictors, coordinates_of(sample.actions, rng), fold_of, episodes_of(sample))
    realised, expected = np.empty((2, len(sample.actions)))
    for fold in range(folds):
        stack = _Stack(model, densities, fold, seed)
        for block in blocks_of(np.flatnonzero(fold_of == fold), rng):
            scores = stack.scores(block)
            realised[block], expected[block] = contrastive_bits(scores), expected_bits(scores)
    # The lesser of both is still a bound, and less often above the truth by luck of the draw.
    return of_contributions(realised - max(0.0, realised.mean() - expected.mean()))


class _CodeModel:
    """Random effects of the codes; a network from actions to codes."""

    def __init__(self, codes: np.ndarray) -> None:
        self.codes = np.stack([dense(column) for column in codes.T], axis=1)
        self.predictors: list[Predictor] = [TokenEffects(codes).predict]

    def network(self, features: np.ndarray, train: np.ndarray, validation: np.ndarray, seed: int) -> Scorer | None:
        if np.sum(self.codes.max(axis=0) + 1) > MAX_CLASSES:
            return None
        classifier = CodeClassifier(features, self.codes, train, validation, seed)
        return classifier if classifier.learned else None


class _LatentModel:
    """Ridges from the latents as they are, whitened, and rank-Gaussianised; a network from latents to actions."""

    def __init__(self, latents: np.ndarray, rng: np.random.Generator) -> None:
        scaled = standardised(latents)
        self.inputs = [scaled, whitened(latents), rank_gaussianise(scaled, rng)]
        self.predictors: list[Predictor] = [partial(_ridge, inputs) for inputs in self.inputs]

    def network(self, features: np.ndarray, train: np.ndarray, validation: np.ndarray, seed: int) -> Scorer:
        means = predicted(np.concatenate(self.inputs[1:], axis=1), features, train, validation, seed)
        errors = features[validation] - means[validation]
        return normal_critic(features, means, errors.T @ errors / len(validation))


def _ridge(inputs: np.ndarray, targets: np.ndarray, rows: np.ndarray, folds: np.ndarray) -> np.ndarray:
    return CrossFittedRidge(inputs[rows], folds).fit(targets[rows]).predictions


class _Choice(NamedTuple):
    """Targets, and what predicts them."""

    coordinates: str
    predictor: int
    squares: bool = False


class _Densities:
    """Normal densities of actions given latents, in any coordinates."""

    def __init__(
        self,
        predictors: list[Predictor],
        coordinates: dict[str, np.ndarray],
        fold_of: np.ndarray,
        episodes: np.ndarray,
    ) -> None:
        self.choices = [_Choice(name, number) for name in coordinates for number in range(len(predictors))]
        self.fold_of, self.episodes = fold_of, episodes
        self._predictors = predictors
        self._coordinates = coordinates
        self._outer_means: dict[_Choice, np.ndarray] = {}

    def targets(self, choice: _Choice) -> np.ndarray:
        values = self._coordinates[choice.coordinates]
        return with_squares(values) if choice.squares else values

    def inner(self, choice: _Choice, fold: int) -> tuple[Critic, np.ndarray]:
        """A critic for the rows outside a fold, each predicted from others outside it, and the covariance of errors."""
        targets, train = self.targets(choice), np.flatnonzero(self.fold_of != fold)
        means = np.zeros_like(targets)
        means[train] = self._predictors[choice.predictor](targets, train, dense(self.fold_of[train]))
        errors = targets[train] - means[train]
        covariance = errors.T @ errors / len(train)
        return normal_critic(targets, means, covariance), covariance

    def outer(self, choice: _Choice, covariance: np.ndarray) -> Critic:
        """A critic for all rows, each predicted from the other folds."""
        targets = self.targets(choice)
        if choice not in self._outer_means:
            predict = self._predictors[choice.predictor]
            self._outer_means[choice] = predict(targets, np.arange(len(targets)), self.fold_of)
        return normal_critic(targets, self._outer_means[choice], covariance)


class _Stack:
    """The critic of one fold, fitted on the others."""

    def __init__(self, model: "_CodeModel | _LatentModel", densities: _Densities, fold: int, seed: int) -> None:
        rng = np.random.default_rng((seed, fold))
        fold_of = densities.fold_of
        others = [other for other in range(fold_of.max() + 1) if other != fold]
        blocks = [block for other in others for block in blocks_of(np.flatnonzero(fold_of == other), rng, SMALL_BLOCK)]
        best, critic, covariance = _best_choice(densities, fold, blocks)
        curved = best._replace(squares=True)
        curved_critic, curved_covariance = densities.inner(curved, fold)
        inner: list[Scorer] = [critic, curved_critic]
        self.weights = best_weights([_scores(inner, block) for block in blocks], [0.8, 0.1])
        self.episodes = densities.episodes
        rows = np.concatenate(blocks)
        self.weights *= _evidence(_proven(inner, self.weights, blocks), self.episodes[rows], fold_of[rows])
        self.critics: list[Scorer] = [densities.outer(best, covariance), densities.outer(curved, curved_covariance)]
        # Validation rotates, so that no fold decides for all.
        held_out = others[fold % len(others)]
        train = np.flatnonzero((fold_of != fold) & (fold_of != held_out))
        validation = np.flatnonzero(fold_of == held_out)
        if len(np.unique(self.episodes[validation])) < LEAST_EPISODES:
            return
        network = model.network(densities.targets(curved), train, validation, seed + fold)
        if network is not None:
            self._add(network, inner, blocks_of(validation, rng, SMALL_BLOCK))

    def scores(self, block: np.ndarray) -> Float32[np.ndarray, "rows rows"]:
        return weighted(self.weights, _scores(self.critics, block))

    def _add(self, network: Scorer, inner: list[Scorer], validation: list[np.ndarray]) -> None:
        """Take the network in where it proves more bits on validation samples, by more than a standard error."""
        scores = [_scores([*inner, network], block) for block in validation]
        both = [np.stack([weighted(self.weights, block[:-1]), block[-1]]) for block in scores]
        old, new = best_weights(both, [1.0, 0.1])
        gain = np.concatenate([contrastive_bits(weighted(np.array([old, new]), block)) for block in both])
        gain -= np.concatenate([contrastive_bits(block[0]) for block in both])
        if gain.mean() > standard_error(gain, self.episodes[np.concatenate(validation)]):
            self.weights = np.append(min(old, 1.0) * self.weights, new)
            self.critics.append(network)


def _best_choice(densities: _Densities, fold: int, blocks: list[np.ndarray]) -> tuple[_Choice, Critic, np.ndarray]:
    """The choice that proves most bits outside the fold, the earlier where it makes no difference."""
    best, most = None, -np.inf
    for choice in densities.choices:
        critic, covariance = densities.inner(choice, fold)
        bits = _proven([critic], np.ones(1), blocks).mean()
        if bits > most + WORTH_BITS:
            best, most = (choice, critic, covariance), bits
    assert best is not None
    return best


def _evidence(bits: np.ndarray, episodes: np.ndarray, folds: np.ndarray) -> float:
    """0 to 1: 0 where the mean is within `CLEAR` of its standard errors, near 1 soon above.

    Episodes of a fold are scored against each other: where they are few, all gain by the same luck.
    """
    error = max(standard_error(bits, episodes), standard_error(bits, folds))
    return float(max(0.0, 1 - (CLEAR * error / max(bits.mean(), 1e-12)) ** 4))


def _scores(critics: list[Scorer], block: np.ndarray) -> np.ndarray:
    return np.stack([critic.scores(block) for critic in critics])


def _proven(critics: list[Scorer], weights: np.ndarray, blocks: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([contrastive_bits(weighted(weights, _scores(critics, block))) for block in blocks])
