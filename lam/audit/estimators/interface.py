"""What every estimator takes and gives."""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from einops import rearrange
from jaxtyping import Float, Int, Shaped

from lam.audit.probes import episode_folds


class Sample(NamedTuple):
    """Latents and actions of the same transitions; either `codes` or `latents` may be left out."""

    actions: Float[np.ndarray, "samples dims"]
    """In any units."""
    codes: Int[np.ndarray, "samples tokens"] | None = None
    """Code indices; their order means nothing."""
    latents: Float[np.ndarray, "samples features"] | None = None
    """Continuous latents, or the codebook vectors of the codes side by side."""
    episodes: Int[np.ndarray, " samples"] | None = None
    """The independent unit that folds and intervals keep whole; None: each sample is its own."""

    def take(self, rows: Int[np.ndarray, " rows"]) -> "Sample":
        """The same with some of the samples."""
        return Sample(*(None if column is None else column[rows] for column in self))

    def with_actions(self, actions: Float[np.ndarray, "samples dims"]) -> "Sample":
        """The same latents beside other actions."""
        return self._replace(actions=actions)


class Estimate(NamedTuple):
    """What an estimator reports."""

    bits: float
    """Mutual information; never clipped, so that about zero means on either side of it."""
    contributions: Float[np.ndarray, " samples"] | None
    """Bits of each sample, of which `bits` is the mean; None where an estimator has no such parts."""
    n: int
    """Samples."""


@runtime_checkable
class Estimator(Protocol):
    """The one signature."""

    def __call__(self, sample: Sample, folds: int = 5, seed: int = 0) -> Estimate:
        """Estimate I(latent; action); `folds` and `seed` matter to those that fit something."""


def of_contributions(contributions: Float[np.ndarray, " samples"]) -> Estimate:
    """The mean of bits by sample."""
    return Estimate(float(contributions.mean()), contributions, len(contributions))


def episodes_of(sample: Sample) -> Int[np.ndarray, " samples"]:
    """The episode of each sample, its own where none are given."""
    return np.arange(len(sample.actions)) if sample.episodes is None else sample.episodes


def folds_of(sample: Sample, folds: int, seed: int) -> Int[np.ndarray, " samples"]:
    """The fold of each sample, episodes whole.

    Raises:
        ValueError: there are fewer episodes than folds.
    """
    return episode_folds(episodes_of(sample), folds, seed)


def standard_error(values: Float[np.ndarray, " samples"], episodes: Int[np.ndarray, " samples"]) -> float:
    """Of the mean of values, of which those of one episode resemble each other."""
    _, index = np.unique(episodes, return_inverse=True)
    sums = np.bincount(index, weights=values - values.mean())
    return float(np.sqrt(np.sum(sums**2) * len(sums) / max(len(sums) - 1, 1)) / len(values))


def codes_of(sample: Sample, estimator: str) -> Int[np.ndarray, "samples tokens"]:
    """The codes.

    Raises:
        ValueError: there are none.
    """
    if sample.codes is None:
        raise ValueError(f"{estimator} takes codes, and there are only continuous latents; quantise them first")
    return sample.codes


def latents_of(sample: Sample, estimator: str) -> Float[np.ndarray, "samples features"]:
    """The continuous latents.

    Raises:
        ValueError: there are none.
    """
    if sample.latents is None:
        raise ValueError(f"{estimator} takes continuous latents, and there are only codes; give their codebook vectors")
    return sample.latents


def dense(labels: Shaped[np.ndarray, "samples *columns"]) -> Int[np.ndarray, " samples"]:
    """Labels (or rows of labels) numbered from 0 without gaps."""
    return np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)


def inputs_of(sample: Sample) -> Float[np.ndarray, "samples features"]:
    """What regressions read: an indicator column for each code that occurs, or standardised latents."""
    if sample.codes is None:
        assert sample.latents is not None
        return standardised(sample.latents)
    columns = [np.eye(labels.max() + 1)[labels] for labels in map(dense, rearrange(sample.codes, "n t -> t n"))]
    return np.concatenate(columns, axis=1)


def standardised(values: Float[np.ndarray, "samples columns"]) -> Float[np.ndarray, "samples varying"]:
    """Columns that vary, at mean 0 and standard deviation 1."""
    values = values[:, np.ptp(values, axis=0) > 0].astype(np.float64)
    # Halved twice: the squares of values near the largest float would overflow.
    values = values / np.abs(values).max(axis=0, initial=0.0)
    values = values - values.mean(axis=0)
    return values / values.std(axis=0)
