"""The two ends of the scale: a policy that knows nothing and one that knows the state of the simulator."""

import numpy as np

from core.policy import ActionChunk, Observation
from core.spaces import ActionSpace
from eval.experts import Expert
from eval.maniskill import ManiSkillBenchmark

HORIZON = 16
EXPERT_SPEED = 0.65


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


class ExpertPolicy:
    """The scripted expert of a task, undisturbed: what can be reached at all."""

    cameras: tuple[str, ...] = ()
    fingerprint = "expert"

    def __init__(self, benchmark: ManiSkillBenchmark) -> None:
        self.action_space = benchmark.action_space
        self._benchmark = benchmark

    def reset(self, instruction: str, seed: int) -> None:
        """Take up the episode in which the benchmark stands; the expert knows what it was told."""
        self._expert = Expert(self._benchmark, seed, EXPERT_SPEED)

    def act(self, observation: Observation) -> ActionChunk:
        """One action, from the true poses."""
        action = self._expert.decide().action
        return ActionChunk(actions=action[None], action_space=self.action_space)
