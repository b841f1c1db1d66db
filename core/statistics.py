"""Statistics of actions or proprioception, and the transform that they define; part of every policy checkpoint.

Mean, standard deviation and range are gathered in one pass, quantiles are exact too: of few rows by sorting, of many by
counting their bits in further passes, in memory that does not grow with the data.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

SMALLEST_SPREAD = 0.02
"""Floor of the standard deviation, and of what is between the outer quantiles, as a fraction of a dimension's range."""
QUANTILES = (0.01, 0.10, 0.50, 0.90, 0.99)
SORTED_ROWS = 500_000
"""Rows up to which quantiles are found by sorting."""
_HALF = 16
"""Bits that one pass counts."""


class StatisticsError(ValueError):
    """Statistics that are absent or unusable."""


class Moments(NamedTuple):
    """Of all rows, per dimension."""

    rows: int
    mean: np.ndarray
    std: np.ndarray
    low: np.ndarray
    high: np.ndarray


def moments(arrays: Iterable[Float[np.ndarray, "_ dims"]]) -> Moments:
    """Mean, standard deviation and range of all rows of the arrays, which are seen once and one at a time.

    Raises:
        StatisticsError: there is no row, or a value is not finite.
    """
    count, mean, squares, low, high = 0, np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0)
    for array in arrays:
        rows = array.astype(np.float64)
        if not len(rows):
            continue
        if not np.isfinite(rows).all():
            raise StatisticsError(f"values that are not finite in dimensions {np.where(~np.isfinite(rows).all(0))[0]}")
        if not count:
            mean, squares = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
            low, high = np.full(rows.shape[1], np.inf), np.full(rows.shape[1], -np.inf)
        total = count + len(rows)
        delta = rows.mean(0) - mean
        squares = squares + ((rows - rows.mean(0)) ** 2).sum(0) + delta**2 * count * len(rows) / total
        mean = mean + delta * len(rows) / total
        low, high, count = np.minimum(low, rows.min(0)), np.maximum(high, rows.max(0)), total
    if not count:
        raise StatisticsError("no values to compute statistics of: the selection has no labelled episode")
    return Moments(count, mean, np.sqrt(squares / count), low, high)


def quantiles(
    arrays: Collection[Float[np.ndarray, "_ dims"]], count: int, probabilities: Sequence[float] = QUANTILES
) -> Float[np.ndarray, "probabilities dims"]:
    """Quantiles of all `count` rows, equal to `numpy.quantile` of the rows as float32.

    The arrays are gone through once, or, where there are more than `SORTED_ROWS` rows, twice a probability.
    """
    if count <= SORTED_ROWS:
        rows = np.concatenate([array.astype(np.float32) for array in arrays]).astype(np.float64)
        return np.quantile(rows, probabilities, axis=0)
    ranks = np.array(probabilities) * (count - 1)
    below = _of_rank(arrays, np.floor(ranks).astype(np.int64))
    above = _of_rank(arrays, np.ceil(ranks).astype(np.int64))
    share, apart = (ranks - np.floor(ranks))[:, None], above - below
    # From the nearer side, as numpy does: equal to the last bit.
    return np.where(share < 0.5, below + apart * share, above - apart * (1 - share))


def _of_rank(arrays: Iterable[np.ndarray], ranks: np.ndarray) -> Float[np.ndarray, "ranks dims"]:
    """The values of given ranks: first the upper bits of each are found by counting, then the lower."""
    upper_counts = _counted(arrays, lambda bits: bits >> _HALF, None)
    upper, left = _bin_of_rank(upper_counts, np.repeat(ranks[:, None], upper_counts.shape[1], 1))
    values = np.empty(upper.shape)
    for place in range(len(ranks)):
        lower_counts = _counted(arrays, lambda bits: bits & (2**_HALF - 1), upper[place])
        lower, _ = _bin_of_rank(lower_counts, left[place : place + 1])
        values[place] = _from_bits((upper[place].astype(np.uint32) << _HALF) | lower[0].astype(np.uint32))
    return values


def _counted(arrays: Iterable[np.ndarray], half: Any, upper: np.ndarray | None) -> np.ndarray:
    """How often each half of the bits occurs in each dimension, among values with the given upper half."""
    counts: np.ndarray | None = None
    for array in arrays:
        bits = _to_bits(array.astype(np.float32))
        counts = np.zeros((2**_HALF, bits.shape[1]), np.int64) if counts is None else counts
        for dim in range(bits.shape[1]):
            chosen = bits[:, dim] if upper is None else bits[bits[:, dim] >> _HALF == upper[dim], dim]
            counts[:, dim] += np.bincount(half(chosen), minlength=2**_HALF)
    assert counts is not None
    return counts


