"""Episodes in closed loop: observe, ask the policy for a chunk of actions, take the first few, repeat."""

from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from core.policy import ActionChunk, Observation, Policy
from core.spaces import ActionSpace
from eval.batching import BatchPolicy
from eval.benchmark import Benchmark
from eval.execution import Execution, Executor
from eval.scenes import Scenes, SeparateSimulators

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


class Start(NamedTuple):
    """An episode to run."""

    seed: int
    instruction: str | None = None
    """Told to the policy instead of the true one, which is judged all the same."""
    on_frame: Callable[[Observation], None] | None = None
    """Sees every instant; without it the simulator renders at policy calls only."""


def rollout(
    benchmark: Benchmark,
    policy: Policy,
    seed: int,
    execution: Execution,
    instruction: str | None = None,
    on_frame: Callable[[Observation], None] | None = None,
) -> Outcome:
    """Run one episode to its step limit; see `rollouts`."""
    start = Start(seed, instruction, on_frame)
    (outcome,) = rollouts(SeparateSimulators([benchmark]), [policy], [start], execution)
    assert isinstance(outcome, Outcome)
    return outcome


def rollouts(
    scenes: Scenes,
    policies: Sequence[Policy],
    starts: Sequence[Start],
    execution: Execution,
    caught: tuple[type[Exception], ...] = (),
) -> list[Outcome | Exception]:
    """Run an episode in each of the first scenes, all step by step together, to the step limit.

    They go on after a first success, so that success at the end is meant. Each scene has a policy of its own, or all
    have the same `BatchPolicy`, which is asked for all of them at once. `execution` says how chunks become actions. An
    error of a kind that is `caught` ends the one episode that it comes from, and is its answer.

    Raises:
        RolloutError: action spaces or control rates differ, a camera is missing, an action is not finite or too wide.
        ExecutionError: an action is far out of range, or `execution` does not fit the action space.
    """
    for scene, policy in zip(scenes.each, policies, strict=True):
        require_fit(policy, scene)
    told = scenes.reset([start.seed for start in starts])
    given = zip(scenes.each, policies, starts, told, strict=False)
    together = _Together([_episode(*each, execution) for each in given], policies[0], caught)
    while together.turns:
        if asking := [index for index in sorted(together.turns) if isinstance(together.turns[index], _Ask)]:
            together.ask(asking)
            continue
        results = scenes.step([together.turns.get(index) for index in range(len(starts))])
        for index in sorted(together.turns):
            together.go_on(index, results[index])
    return [together.ended[index] for index in range(len(starts))]


class _Ask(NamedTuple):
    """What a `BatchPolicy` is asked."""

    observation: Observation
    session: Any


def _episode(
    scene: Benchmark, policy: Policy, start: Start, true_instruction: str, execution: Execution
) -> Generator[Any, Any, Outcome]:
    """One episode, which hands out questions to a `BatchPolicy` and actions, and is handed chunks and `StepResult`s."""
    executor = Executor(execution, scene.action_space)
    told = true_instruction if start.instruction is None else start.instruction
    initial_state = scene.initial_state()
    session = _begun(policy, told, start.seed)
    steps = chunk_horizon = 0
    first_success_step: int | None = None
    success = is_over = False
    while not is_over and steps < scene.max_steps:
        observation = _observe(scene, policy, start.on_frame)
        answer = (yield _Ask(observation, session)) if isinstance(policy, BatchPolicy) else policy.act(observation)
        chunk = _actions(answer, scene.action_space)
        chunk_horizon = max(chunk_horizon, len(chunk))
        for index, action in enumerate(executor.actions(chunk)):
            if index and start.on_frame is not None:
                start.on_frame(scene.observe())
            result = yield action
            success, is_over = bool(result.success), result.is_over
            steps += 1
            if success and first_success_step is None:
                first_success_step = steps
            if is_over or steps == scene.max_steps:
                break
    if start.on_frame is not None:
        start.on_frame(scene.observe())
    solved = first_success_step is not None
    clipped = executor.clipped_steps
    return Outcome(told, success, solved, steps, clipped, chunk_horizon, first_success_step, initial_state)


class _Together:
    """Episodes, each at the point where it needs a chunk or a control step, or at its end."""

    def __init__(
        self, episodes: Sequence[Generator[Any, Any, Outcome]], policy: Any, caught: tuple[type[Exception], ...]
    ) -> None:
        self.turns: dict[int, Any] = {}
        """What those that go on have handed out, by their number."""
        self.ended: dict[int, Outcome | Exception] = {}
        self._episodes, self._policy, self._caught = episodes, policy, caught
        for index in range(len(episodes)):
            self.go_on(index, None)

    def go_on(self, index: int, answer: Any) -> None:
        """Hand an episode what it waits for."""
        self.turns.pop(index, None)
        try:
            self.turns[index] = self._episodes[index].send(answer)
        except StopIteration as end:
            self.ended[index] = end.value
        except self._caught as problem:
            self.ended[index] = problem

    def ask(self, asking: Sequence[int]) -> None:
        """Ask the policy for these episodes at once; for each alone where that fails: one must not fail the others."""
        asks = [self.turns[index] for index in asking]
        try:
            chunks = self._policy.act_many([ask.observation for ask in asks], [ask.session for ask in asks])
        except self._caught as problem:
            if len(asking) > 1:
                for index in asking:
                    self.ask([index])
            else:
                del self.turns[asking[0]]
                self.ended[asking[0]] = problem
            return
        for index, chunk in zip(asking, chunks, strict=True):
            self.go_on(index, chunk)


def require_fit(policy: Policy, scene: Benchmark) -> None:
    """Refuse a policy that cannot act in a benchmark at all.

    Raises:
        RolloutError: actions mean something else, or the policy was trained at another rate.
    """
    require_same_meaning(policy.action_space, scene.action_space)
    _require_same_rate(policy, scene)


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


def another_instruction(scenes: Scenes, seed: int) -> str:
    """An instruction of the same task that is wrong for the episode `seed`, drawn by the seed.

    It is found by looking at episodes with other seeds, so it is one that the task does give.

    Raises:
        RolloutError: the task seems to have one instruction only.
    """
    (true_instruction,) = scenes.reset([seed])
    for other_seed in np.random.default_rng(seed).integers(2**31, size=MAX_DRAWS):
        (other,) = scenes.reset([int(other_seed)])
        if other != true_instruction:
            return other
    raise RolloutError(
        f"all of {MAX_DRAWS} episodes of {scenes.each[0].task} have the instruction {true_instruction!r}, "
        "so there is none to exchange it with; leave shuffle_instructions off for this task"
    )


def _begun(policy: Policy, told: str, seed: int) -> Any:
    """A `BatchPolicy`'s session of an episode that has begun."""
    if isinstance(policy, BatchPolicy):
        return policy.start(told, seed)
    policy.reset(told, seed)
    return None


def _observe(scene: Benchmark, policy: Policy, on_frame: Callable[[Observation], None] | None) -> Observation:
    observation = scene.observe()
    missing = set(policy.cameras) - set(observation.images)
    if missing:
        raise RolloutError(f"the policy needs cameras {sorted(missing)}, {scene.task} has {list(observation.images)}")
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
