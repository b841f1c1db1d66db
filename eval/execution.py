"""From the chunks that a policy answers to the actions that a robot takes: blended, scaled, held, kept in range."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float
from pydantic import Field

from core.config import Config
from core.spaces import ActionSpace

GRIPPER_UNIT = "open"
ROUNDING = 1e-6


class ExecutionError(ValueError):
    """An action that no robot may get."""


class Execution(Config):
    """How a policy's answers are used. Blending, holding and scaling are off unless asked for; all is recorded."""

    execute_steps: int = Field(default=8, gt=0)
    """Actions of each predicted chunk that are taken before the policy is asked again."""
    ensemble_decay: float | None = Field(default=None, ge=0)
    """Blend all chunks that speak of a step, the i-th newest with weight exp(-ensemble_decay i); published: 0.1."""
    sticky_gripper_steps: int = Field(default=0, ge=0)
    """Steps for which a gripper that was told to open or close keeps to it, whatever the policy says; 0: none."""
    action_scale: float = Field(default=1.0, gt=0)
    """Factor of movements, for action spaces of increments; the gripper is left as it is."""
    stop_beyond: float = Field(default=5.0, ge=1)
    """Times its range beyond which an action ends the episode with an error; nearer it is clipped; 1: never clipped."""


class Executor:
    """The actions of one episode; `clipped_steps` counts those that had to be clipped.

    Raises:
        ExecutionError: the action space names no range, or has nothing to scale or to hold though that is asked for.
    """

    def __init__(self, execution: Execution, space: ActionSpace) -> None:
        if space.low is None or space.high is None:
            raise ExecutionError("the benchmark's action space names no range; give its low and high")
        if execution.action_scale != 1 and not space.is_increment.any():
            raise ExecutionError(
                f"action_scale = {execution.action_scale:g} scales increments, but actions are of kind {space.kind}; "
                "leave action_scale at 1"
            )
        self._grippers = [index for index, unit in enumerate(space.units) if unit == GRIPPER_UNIT]
        if execution.sticky_gripper_steps and not self._grippers:
            raise ExecutionError(
                f"sticky_gripper_steps = {execution.sticky_gripper_steps}, but no dimension of {space.names} has the "
                f"unit {GRIPPER_UNIT}; leave sticky_gripper_steps at 0"
            )
        self.clipped_steps = 0
        self._execution = execution
        self._space = space
        self._low, self._high = np.array(space.low), np.array(space.high)
        self._scale = np.where(space.is_increment, execution.action_scale, 1.0)
        self._held = {index: (0.0, 0) for index in self._grippers}
        self._chunks: list[tuple[int, Float[np.ndarray, "horizon dims"]]] = []
        self._step = 0

    def actions(self, chunk: Float[np.ndarray, "horizon dims"]) -> Iterator[Float[np.ndarray, " dims"]]:
        """The next actions, at most `execute_steps` of them, once the policy has answered `chunk`; all are in range.

        Raises:
            ExecutionError: an action is too far out of range.
        """
        self._chunks = [*self._chunks, (self._step, chunk)] if self._execution.ensemble_decay is not None else []
        for action in chunk[: self._execution.execute_steps]:
            yield self._in_range(self._sticky(self._scale * self._blended(action)))
            self._step += 1

    def _blended(self, newest: Float[np.ndarray, " dims"]) -> Float[np.ndarray, " dims"]:
        """What all chunks that reach this step say of it; weights as published for this method's policies."""
        if self._execution.ensemble_decay is None:
            return newest
        self._chunks = [(start, chunk) for start, chunk in self._chunks if self._step < start + len(chunk)]
        said = np.stack([chunk[self._step - start] for start, chunk in reversed(self._chunks)])
        weights = np.exp(-self._execution.ensemble_decay * np.arange(len(said)))
        return weights @ said / weights.sum()

    def _sticky(self, action: Float[np.ndarray, " dims"]) -> Float[np.ndarray, " dims"]:
        """The action with grippers that keep, for a while, to a command which opened or closed them."""
        if self._execution.sticky_gripper_steps == 0:
            return action
        action = action.copy()
        for index in self._grippers:
            command, steps_left = self._held[index]
            if steps_left == 0 and command * action[index] < 0:
                steps_left = self._execution.sticky_gripper_steps
            elif steps_left > 0:
                action[index] = command
            self._held[index] = (float(action[index]), max(steps_left - 1, 0))
        return action

    def _in_range(self, action: Float[np.ndarray, " dims"]) -> Float[np.ndarray, " dims"]:
        low, high = self._low, self._high
        allowed = np.clip(action, low, high)
        if np.allclose(allowed, action, atol=ROUNDING, rtol=0):
            return allowed
        reach = np.abs(action - (low + high) / 2) / np.maximum((high - low) / 2, ROUNDING)
        worst = int(np.argmax(reach))
        if not reach[worst] <= self._execution.stop_beyond:
            raise ExecutionError(
                f"step {self._step}: the action's {self._space.names[worst]} is {action[worst]:g}, more than "
                f"{self._execution.stop_beyond:g} times its range of {low[worst]:g} to {high[worst]:g}; its units or "
                "statistics are not those of this benchmark, or raise stop_beyond to have it clipped"
            )
        self.clipped_steps += 1
        return allowed
