"""Many episodes in several processes: every result on disk at once, finished episodes never run twice, none lost."""

import os
import time
import traceback
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.policy import Observation, Policy
from core.run import say
from eval.benchmark import Benchmark
from eval.pool import Done, Lost, run_in_processes
from eval.protocol import UNKNOWN, ProtocolError, protocol_of
from eval.remote import RemoteError
from eval.results import RESULTS_FILE, Result, append_result, by_arm, read_results, require_one_protocol
from eval.rollout import Outcome, another_instruction, rollout
from eval.video import side_by_side, write_video
from eval.workshop import Job, Setup, Workshop, is_trained

HOPELESS_AFTER = 3
SAY_EVERY_S = 10.0
ATTEMPTS = 3
TIMEOUT_S = 900.0
NOTHING = Outcome("", False, False, 0, 0, 0, None, {})


class RunnerError(RuntimeError):
    """An evaluation that cannot go on."""


class Fault(NamedTuple):
    """An attempt that came to nothing through no fault of the policy's: the episode is worth another one."""

    reason: str


def run(
    jobs: Sequence[Job],
    setup: Setup,
    out: str | Path,
    workers: int,
    timeout_s: float = TIMEOUT_S,
    attempts: int = ATTEMPTS,
) -> list[Result]:
    """Run the jobs that `out`/results.jsonl does not hold yet, and answer the results of all, in the order of `jobs`.

    An episode that fails with an error is recorded, counts as a failure, and is tried again by the next call. One
    whose worker crashes, is killed, or needs more than `timeout_s`, is begun anew at once, `attempts` times in all.

    Raises:
        RunnerError: the first three episodes all fail with the same error.
        PolicyProcessError: the policy's server cannot be started.
        ProtocolError: an episode was run under other conditions than those of the same arm and task before it.
    """
    file = Path(out) / RESULTS_FILE
    known = [result for result in read_results(file) if result.error is None] if file.is_file() else []
    done = {result.key for result in known}
    waiting = deque(job for job in jobs if job.key not in done)
    if done:
        say(f"evaluate: {len(jobs) - len(waiting)} of {len(jobs)} episodes are already in {file}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # inherited by the workers, whose number is the parallelism
    ledger = _Ledger(file, known, len(waiting), attempts)
    try:
        for path, group in _groups(waiting, setup):
            with _server(path, setup, timeout_s) as server:
                there = replace(setup, address=server.address if server else "")
                work = partial(run_job, setup=there, out=Path(out))
                with closing(run_in_processes(work, group, workers, timeout_s)) as outcomes:
                    for outcome in outcomes:
                        if not ledger.settled(outcome):
                            group.appendleft(outcome.item)
                            if server:
                                server.require_hope()  # otherwise all episodes would wait for it in vain
    except KeyboardInterrupt:
        ledger.say_progress()
        raise
    found = {result.key: result for result in read_results(file)} if file.is_file() else {}
    return [found[job.key] for job in jobs if job.key in found]


def run_job(job: Job, setup: Setup, out: Path) -> Result | Fault:
    """Run one episode in this process, which keeps its simulators and its last policy for the next one."""
    started = time.monotonic()
    outcome, fingerprint, protocol, error, video = NOTHING, UNKNOWN, None, None, None
    try:
        policy, benchmark = _WORKSHOP.policy_and_benchmark(job, setup)
        fingerprint = policy.fingerprint
        protocol = protocol_of(benchmark, policy, setup.execution, job.is_shuffled)
        outcome, video = _episode(job, setup, out, policy, benchmark)
        protocol = protocol.with_horizon(outcome.chunk_horizon)
    except (ConnectionError, RemoteError) as problem:
        return Fault(f"{type(problem).__name__}: {problem}")
    except Exception as problem:  # noqa: BLE001 - the only place allowed to: one bad episode must not end the others
        if os.environ.get("MVP_LAM_TRACEBACK"):
            say(traceback.format_exc())
        error = f"{type(problem).__name__}: {problem}"
    facts = outcome._asdict()
    del facts["chunk_horizon"]
    return Result(
        arm=job.arm,
        task=job.task,
        seed=job.seed,
        error=error,
        video=video,
        policy_fingerprint=fingerprint,
        seconds=round(time.monotonic() - started, 3),
        versions=_WORKSHOP.versions,
        protocol_fingerprint=UNKNOWN if protocol is None else protocol.fingerprint,
        protocol=protocol,
        **facts,
    )


def _episode(job: Job, setup: Setup, out: Path, policy: Policy, benchmark: Benchmark) -> tuple[Outcome, str | None]:
    """The episode and the path of its recording, if one was wanted."""
    frames: list[np.ndarray] = []

    def keep(observation: Observation) -> None:
        frames.append(side_by_side(observation, policy.cameras))

    told = another_instruction(benchmark, job.seed) if job.is_shuffled else None
    outcome = rollout(benchmark, policy, job.seed, setup.execution, told, keep if job.is_recorded else None)
    if not frames:
        return outcome, None
    video = f"videos/{job.arm}_{job.task}_{job.seed}.mp4"
    write_video(out / video, np.stack(frames), benchmark.control_hz)
    return outcome, video


_WORKSHOP = Workshop()


def _groups(jobs: Sequence[Job], setup: Setup) -> list[tuple[str, deque[Job]]]:
    """Jobs that run side by side, with the path of the policy that is served to them, if one is."""
    if not setup.server_batch:
        return [("", deque(jobs))]
    groups: dict[str, deque[Job]] = {}
    for job in jobs:
        groups.setdefault(job.policy if is_trained(job.policy) else "", deque()).append(job)
    return list(groups.items())


def _server(path: str, setup: Setup, timeout_s: float) -> AbstractContextManager[Any]:
    """The policy's process; None where none is served."""
    if not path:
        return nullcontext()
    from eval.policy_process import PolicyProcess
    from eval.serving_settings import ServingConfig

    say(f"evaluate: {path} is served to all workers")
    return PolicyProcess(setup.make_policy, path, ServingConfig(port=0, max_batch=setup.server_batch, idle_s=timeout_s))


class _Ledger:
    """Counts attempts, writes results as they come, says how it goes, stops when it is hopeless."""

    def __init__(self, file: Path, known: Sequence[Result], total: int, attempts: int) -> None:
        self._file, self._total, self._attempts = file, total, attempts
        self._faults: dict[tuple[str, str, int], list[str]] = {}
        self._started = self._said = time.monotonic()
        self._results: list[Result] = []
        self._first = {(result.arm, result.task): result for result in reversed(known)}

    def settled(self, outcome: Done | Lost) -> bool:
        """Whether the episode has come to its result; otherwise it is to be begun anew."""
        job, value = outcome.item, outcome.reason if isinstance(outcome, Lost) else outcome.value
        faults = self._faults.setdefault(job.key, [])
        if isinstance(value, Result):
            self._add(replace(value, attempts=len(faults) + 1, faults=faults))
            return True
        faults.append(value.reason if isinstance(value, Fault) else value)
        if len(faults) == self._attempts:
            self._add(_given_up(job, faults))
            return True
        say(f"evaluate: begun anew: {job.arm}, {job.task}, seed {job.seed}: {faults[-1]}")
        return False

    def _add(self, result: Result) -> None:
        self._require_known_protocol(result)
        append_result(self._file, result)
        self._results.append(result)
        if result.error is not None:
            say(f"evaluate: FAILED {result.arm}, {result.task}, seed {result.seed}: {result.error}")
            self._stop_if_hopeless()
        if time.monotonic() - self._said > SAY_EVERY_S or len(self._results) == self._total:
            self.say_progress()

    def say_progress(self) -> None:
        """How far it has come."""
        self._said = time.monotonic()
        say(progress(self._results, self._total, self._said - self._started))

    def _require_known_protocol(self, result: Result) -> None:
        if result.error is not None:
            return
        before = self._first.setdefault((result.arm, result.task), result)
        try:
            require_one_protocol([before, result])
        except ProtocolError as error:
            raise ProtocolError(f"{self._file} was begun under other conditions: {error}") from None

    def _stop_if_hopeless(self) -> None:
        errors = {result.error for result in self._results}
        if len(self._results) == HOPELESS_AFTER and len(errors) == 1:
            raise RunnerError(
                f"the first {HOPELESS_AFTER} episodes all failed with: {errors.pop()}; nothing else was run"
            )


def _given_up(job: Job, faults: list[str]) -> Result:
    reason = f"none of {len(faults)} attempts came to an end; the last one: {faults[-1]}"
    return Result(
        arm=job.arm,
        task=job.task,
        seed=job.seed,
        instruction="",
        success_at_end=False,
        success_at_any_time=False,
        steps=0,
        seconds=0.0,
        error=reason,
        attempts=len(faults),
        faults=faults,
        policy_fingerprint=UNKNOWN,
    )


def progress(results: Sequence[Result], total: int, seconds: float) -> str:
    """One line: how many, how fast, how long to go, success at the end by arm so far."""
    if not results:
        return f"evaluate: 0/{total} episodes"
    rate = len(results) / max(seconds, 1e-9)
    minutes, rest = divmod(round((total - len(results)) / rate), 60)
    arms = []
    for arm, group in by_arm(results).items():
        successes = sum(result.success_at_end for result in group)
        arms.append(f"{arm} {successes}/{len(group)}")
    said = f"evaluate: {len(results)}/{total} episodes, {rate:.2f}/s, {minutes}:{rest:02d} to go"
    return f"{said}; solved: {', '.join(arms)}"
