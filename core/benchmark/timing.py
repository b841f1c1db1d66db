"""Seconds of several things that are compared, taken in turn, so that whatever else the machine does hits all alike.

What counts as a second is the caller's to choose: a `Clock` is a function that tells the time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from core.benchmark.running import Numbers

Clock = Callable[[], float]
"""Seconds since some instant, such as `time.perf_counter` or `time.process_time`; core/benchmark/meters.py has more."""


class Timing(NamedTuple):
    """Seconds of calls, round after round."""

    rounds: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Timing":
        """One call a round."""
        return cls(tuple((value,) for value in seconds))

    @property
    def calls(self) -> list[float]:
        """Seconds of all calls."""
        return [seconds for calls in self.rounds for seconds in calls]

    @property
    def median_s(self) -> float:
        """The middle one."""
        return median(self.calls)

    def quantile_s(self, share: float) -> float:
        """What so large a share of the calls stays below."""
        return float(np.quantile(self.calls, share))

    def per(self, count: int) -> "Timing":
        """Of one of the `count` things that each call does."""
        return Timing(tuple(tuple(seconds / count for seconds in calls) for calls in self.rounds))

    def __str__(self) -> str:
        return f"{self.median_s:9.4f} s  ({min(self.calls):.4f} to {max(self.calls):.4f})"


class Ratio(NamedTuple):
    """How many times as long one thing takes as another, from round to round."""

    median: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        return f"{self.median:9.3f}    ({self.lowest:.3f} to {self.highest:.3f})"


def ratio(above: Timing, below: Timing) -> Ratio:
    """Of the medians of each round."""
    found = [median(a) / median(b) for a, b in zip(above.rounds, below.rounds, strict=True)]
    return Ratio(median(found), min(found), max(found))


def share_of(least_s: float, timing: Timing) -> Ratio:
    """So many seconds as a share of the calls' seconds."""
    return Ratio(least_s / timing.median_s, least_s / max(timing.calls), least_s / min(timing.calls))


def together(*timings: Timing) -> Timing:
    """Of doing one after the other; each with one call a round."""
    return Timing.of([sum(seconds) for seconds in zip(*(timing.calls for timing in timings), strict=True)])


def in_turn(
    calls: Mapping[str, Callable[[], Any]], clock: Clock, rounds: int, repeats: Mapping[str, int] | None = None
) -> dict[str, Timing]:
    """Each call once to warm up, then all of them `rounds` times in turn; `repeats` tells who comes often in a turn."""
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in calls}
    turns = [(turn, name) for turn in range(rounds + 1) for name in calls]
    for turn, name in (progress := tqdm(turns, unit="call", leave=False)):
        progress.set_description(name)
        number = (repeats or {}).get(name, 1) if turn else 1
        seconds = tuple(seconds_of(calls[name], clock) for _ in range(number))
        if turn:
            found[name].append(seconds)
    return {name: Timing(tuple(seconds)) for name, seconds in found.items()}


def seconds_of(call: Callable[[], Any], clock: Clock) -> float:
    """Seconds of one call."""
    start = clock()
    call()
    return clock() - start


def rows(timings: Mapping[str, Timing], numbers: Numbers) -> Iterator[str]:
    """A line of each, and its seconds for the JSON."""
    numbers["seconds"] = numbers.get("seconds", {}) | {name: timing.calls for name, timing in timings.items()}
    yield from (f"  {name:56} {timing}" for name, timing in timings.items())


def ratio_row(name: str, found: Ratio, numbers: Numbers) -> str:
    """A line of a ratio, and the ratio for the JSON."""
    numbers[name] = found._asdict()
    return f"  {name:56} {found}"
