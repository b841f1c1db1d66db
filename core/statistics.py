"""Statistics of actions or proprioception, and the transform that they define; part of every policy checkpoint."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

SMALLEST_SPREAD = 0.02
"""Floor of the standard deviation as a fraction of a dimension's whole range of values."""


class StatisticsError(ValueError):
    """Statistics that are absent or unusable."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Per dimension: exact mean, standard deviation and range of what was seen."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    count: int

    @classmethod
    def of(cls, arrays: Iterable[Float[np.ndarray, "_ dims"]]) -> "Statistics":
        """Statistics of all rows of the arrays, which are seen once and one at a time.

        Raises:
            StatisticsError: there is no row, or a value is not finite.
        """
        count, mean, squares, low, high = 0, np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0)
        for array in arrays:
            rows = array.astype(np.float64)
            if not np.isfinite(rows).all():
                raise StatisticsError(
                    f"values that are not finite in dimensions {np.where(~np.isfinite(rows).all(0))[0]}"
                )
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
        std = np.sqrt(squares / count)
        numbers = {"mean": mean, "std": std, "low": low, "high": high}
        return cls(count=count, **{name: tuple(float(v) for v in value) for name, value in numbers.items()})

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
        mean, std, low, high = (tuple(values[name]) for name in ("mean", "std", "low", "high"))
        return cls(mean=mean, std=std, low=low, high=high, count=values["count"])

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
        """The inverse of `normalise`."""
        return (values * self.scale + np.array(self.mean)).astype(np.float32)
