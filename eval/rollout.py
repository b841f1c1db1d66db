"""One episode in closed loop: observe, ask the policy for a chunk of actions, take the first few, repeat."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from core.policy import ActionChunk, Observation, Policy
from core.spaces import ActionSpace
from eval.benchmark import Benchmark
from eval.execution import Execution, Executor

MEANING = ("names", "units", "kind", "frame", "rotation")
MAX_DRAWS = 100


class RolloutError(ValueError):
    """A policy that cannot act in a benchmark."""


class Outcome(NamedTuple):
    """What one episode came to."""

    instruction: str
    """What the policy was told."""
    success_at_end: bool
    success_at_any_time: bool
    steps: int
    """Control steps taken."""
    clipped_steps: int
    """Steps whose action left the range of the benchmark's action space and was clipped into it."""
    chunk_horizon: int
    """Actions of the policy's longest chunk."""
    first_success_step: int | None
    """Control steps after which it was first solved; None: never."""
    initial_state: dict[str, list[float]]
    """Where things lay at the start (x, y, z; m) by name."""


def rollout(
    benchmark: Benchmark,
    policy: Policy,
    seed: int,
    execution: Execution,
    instruction: str | None = None,
    on_frame: Callable[[Observation], None] | None = None,
) -> Outcome:
    """Run one episode to its step limit; it goes on after a first success, so that success at the end is meant.

    The simulator renders at policy calls only, or at every step when `on_frame` wants to see each observation.

    `execution` says how chunks become actions. An `instruction` is told to the policy instead of the true one, which is
    judged all the same.

    Raises:
        RolloutError: action spaces or control rates differ, a camera is missing, an action is not finite or too wide.
        ExecutionError: an action is far out of range, or `execution` does not fit the action space.
    """
    executor = Executor(execution, benchmark.action_space)
    require_same_meaning(policy.action_space, benchmark.action_space)
    _require_same_rate(policy, benchmark)
    true_instruction = benchmark.reset(seed)
    told = true_instruction if instruction is None else instruction
    initial_state = benchmark.initial_state()
    policy.reset(told, seed)
    steps = chunk_horizon = 0
    first_success_step: int | None = None
    success = is_over = False
    while not is_over and steps < benchmark.max_steps:
        chunk = _actions(policy.act(_observe(benchmark, policy, on_frame)), benchmark.action_space)
        chunk_horizon = max(chunk_horizon, len(chunk))
        for index, action in enumerate(executor.actions(chunk)):
            if index and on_frame is not None:
                on_frame(benchmark.observe())
            result = benchmark.step(action)
            success, is_over = bool(result.success), result.is_over
            steps += 1
            if success and first_success_step is None:
                first_success_step = steps
            if is_over or steps == benchmark.max_steps:
                break
    if on_frame is not None:
        on_frame(benchmark.observe())
    solved = first_success_step is not None
    clipped = executor.clipped_steps
    return Outcome(told, success, solved, steps, clipped, chunk_horizon, first_success_step, initial_state)


def require_same_meaning(ours: ActionSpace, theirs: ActionSpace) -> None:
    """Refuse a policy whose numbers mean something else than the benchmark's.

    Raises:
        RolloutError: names, units, kind, frame or rotation form differ.
    """
    for field in MEANING:
        mine, wanted = getattr(ours, field), getattr(theirs, field)
        if mine != wanted:
            raise RolloutError(
                f"the policy's actions have {field} {mine}, the benchmark takes {wanted}; "
                "finetune the policy on demonstrations of this benchmark"
            )


def _require_same_rate(policy: Policy, benchmark: Benchmark) -> None:
    trained_hz = getattr(policy, "control_hz", benchmark.control_hz)
    if abs(trained_hz - benchmark.control_hz) > 0.01 * benchmark.control_hz:
        raise RolloutError(
            f"the policy was trained at {trained_hz:g} Hz, the benchmark runs at {benchmark.control_hz:g} Hz; finetune "
            "the policy on demonstrations of this benchmark"
        )


def another_instruction(benchmark: Benchmark, seed: int) -> str:
    """An instruction of the same task that is wrong for the episode `seed`, drawn by the seed.

    It is found by looking at episodes with other seeds, so it is one that the task does give.

    Raises:
        RolloutError: the task seems to have one instruction only.
    """
    true_instruction = benchmark.reset(seed)
    for other_seed in np.random.default_rng(seed).integers(2**31, size=MAX_DRAWS):
        other = benchmark.reset(int(other_seed))
        if other != true_instruction:
            return other
    raise RolloutError(
        f"all of {MAX_DRAWS} episodes of {benchmark.task} have the instruction {true_instruction!r}, "
        "so there is none to exchange it with; leave shuffle_instructions off for this task"
    )


def _observe(benchmark: Benchmark, policy: Policy, on_frame: Callable[[Observation], None] | None) -> Observation:
    observation = benchmark.observe()
    missing = set(policy.cameras) - set(observation.images)
    if missing:
        raise RolloutError(
            f"the policy needs cameras {sorted(missing)}, {benchmark.task} has {list(observation.images)}"
        )
    if on_frame is not None:
        on_frame(observation)
    return observation


def _actions(chunk: ActionChunk, action_space: ActionSpace) -> Float[np.ndarray, "horizon dims"]:
    require_same_meaning(chunk.action_space, action_space)
    actions = np.asarray(chunk.actions, dtype=np.float64)
    if actions.ndim != 2 or len(actions) == 0 or actions.shape[1] != action_space.dims:
        raise RolloutError(
            f"the policy answered actions of shape {actions.shape}, wanted (horizon, {action_space.dims})"
        )
    if not np.isfinite(actions).all():
        row, column = np.argwhere(~np.isfinite(actions))[0]
        raise RolloutError(
            f"the policy answered {actions[row, column]} for {action_space.names[column]} of action {row} in its "
            "chunk; its weights or statistics are broken"
        )
    return actions
