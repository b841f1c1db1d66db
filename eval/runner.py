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
from eval.pool import Done, Lost, run_in_processes
from eval.protocol import UNKNOWN, Protocol, ProtocolError, protocol_of
from eval.remote import RemoteError
from eval.results import RESULTS_FILE, Result, append_result, by_arm, read_results, require_one_protocol
from eval.rollout import Outcome, Start, another_instruction, require_fit, rollouts
from eval.scenes import Scenes
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


Wave = tuple[Job, ...]
"""Jobs of one kind that a worker simulates at once."""


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
    whose worker crashes, is killed, or needs more than `timeout_s`, is begun anew at once, `attempts` times in all;
    where `setup.scenes` episodes share a worker that is lost, each has used up an attempt, and the last is made alone.

    Raises:
        RunnerError: an arm cannot be tried on a task at all, or the first three episodes all fail with the same error.
        PolicyProcessError: the policy's server cannot be started.
        ProtocolError: an episode was run under other conditions than those of the same arm and task before it.
    """
    file = Path(out) / RESULTS_FILE
    known = [result for result in read_results(file) if result.error is None] if file.is_file() else []
    done = {result.key for result in known}
    waiting = [job for job in jobs if job.key not in done]
    if done:
        say(f"evaluate: {len(jobs) - len(waiting)} of {len(jobs)} episodes are already in {file}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # inherited by the workers, whose number is the parallelism
    ledger = _Ledger(file, known, len(waiting), attempts)
    try:
        for path, group in _groups(waiting, setup):
            with _server(path, setup, timeout_s) as server:
                there = replace(setup, address=server.address if server else "")
                work = partial(run_wave, setup=there, out=Path(out))
                waves = _waves(group, setup.scenes)
                with closing(run_in_processes(work, waves, workers, timeout_s)) as outcomes:
                    for outcome in outcomes:
                        again = ledger.settle(outcome)
                        waves.extendleft(reversed(again))
                        if again and server:
                            server.require_hope()  # otherwise all episodes would wait for it in vain
    except KeyboardInterrupt:
        ledger.say_progress()
        raise
    found = {result.key: result for result in read_results(file)} if file.is_file() else {}
    return [found[job.key] for job in jobs if job.key in found]


def run_wave(wave: Wave, setup: Setup, out: Path) -> list[Result | Fault]:
    """Run episodes in this process, which keeps its simulators and its last policy for the next ones."""
    started = time.monotonic()
    policy: Policy | None = None
    protocol: Protocol | None = None
    found: list[tuple[Outcome | Exception, str | None]]
    try:
        policies, scenes = _WORKSHOP.policies_and_scenes(wave[0], setup)
        policy = policies[0]
        require_fit(policy, scenes.each[0])
        protocol = protocol_of(scenes.each[0], policy, setup.execution, wave[0].is_shuffled)
        found = _episodes(wave, setup, out, policies, scenes)
    except Exception as problem:  # noqa: BLE001 - the only place allowed to: one bad episode must not end the others
        if len(wave) > 1 and protocol is not None:  # the simulator failed, perhaps in one episode only
            return [result for job in wave for result in run_wave((job,), setup, out)]
        found = [(problem, None)] * len(wave)
    fingerprint = UNKNOWN if policy is None else policy.fingerprint
    seconds = round((time.monotonic() - started) / len(wave), 3)
    return [_result(job, *each, seconds, fingerprint, protocol) for job, each in zip(wave, found, strict=True)]


def _episodes(
    wave: Wave, setup: Setup, out: Path, policies: Sequence[Policy], scenes: Scenes
) -> list[tuple[Outcome | Exception, str | None]]:
    """What each episode came to, and the path of its recording, if one was wanted."""
    frames: list[list[np.ndarray]] = [[] for _ in wave]

    def keep(frames: list[np.ndarray], observation: Observation) -> None:
        frames.append(side_by_side(observation, policies[0].cameras))

    starts = [
        Start(
            job.seed,
            another_instruction(scenes, job.seed) if job.is_shuffled else None,
            partial(keep, seen) if job.is_recorded else None,
        )
        for job, seen in zip(wave, frames, strict=True)
    ]
    ends = rollouts(scenes, policies, starts, setup.execution, caught=(Exception,))
    found: list[tuple[Outcome | Exception, str | None]] = []
    for job, end, seen in zip(wave, ends, frames, strict=True):
        video = f"videos/{job.arm}_{job.task}_{job.seed}.mp4" if seen and isinstance(end, Outcome) else None
        if video:
            write_video(out / video, np.stack(seen), scenes.each[0].control_hz)
        found.append((end, video))
    return found


def _result(
    job: Job, end: Outcome | Exception, video: str | None, seconds: float, fingerprint: str, protocol: Protocol | None
) -> Result | Fault:
    """The line of an episode; its share of the `seconds` where several ran at once."""
    if isinstance(end, ConnectionError | RemoteError):
        return Fault(f"{type(end).__name__}: {end}")
    outcome, error = (end, None) if isinstance(end, Outcome) else (NOTHING, f"{type(end).__name__}: {end}")
    if isinstance(end, Exception) and os.environ.get("MVP_LAM_TRACEBACK"):
        say("".join(traceback.format_exception(end)))
    if protocol is not None and error is None:
        protocol = protocol.with_horizon(outcome.chunk_horizon)
    facts = outcome._asdict()
    del facts["chunk_horizon"]
    return Result(
        arm=job.arm,
        task=job.task,
        seed=job.seed,
        error=error,
        video=video,
        policy_fingerprint=fingerprint,
        seconds=seconds,
        versions=_WORKSHOP.versions,
        protocol_fingerprint=UNKNOWN if protocol is None else protocol.fingerprint,
        protocol=protocol,
        **facts,
    )


_WORKSHOP = Workshop()


def _groups(jobs: Sequence[Job], setup: Setup) -> list[tuple[str, list[Job]]]:
    """Jobs that run side by side, with the path of the policy that is served to them, if one is."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.policy if setup.server_batch and is_trained(job.policy) else "", []).append(job)
    return list(groups.items())


