"""Results of episodes: one JSON line each, and the statistics that may be said of them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from scipy.stats import binomtest

from core.json_lines import LinesError, append_json_line, read_json_lines


class ResultsError(ValueError):
    """A results file that cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one episode of one arm came to."""

    arm: str
    """Name of what is compared: a policy under one way of being used."""
    task: str
    instruction: str
    """What the policy was told, which a shuffled-instruction arm makes differ from what was judged."""
    seed: int
    success_at_end: bool
    """The task was solved at the last step: the honest number."""
    success_at_any_time: bool
    """The task was solved at some step, perhaps in passing."""
    steps: int
    """Control steps taken."""
    seconds: float
    """Wall-clock time of the episode."""
    clipped_steps: int = 0
    """Steps whose action left the action space and was clipped into it."""
    error: str | None = None
    """Why the episode could not be finished; such an episode counts as a failure."""
    video: str | None = None
    """Path of a recording, relative to the results file."""
    policy_fingerprint: str
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, int]:
        """Arm, task and seed: what makes an episode the same one."""
        return self.arm, self.task, self.seed


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


class Summary(NamedTuple):
    """What a group of episodes came to."""

    episodes: int
    success_at_end: float
    """Share of episodes; an error counts as a failure."""
    success_at_any_time: float
    wilson95: Interval
    """Of success at the end."""
    errors: int


class Comparison(NamedTuple):
    """Two arms on the same seeds, first minus second, success at the end."""

    pairs: int
    difference: float
    newcombe95: Interval
    only_first: int
    """Seeds that only the first solved."""
    only_second: int
    p_value: float
    """Exact McNemar test of the two counts above."""


def append_result(path: str | Path, result: Result) -> None:
    """Add one line in one flushed write; a half-written line that a killed run left is cut off first."""
    append_json_line(path, asdict(result))


def read_results(path: str | Path) -> list[Result]:
    """The results in a file; of several lines for one episode (an error, then a repeat) the last one counts.

    Raises:
        ResultsError: there is no such file, or a line other than a half-written last one is not a result.
    """
    path = Path(path)
    if not path.is_file():
        raise ResultsError(f"no results at {path}; make them with scripts/evaluate.py")
    try:
        lines = read_json_lines(path)
    except LinesError as error:
        raise ResultsError(str(error)) from None
    results: dict[tuple[str, str, int], Result] = {}
    for number, values in enumerate(lines, start=1):
        try:
            result = Result(**values)
        except TypeError as error:
            raise ResultsError(f"{path}, line {number} is not a result ({error}); remove that line") from None
        results[result.key] = result
    return list(results.values())


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion; everything from 0 to 1 when nothing was tried."""
    if n == 0:
        return Interval(0.0, 1.0)
    interval = binomtest(successes, n).proportion_ci(confidence_level=level, method="wilson")
    return Interval(float(interval.low), float(interval.high))


def newcombe(successes: int, n: int, other_successes: int, other_n: int, level: float = 0.95) -> Interval:
    """Newcombe's hybrid score interval of the difference of two proportions, first minus second.

    Source: Newcombe (1998), Interval estimation for the difference between independent proportions, method 10.
    """
    if n == 0 or other_n == 0:
        return Interval(-1.0, 1.0)
    first, second = wilson(successes, n, level), wilson(other_successes, other_n, level)
    p, q = successes / n, other_successes / other_n
    below = math.hypot(p - first.low, second.high - q)
    above = math.hypot(first.high - p, q - second.low)
    return Interval(p - q - below, p - q + above)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value that the seeds solved by one arm alone are equally many for both."""
    discordant = only_first + only_second
    return float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0


def summarise(results: Sequence[Result]) -> Summary:
    """Success of a group of episodes, with its interval."""
    n = len(results)
    at_end = sum(result.success_at_end for result in results)
    at_any_time = sum(result.success_at_any_time for result in results)
    errors = sum(result.error is not None for result in results)
    return Summary(n, at_end / n if n else 0.0, at_any_time / n if n else 0.0, wilson(at_end, n), errors)


def by_arm(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Results of each arm, in order of first appearance."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.arm, []).append(result)
    return groups


def by_task(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Results of each task, in order of first appearance."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.task, []).append(result)
    return groups


def compare(first: Iterable[Result], second: Iterable[Result]) -> Comparison:
    """Two arms on the episodes (task and seed) that both have."""
    ours = {(result.task, result.seed): result.success_at_end for result in first}
    theirs = {(result.task, result.seed): result.success_at_end for result in second}
    shared = sorted(ours.keys() & theirs.keys())
    n, a, b = len(shared), sum(ours[key] for key in shared), sum(theirs[key] for key in shared)
    only_first = sum(ours[key] and not theirs[key] for key in shared)
    only_second = sum(theirs[key] and not ours[key] for key in shared)
    difference = (a - b) / n if n else 0.0
    return Comparison(n, difference, newcombe(a, n, b, n), only_first, only_second, mcnemar(only_first, only_second))
