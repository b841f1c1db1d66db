"""Results of episodes: one JSON line each, and the statistics that may be said of them."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from core.json_lines import LinesError, append_json_line, read_json_lines
from eval.proportions import Interval, wilson
from eval.protocol import UNKNOWN, Protocol, ProtocolError

RESULTS_FILE = "results.jsonl"
"""Of an evaluation's directory."""


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
    """Of the initial state; its number where a benchmark has fixed ones."""
    success_at_end: bool
    """The task was solved at the last step: the honest number."""
    success_at_any_time: bool
    """The task was solved at some step, perhaps in passing."""
    steps: int
    """Control steps taken."""
    seconds: float
    """Wall-clock time of the episode, of its last attempt; its share where several were simulated at once."""
    clipped_steps: int = 0
    """Steps whose action left the action space and was clipped into it."""
    first_success_step: int | None = None
    """Control steps after which it was first solved; None: never, or an older file."""
    initial_state: dict[str, list[float]] = field(default_factory=dict)
    """Where things lay at the start (x, y, z; m) by name, what the task is about first; empty where it is not known."""
    error: str | None = None
    """Why the episode could not be finished; such an episode counts as a failure."""
    video: str | None = None
    """Path of a recording, relative to the results file."""
    attempts: int = 1
    """How often it was begun; more than once where a worker or the policy's server was lost."""
    faults: list[str] = field(default_factory=list)
    """Why each attempt before the last one, or all of a failed episode, came to nothing."""
    policy_fingerprint: str
    versions: dict[str, str] = field(default_factory=dict)
    protocol_fingerprint: str = UNKNOWN
    """Identifies the conditions that arms must share to be compared; see `Protocol`."""
    protocol: Protocol | None = None
    """None where an error came before it was known, and in files that are older than protocols."""

    @property
    def key(self) -> tuple[str, str, int]:
        """Arm, task and seed: what makes an episode the same one."""
        return self.arm, self.task, self.seed


class Summary(NamedTuple):
    """What a group of episodes came to."""

    episodes: int
    success_at_end: float
    """Share of episodes; an error counts as a failure."""
    success_at_any_time: float
    wilson95: Interval
    """Of success at the end."""
    errors: int


def append_result(path: str | Path, result: Result) -> None:
    """Add one line in one flushed write; a half-written line that a killed run left is cut off first."""
    append_json_line(path, asdict(result))


def read_results(path: str | Path) -> list[Result]:
    """The results in a file; of several lines for one episode (an error, then a repeat) the last one counts.

    Raises:
        ResultsError: there is no such file, or a line other than a half-written last one is not a result.
    """
    return latest(read_lines(path))


def latest(lines: Iterable[Result]) -> list[Result]:
    """The last one of each episode."""
    return list({result.key: result for result in lines}.values())


def read_lines(path: str | Path) -> list[Result]:
    """Every line of a file, those too that a later one replaced; raises what `read_results` does."""
    path = Path(path)
    if not path.is_file():
        raise ResultsError(f"no results at {path}; make them with scripts/evaluate.py")
    try:
        lines = read_json_lines(path)
    except LinesError as error:
        raise ResultsError(str(error)) from None
    results: list[Result] = []
    for number, values in enumerate(lines, start=1):
        try:
            results.append(_result(values))
        except TypeError as error:
            raise ResultsError(f"{path}, line {number} is not a result ({error}); remove that line") from None
    return results


def _result(values: dict[str, Any]) -> Result:
    result = Result(**values)
    protocol: Any = result.protocol
    return result if protocol is None else replace(result, protocol=Protocol(**protocol))


def require_one_protocol(results: Iterable[Result]) -> None:
    """Refuse results of one arm on one task that were not got under the same conditions by the same policy.

    An episode that failed before its conditions were known fits anywhere: it is a failure under any.

    Raises:
        ProtocolError: conditions or policies differ; the message says in what.
    """
    first: dict[tuple[str, str], Result] = {}
    for result in sorted(_with_conditions(results), key=lambda result: result.error is not None):
        other = first.setdefault((result.arm, result.task), result)
        # A policy that failed may not have answered a chunk, whose length is then unknown.
        _require_same(other, result, f"{result.task} by {result.arm}", only_benchmark=result.error is not None)


def require_shared_protocol(results: Iterable[Result]) -> None:
    """Refuse results of several arms where the benchmark's part of the conditions of a task differs.

    Raises:
        ProtocolError: it does; the message says in what.
    """
    first: dict[str, Result] = {}
    for result in _with_conditions(results):
        other = first.setdefault(result.task, result)
        _require_same(other, result, f"{result.task} by {other.arm} and {result.arm}", only_benchmark=True)


def _with_conditions(results: Iterable[Result]) -> list[Result]:
    return [result for result in results if result.error is None or result.protocol is not None]


def _require_same(ours: Result, theirs: Result, what: str, only_benchmark: bool) -> None:
    same_policy = only_benchmark or ours.policy_fingerprint == theirs.policy_fingerprint
    if same_policy and ours.protocol == theirs.protocol:
        return
    if ours.protocol is None or theirs.protocol is None:
        known, unknown = (theirs, ours) if ours.protocol is None else (ours, theirs)
        differ = [f"seed {unknown.seed} records no protocol, seed {known.seed} does"]
    else:
        differ = ours.protocol.difference(theirs.protocol, only_benchmark)
    if not same_policy:
        differ.append(f"policy_fingerprint: {ours.policy_fingerprint} -> {theirs.policy_fingerprint}")
    if differ:
        raise ProtocolError(
            f"{what}: results of different protocols are neither averaged nor compared: {'; '.join(differ)}; "
            "evaluate all of them again under one protocol, into a new --out"
        )


def summarise(results: Sequence[Result]) -> Summary:
    """Success of a group of episodes, with its interval.

    Raises:
        ProtocolError: episodes of one arm on one task differ in their conditions.
    """
    require_one_protocol(results)
    n = len(results)
    at_end = sum(result.success_at_end for result in results)
    at_any_time = sum(result.success_at_any_time for result in results)
    errors = sum(result.error is not None for result in results)
    return Summary(n, at_end / n if n else 0.0, at_any_time / n if n else 0.0, wilson(at_end, n), errors)


def step_limit(results: Iterable[Result]) -> int | None:
    """Control steps that the episodes of one task may take; None: no line says."""
    return next((int(one.protocol.benchmark["step_limit"]) for one in results if one.protocol is not None), None)


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
