"""Policies that know nothing: what success is worth must be read against them."""

import numpy as np

from core.policy import ActionChunk, Observation
from core.spaces import ActionSpace

HORIZON = 16


class RandomPolicy:
    """Actions drawn uniformly between `scale` times the lowest and highest of the action space."""

    cameras: tuple[str, ...] = ()

    def __init__(self, action_space: ActionSpace, scale: float = 1.0) -> None:
        self.action_space = action_space
        self.fingerprint = f"random-{scale:g}"
        self._low, self._high = (scale * np.array(bound) for bound in (action_space.low, action_space.high))
        self._generator = np.random.default_rng(0)

    def reset(self, instruction: str, seed: int) -> None:
        """Draw from `seed`; the instruction is not heard."""
        self._generator = np.random.default_rng(seed)

    def act(self, observation: Observation) -> ActionChunk:
        """Draw a chunk; the observation is not seen."""
        actions = self._generator.uniform(self._low, self._high, size=(HORIZON, self.action_space.dims))
        return ActionChunk(actions=actions, action_space=self.action_space)