def _bin_of_rank(counts: np.ndarray, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bins that hold the given ranks in each dimension, and the ranks within them."""
    reached = np.cumsum(counts, axis=0)
    dims = range(counts.shape[1])
    bins = np.stack([np.searchsorted(reached[:, dim], ranks[:, dim], side="right") for dim in dims], axis=1)
    before = np.stack([reached[bins[:, dim], dim] - counts[bins[:, dim], dim] for dim in dims], axis=1)
    return bins, ranks - before


def _to_bits(values: np.ndarray) -> np.ndarray:
    """Unsigned integers in the order of the floats."""
    bits = (values + np.float32(0)).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(2**31))


def _from_bits(bits: np.ndarray) -> np.ndarray:
    return np.where(bits >> 31, bits & np.uint32(2**31 - 1), ~bits).astype(np.uint32).view(np.float32)


def describe(arrays: Collection[Float[np.ndarray, "_ dims"]]) -> dict[str, list[float]]:
    """Statistics by the names that LeRobot gives them: min, max, mean, std, count and q01 to q99.

    Raises:
        StatisticsError: there is no row, or a value is not finite.
    """
    found = moments(arrays)
    facts = {"min": found.low, "max": found.high, "mean": found.mean, "std": found.std}
    facts |= dict(zip([f"q{round(100 * q):02d}" for q in QUANTILES], quantiles(arrays, found.rows), strict=True))
    return {name: value.tolist() for name, value in facts.items()} | {"count": [found.rows]}


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Per dimension: exact mean, standard deviation, range and outer quantiles of what was seen."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]
    count: int

    @classmethod
    def of(cls, arrays: Collection[Float[np.ndarray, "_ dims"]]) -> "Statistics":
        """Statistics of all rows of the arrays.

        Raises:
            StatisticsError: there is no row, or a value is not finite.
        """
        found = moments(arrays)
        outer = quantiles(arrays, found.rows, (0.01, 0.99))
        numbers = {"mean": found.mean, "std": found.std, "low": found.low, "high": found.high}
        numbers |= {"q01": outer[0], "q99": outer[1]}
        return cls(count=found.rows, **{name: tuple(float(v) for v in value) for name, value in numbers.items()})

    @classmethod
    def from_json(cls, values: dict[str, Any] | None) -> "Statistics":
        """Restore what `to_json` gave.

        Raises:
            StatisticsError: there are none; a policy without statistics does not act.
        """
        if not values:
            raise StatisticsError(
                "the checkpoint holds no action statistics; fine-tune it with scripts/finetune_vla.py"
            )
        numbers = {name: tuple(values[name]) for name in ("mean", "std", "low", "high", "q01", "q99")}
        return cls(count=values["count"], **numbers)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and lists."""
        return asdict(self)

    @property
    def constant(self) -> list[int]:
        """Dimensions that never changed."""
        return [d for d, (low, high) in enumerate(zip(self.low, self.high, strict=True)) if low == high]

    @property
    def scale(self) -> Float[np.ndarray, " dims"]:
        """Divisor of `normalise`: the standard deviation, floored so that near-constant dimensions stay harmless."""
        span = np.maximum(np.array(self.high) - np.array(self.low), np.abs(self.mean))
        floored = np.maximum(self.std, SMALLEST_SPREAD * span)
        return np.where(floored > 0, floored, 1.0)

    def normalise(self, values: Float[np.ndarray, "*batch dims"]) -> Float[np.ndarray, "*batch dims"]:
        """Zero mean and unit spread."""
        return ((values - np.array(self.mean)) / self.scale).astype(np.float32)

    def denormalise(self, values: Float[np.ndarray, "*batch dims"]) -> Float[np.ndarray, "*batch dims"]:
        """The inverse of `normalise`; a dimension that never changed keeps its value, whatever is answered for it."""
        return (values * self._still(self.scale) + np.array(self.mean)).astype(np.float32)

    def to_unit(self, values: Float[np.ndarray, "*batch dims"]) -> Float[np.ndarray, "*batch dims"]:
        """The outer quantiles (1 % and 99 %) at -1 and 1; dimensions that never changed at 0."""
        middle, reach = self._middle_and_reach()
        return ((values - middle) / reach).astype(np.float32)

    def from_unit(self, values: Float[np.ndarray, "*batch dims"]) -> Float[np.ndarray, "*batch dims"]:
        """The inverse of `to_unit`; a dimension that never changed keeps its value, whatever is answered for it."""
        middle, reach = self._middle_and_reach()
        return (values * self._still(reach) + middle).astype(np.float32)

    def _still(self, gain: Float[np.ndarray, " dims"]) -> Float[np.ndarray, " dims"]:
        return np.where(np.array(self.low) == np.array(self.high), 0.0, gain)

    def _middle_and_reach(self) -> tuple[Float[np.ndarray, " dims"], Float[np.ndarray, " dims"]]:
        """A dimension whose quantiles nearly agree (a gripper that closes once, or flickers) is mapped by its range."""
        span = np.array(self.high) - np.array(self.low)
        agree = np.array(self.q99) - np.array(self.q01) <= SMALLEST_SPREAD * span
        low, high = np.where(agree, self.low, self.q01), np.where(agree, self.high, self.q99)
        return (low + high) / 2, np.where(high > low, (high - low) / 2, 1.0)