def _waves(jobs: Sequence[Job], scenes: int) -> deque[Wave]:
    """The jobs, as many as there are scenes at a time."""
    kinds: dict[Any, list[Job]] = {}
    for job in jobs:
        kinds.setdefault(job.kind, []).append(job)
    return deque(tuple(some[i : i + scenes]) for some in kinds.values() for i in range(0, len(some), scenes))


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

    def settle(self, outcome: Done | Lost) -> list[Wave]:
        """Record the episodes that have come to their results; answers those that are to be begun anew."""
        wave: Wave = outcome.item
        values = [Fault(outcome.reason)] * len(wave) if isinstance(outcome, Lost) else outcome.value
        again = tuple(job for job, value in zip(wave, values, strict=True) if not self._is_settled(job, value))
        is_complete = len(self._results) == self._total
        if len(again) < len(wave) and (is_complete or time.monotonic() - self._said > SAY_EVERY_S):
            self.say_progress()
        # What ends the worker every time shall not cost the other episodes all of their attempts.
        is_last = any(len(self._faults[job.key]) == self._attempts - 1 for job in again)
        return [(job,) for job in again] if is_last else [again] * bool(again)

    def _is_settled(self, job: Job, value: Result | Fault) -> bool:
        faults = self._faults.setdefault(job.key, [])
        if isinstance(value, Result):
            self._add(replace(value, attempts=len(faults) + 1, faults=faults))
            return True
        faults.append(value.reason)
        if len(faults) == self._attempts:
            self._add(_given_up(job, faults))
            return True
        say(f"evaluate: begun anew: {job.arm}, {job.task}, seed {job.seed}: {faults[-1]}")
        return False

    def _add(self, result: Result) -> None:
        if result.error is not None and result.protocol is None and not result.faults:
            raise RunnerError(
                f"{result.arm} cannot be tried on {result.task}: {result.error}; what was finished is kept in "
                f"{self._file}"
            )
        self._require_known_protocol(result)
        append_result(self._file, result)
        self._results.append(result)
        if result.error is not None:
            say(f"evaluate: FAILED {result.arm}, {result.task}, seed {result.seed}: {result.error}")
            self._stop_if_hopeless()

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
        if not self._first and len(self._results) == HOPELESS_AFTER and len(errors) == 1:
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
        versions=_WORKSHOP.versions,
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
