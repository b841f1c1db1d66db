"""The drawings of the page: how long episodes are, and how often each value of a number occurs."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from core.drawing import GRID, INK, new_axes, svg
from core.inspection.values import Values

BINS = 40
BAR = "#030405"
COLOURS = {INK: "var(--ink-soft)", GRID: "var(--line)", BAR: "var(--bar)"}
"""Stand-ins that are exchanged for the page's own colours."""
BEYOND = 0.6
"""How far a histogram goes beyond the range of 98 % of the values, in parts of that range."""


class Dimension(NamedTuple):
    """One number of an action, or of proprioception, on the page."""

    name: str
    unit: str
    facts: dict[str, float]
    """min, q01, mean, std, q99 and max."""
    bars: list[tuple[float, float]]
    """Left edge and height of each bar, from 0 to 1, heights as square roots; none where nothing changes."""
    marks: list[float]
    """Where q01 and q99 lie, from 0 to 1."""
    ends: tuple[float, float]
    """Values at the left and the right."""
    width: float
    """Of a bar."""


def dimensions(values: Values, most: int) -> list[Dimension]:
    """The first so many dimensions."""
    q01, q99, low, high = values.q01, values.q99, values.low.min(0), values.high.max(0)
    units = values.units or ("",) * len(values.names)
    found = []
    for d, name in enumerate(values.names[:most]):
        facts = {"min": low[d], "q01": q01[d], "mean": values.mean[d], "std": values.std[d], "q99": q99[d]}
        facts = {key: float(value) for key, value in (facts | {"max": high[d]}).items()}
        spread = BEYOND * (facts["q99"] - facts["q01"]) or facts["max"] - facts["min"]
        ends = max(facts["min"], facts["q01"] - spread), min(facts["max"], facts["q99"] + spread)
        bars = _bars(values.rows[:, d], ends)
        marks = [(facts[q] - ends[0]) / (ends[1] - ends[0]) for q in ("q01", "q99")] if bars else []
        unit = "" if units[d] == "unspecified" else units[d]
        found.append(Dimension(name, unit, facts, bars, marks, ends, 1 / BINS))
    return found


def _bars(rows: Float[np.ndarray, " rows"], ends: tuple[float, float]) -> list[tuple[float, float]]:
    if not ends[1] > ends[0]:
        return []
    counts, _ = np.histogram(rows.astype(np.float64), BINS, ends)
    heights = np.sqrt(counts / max(int(counts.max()), 1))
    return [(place / BINS, float(height)) for place, height in enumerate(heights) if height > 0]


def length_chart(lengths: Int[np.ndarray, " episodes"], control_hz: float) -> str | None:
    """How many episodes are how long; None where all are of one length."""
    if np.ptp(lengths) == 0:
        return None
    figure, axes = new_axes(4.6, 2.3)
    seconds = lengths / control_hz
    axes.hist(seconds, bins=min(BINS, max(8, len(np.unique(lengths)))), color=BAR)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="length of the episode, s", ylabel="episodes")
    return svg(figure, "lengths", COLOURS)
