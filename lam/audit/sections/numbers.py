"""Numbers that can be judged: each with its interval, what it would be without effect, and its samples."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lam.audit.probes import bootstrap_by_episode, mean_ratio, ratio

GROUPS = 20
"""Groups of episodes that a jackknife leaves out in turn."""


class Null(NamedTuple):
    """What the number has to be compared with."""

    kind: str
    """permutation, chance, ceiling, or another level, in words."""
    value: float
    p95: float | None = None
    """95th percentile over permutations, their largest where there are few."""


class Number(NamedTuple):
    """A measured number."""

    value: float
    ci95: tuple[float, float]
    """Episodes resampled (or left out in turn)."""
    null: Null
    n: int
    """Samples: transitions, each once a camera, unless said otherwise."""
    episodes: int
    """The independent units."""

    def as_json(self) -> dict[str, Any]:
        """With None in the place of numbers that are not finite."""
        null = {"kind": self.null.kind, "value": finite(self.null.value), "p95": finite(self.null.p95)}
        value = {"value": finite(self.value), "ci95": [finite(bound) for bound in self.ci95], "null": null}
        return value | {"n": self.n, "episodes": self.episodes}


class Table(NamedTuple):
    """Numbers by row and column."""

    key: str
    title: str
    about: str
    columns: dict[str, str]
    """Headings by key."""
    rows: dict[str, dict[str, Number]]

    def as_json(self) -> dict[str, Any]:
        """Rows of numbers."""
        return {name: {key: number.as_json() for key, number in row.items()} for name, row in self.rows.items()}


class Section(NamedTuple):
    """A part of the page."""

    key: str
    title: str
    about: str
    tables: list[Table]
    left_out: list[str]
    """Sentences about what could not be measured."""
    facts: Mapping[str, Any] = {}
    """Further content of audit.json."""

    def as_json(self) -> dict[str, Any]:
        """Tables by key, what was left out, and the facts."""
        return {table.key: table.as_json() for table in self.tables} | {"left_out": self.left_out} | dict(self.facts)


def by_place(key: str, title: str, about: str, by_model: Mapping[str, Mapping[str, Number]]) -> Table:
    """A table with a row for each place (camera, task, ...) and a column for each model, from numbers the other way."""
    places = list(dict.fromkeys(place for numbers in by_model.values() for place in numbers))
    rows = {p: {model: numbers[p] for model, numbers in by_model.items() if p in numbers} for p in places}
    return Table(key, title, about, {model: model.replace("_", " ") for model in by_model}, rows)


def finite(value: float | None) -> float | None:
    """None where the number is not finite: JSON has no NaN."""
    return None if value is None or not math.isfinite(value) else float(value)


def mean_number(values: Float[np.ndarray, " n"], episodes: Int[np.ndarray, " n"], null: Null, seed: int = 0) -> Number:
    """The mean of a value by sample."""
    return ratio_number(values.astype(np.float64), np.ones(len(values)), episodes, null, seed)


def ratio_number(
    above: Float[np.ndarray, " n"],
    below: Float[np.ndarray, " n"],
    episodes: Int[np.ndarray, " n"],
    null: Null,
    seed: int = 0,
) -> Number:
    """The ratio of two sums over samples."""
    interval = bootstrap_by_episode(np.stack([above, below], axis=1), episodes, ratio, seed=seed)
    return Number(float(above.sum() / below.sum()), interval, null, len(above), len(np.unique(episodes)))


def nmse_number(
    errors: Float[np.ndarray, "n dims"],
    deviations: Float[np.ndarray, "n dims"],
    episodes: Int[np.ndarray, " n"],
    seed: int = 0,
) -> Number:
    """Mean over dimensions of squared errors over squared deviations; chance is 1."""
    value = float(np.mean(errors.sum(axis=0) / deviations.sum(axis=0)))
    interval = bootstrap_by_episode(np.concatenate([errors, deviations], axis=1), episodes, mean_ratio, seed=seed)
    return Number(value, interval, Null("chance", 1.0), len(errors), len(np.unique(episodes)))


def jackknife_number(
    statistic: Callable[[np.ndarray], float], episodes: Int[np.ndarray, " n"], null: Null, seed: int = 0
) -> Number:
    """A statistic of rows, with a normal interval from leaving out groups of episodes in turn.

    Unlike a bootstrap, it does not repeat samples, which would bias entropies downwards.
    """
    names, index = np.unique(episodes, return_inverse=True)
    value, everything = float(statistic(np.arange(len(episodes)))), len(names)
    groups = min(GROUPS, everything)
    if groups < 2:
        return Number(value, (float("nan"), float("nan")), null, len(episodes), everything)
    group_of = (np.random.default_rng(seed).permutation(everything) % groups)[index]
    without = np.array([statistic(np.flatnonzero(group_of != group)) for group in range(groups)])
    deviation = 1.96 * float(np.sqrt((groups - 1) / groups * np.sum((without - without.mean()) ** 2)))
    return Number(value, (value - deviation, value + deviation), null, len(episodes), everything)


def permutation(values: Float[np.ndarray, " draws"] | list[float]) -> Null:
    """Mean and 95th percentile of what shuffles give."""
    return Null("permutation", float(np.mean(values)), float(np.percentile(values, 95)))
